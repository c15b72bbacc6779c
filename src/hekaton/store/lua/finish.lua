-- KEYS request, queue. ARGV id, epoch, state, reason, stats, retention ms, held prefix, produced, produced tokens.
-- Returns {the state that now holds}, or {} if the request is unknown.
local state, epoch, worker, entry = unpack(redis.call('HMGET', KEYS[1], 'state', 'epoch', 'worker', 'entry'))
if not state then
  return {}
end
if not live(state) or epoch ~= ARGV[2] then
  return {state}
end
local request = {key = KEYS[1], id = ARGV[1], worker = worker, entry = entry}
finish(request, KEYS[2], ARGV[7], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
if ARGV[9] ~= '' then
  redis.call('HSET', KEYS[1], 'produced', ARGV[8], 'produced_tokens', ARGV[9])
end
return {ARGV[3]}
