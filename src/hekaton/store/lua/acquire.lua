-- KEYS leader, term. ARGV holder, ttl ms, least term. Returns {new term}, or {} while somebody leads.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return {}
end
local stored = tonumber(redis.call('GET', KEYS[2]) or '0')
local term = whole(math.max(stored + 1, now_ms(), tonumber(ARGV[3])))
redis.call('SET', KEYS[2], term)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {term}
