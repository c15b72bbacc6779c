-- KEYS queue, term. ARGV consumer, term, last entry seen, count. Returns {entries, newest entry ever delivered}.
local refused = fence(KEYS[2], ARGV[2])
if refused then
  return refused
end
create_group(KEYS[1])
-- What was delivered to this consumer and never reached it, then what is new.
local entries = deliver(KEYS[1], ARGV[1], ARGV[3], tonumber(ARGV[4]))
local room = tonumber(ARGV[4]) - #entries
if room > 0 then
  for _, entry in ipairs(deliver(KEYS[1], ARGV[1], '>', room)) do
    entries[#entries + 1] = entry
  end
end
return {entries, last_delivered(KEYS[1])}
