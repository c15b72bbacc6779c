-- KEYS requests. ARGV epoch, produced, produced tokens for each. Returns the places (from 1) of unknown requests.
local unknown = {}
for place, key in ipairs(KEYS) do
  local state, epoch = unpack(redis.call('HMGET', key, 'state', 'epoch'))
  if not state then
    unknown[#unknown + 1] = place
  elseif live(state) and epoch == ARGV[3 * place - 2] then
    redis.call('HSET', key, 'produced', ARGV[3 * place - 1], 'produced_tokens', ARGV[3 * place])
  end
end
return unknown
