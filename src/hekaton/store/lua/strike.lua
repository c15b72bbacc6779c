-- KEYS request. ARGV epoch. Returns how many engines have died with the request, 0 if the epoch is over.
local state, epoch = unpack(redis.call('HMGET', KEYS[1], 'state', 'epoch'))
if not live(state) or epoch ~= ARGV[1] then
  return 0
end
return redis.call('HINCRBY', KEYS[1], 'strikes', 1)
