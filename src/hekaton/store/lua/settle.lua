-- KEYS spent, active. ARGV request id, minute of its charge, tokens that it did not use.
redis.call('ZREM', KEYS[2], ARGV[1])
if tonumber(ARGV[3]) > 0 and redis.call('HGET', KEYS[1], 'minute') == ARGV[2] then
  redis.call('HINCRBY', KEYS[1], 'tokens', '-' .. ARGV[3])
end
return 1
