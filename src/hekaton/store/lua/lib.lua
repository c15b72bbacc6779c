local GROUP = 'schedulers'

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function whole(number)
  return string.format('%.0f', number)
end

-- An error reply if `term` is older than the stored one. A newer one is stored: Redis may have come back empty.
local function fence(term_key, term)
  local stored = tonumber(redis.call('GET', term_key) or '0')
  if tonumber(term) < stored then
    return redis.error_reply('STALETERM ' .. whole(stored) .. ' term ' .. term .. ' is over; stand by and acquire')
  end
  if tonumber(term) > stored then
    redis.call('SET', term_key, term)
  end
  return nil
end

local function live(state)
  return state == 'queued' or state == 'placed' or state == 'running'
end

local function enqueue(queue, request_id)
  return redis.call('XADD', queue, '*', 'id', request_id)
end

local function dequeue(queue, entry)
  if entry and entry ~= '' then
    redis.call('XACK', queue, GROUP, entry)
    redis.call('XDEL', queue, entry)
  end
end

local function leave(held_prefix, worker, request_id)
  if worker and worker ~= '' then
    redis.call('HDEL', held_prefix .. worker, request_id)
  end
end

-- request: {key, id, worker, entry}
local function finish(request, queue, held_prefix, state, reason, stats, retention_ms)
  dequeue(queue, request.entry)
  leave(held_prefix, request.worker, request.id)
  redis.call('HSET', request.key, 'state', state, 'reason', reason, 'stats', stats, 'entry', '')
  redis.call('PEXPIRE', request.key, retention_ms)
end

local function groups(queue)
  local reply = redis.pcall('XINFO', 'GROUPS', queue)
  return reply.err and {} or reply
end

local function create_group(queue)
  if #groups(queue) == 0 then
    redis.call('XGROUP', 'CREATE', queue, GROUP, '0', 'MKSTREAM')
  end
end

-- The only group's newest entry that any consumer was given.
local function last_delivered(queue)
  local group = groups(queue)[1]
  for i = 1, #group, 2 do
    if group[i] == 'last-delivered-id' then
      return group[i + 1]
    end
  end
end

-- {entry, request id} of what the group gives `consumer` after `from`; '>' is what nobody was given yet.
local function deliver(queue, consumer, from, count)
  local reply = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', count, 'STREAMS', queue, from)
  local entries = {}
  for _, entry in ipairs(reply and reply[1][2] or {}) do
    if entry[2] then
      entries[#entries + 1] = {entry[1], entry[2][2]}
    end
  end
  return entries
end
