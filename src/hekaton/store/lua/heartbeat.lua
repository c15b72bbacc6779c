-- KEYS info, members, incarnation. ARGV id, info, ttl ms, incarnation, memory of incarnations ms.
local newest = tonumber(redis.call('GET', KEYS[3]) or '0')
if tonumber(ARGV[4]) < newest then
  return redis.error_reply('STALETERM ' .. whole(newest) .. ' a newer process is registered as ' .. ARGV[1] .. '; stop this one')
end
redis.call('SET', KEYS[3], ARGV[4], 'PX', ARGV[5])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('SADD', KEYS[2], ARGV[1])
return 1
