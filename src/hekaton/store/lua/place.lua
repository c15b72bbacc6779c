-- KEYS request, queue, term, held. ARGV id, entry, worker, term. Returns {epoch}, or {} if there is nothing to place.
local refused = fence(KEYS[3], ARGV[4])
if refused then
  return refused
end
dequeue(KEYS[2], ARGV[2])
local state, entry = unpack(redis.call('HMGET', KEYS[1], 'state', 'entry'))
if state ~= 'queued' or entry ~= ARGV[2] then
  return {}
end
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HSET', KEYS[1], 'state', 'placed', 'worker', ARGV[3], 'entry', '')
redis.call('HSET', KEYS[4], ARGV[1], epoch)
return {epoch}
