-- KEYS spent, active. ARGV request id, tokens, requests a minute, tokens a minute, concurrent (0: no limit), ttl ms.
-- The limit that refuses ('' if none does), and the ms after which to ask again.
local now = now_ms()
local minute = math.floor(now / 60000)
local left = (minute + 1) * 60000 - now
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local spent = redis.call('HMGET', KEYS[1], 'minute', 'requests', 'tokens')
local requests, tokens = 0, 0
if tonumber(spent[1] or '-1') == minute then
  requests, tokens = tonumber(spent[2]), tonumber(spent[3])
end
local function over(used, limit) return limit > 0 and used > limit end
if over(redis.call('ZCARD', KEYS[2]) + 1, tonumber(ARGV[5])) then return {'concurrent', 1000} end
if over(requests + 1, tonumber(ARGV[3])) then return {'requests_per_minute', left} end
if over(tokens + ARGV[2], tonumber(ARGV[4])) then return {'tokens_per_minute', left} end
redis.call('HSET', KEYS[1], 'minute', minute, 'requests', requests + 1, 'tokens', tokens + ARGV[2])
redis.call('PEXPIRE', KEYS[1], 120000)
redis.call('ZADD', KEYS[2], now + ARGV[6], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[6], 'NX')
redis.call('PEXPIRE', KEYS[2], ARGV[6], 'GT')
return {'', minute}
