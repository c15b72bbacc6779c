-- KEYS request, queue. ARGV id, retention ms, held prefix, router ('': anyone's),
-- prefix of the channels where routers hear of it, router that knows it already.
-- Returns {{previous state, worker, epoch}}, or {} if unknown or another router's.
local state, epoch, worker, entry, router =
  unpack(redis.call('HMGET', KEYS[1], 'state', 'epoch', 'worker', 'entry', 'router'))
if not state or (ARGV[4] ~= '' and ARGV[4] ~= router) then
  return {}
end
if live(state) then
  local request = {key = KEYS[1], id = ARGV[1], worker = worker, entry = entry}
  finish(request, KEYS[2], ARGV[3], 'cancelled', 'CANCELLED', '', ARGV[2])
  if router ~= ARGV[6] then
    redis.call('PUBLISH', ARGV[5] .. router, ARGV[1])
  end
end
return {{state, worker, epoch}}
