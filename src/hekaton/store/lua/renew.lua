-- KEYS leader, term. ARGV holder, term, ttl ms. Returns 1 if the holder still leads.
if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 0
end
-- A lease that ran out while nobody else took a term is still this holder's.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return 1
