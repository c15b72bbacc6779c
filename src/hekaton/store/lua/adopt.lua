-- KEYS request. ARGV router. A live request's tokens go to that router from now on.
-- Returns {{state, worker, epoch}}, or {} if unknown.
local state, epoch, worker = unpack(redis.call('HMGET', KEYS[1], 'state', 'epoch', 'worker'))
if not state then
  return {}
end
if live(state) then
  redis.call('HSET', KEYS[1], 'router', ARGV[1])
end
return {{state, worker, epoch}}
