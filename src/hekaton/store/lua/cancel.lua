-- KEYS request, queue. ARGV id, retention ms, held prefix, router ('': anyone's).
-- Returns {{previous state, worker, epoch}}, or {} if unknown or another router's.
local state, epoch, worker, entry, router =
  unpack(redis.call('HMGET', KEYS[1], 'state', 'epoch', 'worker', 'entry', 'router'))
if not state or (ARGV[4] ~= '' and ARGV[4] ~= router) then
  return {}
end
if live(state) then
  local request = {key = KEYS[1], id = ARGV[1], worker = worker, entry = entry}
  finish(request, KEYS[2], ARGV[3], 'cancelled', 'CANCELLED', '', ARGV[2])
end
return {{state, worker, epoch}}
