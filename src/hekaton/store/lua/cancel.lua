-- KEYS request, queue. ARGV id, retention ms, held prefix. Returns {{previous state, worker, epoch}}, or {} if unknown.
local state, epoch, worker, entry = unpack(redis.call('HMGET', KEYS[1], 'state', 'epoch', 'worker', 'entry'))
if not state then
  return {}
end
if live(state) then
  local request = {key = KEYS[1], id = ARGV[1], worker = worker, entry = entry}
  finish(request, KEYS[2], ARGV[3], 'cancelled', 'CANCELLED', '', ARGV[2])
end
return {{state, worker, epoch}}
