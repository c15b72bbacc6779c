-- KEYS request, queue, term. ARGV id, entry, term, reason, retention ms, held prefix. Returns 1 if the request failed.
local refused = fence(KEYS[3], ARGV[3])
if refused then
  return refused
end
dequeue(KEYS[2], ARGV[2])
local state, worker, entry = unpack(redis.call('HMGET', KEYS[1], 'state', 'worker', 'entry'))
if entry ~= ARGV[2] or state == 'finished' or state == 'cancelled' or state == 'failed' then
  return 0
end
local request = {key = KEYS[1], id = ARGV[1], worker = worker, entry = ''}
finish(request, KEYS[2], ARGV[6], 'failed', ARGV[4], '', ARGV[5])
return 1
