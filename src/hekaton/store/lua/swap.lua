-- KEYS hash. ARGV field, old value, new value. Returns 1 if the field had the old value and has the new one now.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
