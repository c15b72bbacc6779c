-- KEYS request, queue, term. ARGV id, epoch, term, lost (0 or 1), most failures, retention ms, held prefix.
-- Returns {the state that now holds}, or {} if the epoch is stale or the request unknown.
local refused = fence(KEYS[3], ARGV[3])
if refused then
  return refused
end
local state, epoch, worker = unpack(redis.call('HMGET', KEYS[1], 'state', 'epoch', 'worker'))
if not state or epoch ~= ARGV[2] then
  return {}
end
if state ~= 'placed' and state ~= 'running' then
  return {state}
end
local failures = redis.call('HINCRBY', KEYS[1], 'failures', ARGV[4])
if ARGV[4] == '1' and failures >= tonumber(ARGV[5]) then
  local request = {key = KEYS[1], id = ARGV[1], worker = worker, entry = ''}
  finish(request, KEYS[2], ARGV[7], 'failed', 'WORKER_LOST', '', ARGV[6])
  return {'failed'}
end
leave(ARGV[7], worker, ARGV[1])
redis.call('HSET', KEYS[1], 'state', 'queued', 'worker', '', 'entry', enqueue(KEYS[2], ARGV[1]))
return {'queued'}
