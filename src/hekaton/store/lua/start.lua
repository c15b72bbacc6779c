-- KEYS request. ARGV epoch. Returns 1 if the request now runs under this epoch.
local state, epoch = unpack(redis.call('HMGET', KEYS[1], 'state', 'epoch'))
if epoch ~= ARGV[1] or (state ~= 'placed' and state ~= 'running') then
  return 0
end
redis.call('HSET', KEYS[1], 'state', 'running')
return 1
