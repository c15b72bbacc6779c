-- KEYS info, members, incarnation. ARGV id, incarnation. A newer process of the same id stays. Returns 1 if it was there.
if redis.call('GET', KEYS[3]) ~= ARGV[2] then
  return 0
end
redis.call('SREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
