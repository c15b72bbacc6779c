-- KEYS members. ARGV info prefix. Returns {{id, info}} of the live ones and forgets the others.
local alive = {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local info = redis.call('GET', ARGV[1] .. id)
  if info then
    alive[#alive + 1] = {id, info}
  else
    redis.call('SREM', KEYS[1], id)
  end
end
return alive
