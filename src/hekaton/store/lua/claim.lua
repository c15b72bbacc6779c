-- KEYS queue, term. ARGV consumer, term. Returns {entries, newest entry ever delivered}: all that is pending with anyone.
local refused = fence(KEYS[2], ARGV[2])
if refused then
  return refused
end
create_group(KEYS[1])
local entries, cursor = {}, '0-0'
repeat
  local reply = redis.call('XAUTOCLAIM', KEYS[1], GROUP, ARGV[1], 0, cursor, 'COUNT', 1000)
  cursor = reply[1]
  for _, entry in ipairs(reply[2]) do
    entries[#entries + 1] = {entry[1], entry[2][2]}
  end
until cursor == '0-0'
return {entries, last_delivered(KEYS[1])}
