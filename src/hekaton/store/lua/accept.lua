-- KEYS request, queue.
-- ARGV id, record, prompt, produced, produced tokens, epoch, failures, age ms, most queued ('': any), router.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local most = tonumber(ARGV[9])
if most and redis.call('XLEN', KEYS[2]) >= most then
  return redis.error_reply('EXHAUSTED ' .. ARGV[9] .. ' requests wait already; try again later')
end
redis.call('HSET', KEYS[1],
  'record', ARGV[2], 'prompt', ARGV[3], 'produced', ARGV[4], 'produced_tokens', ARGV[5],
  'epoch', ARGV[6], 'failures', ARGV[7], 'accepted_ms', whole(now_ms() - tonumber(ARGV[8])),
  'state', 'queued', 'worker', '', 'router', ARGV[10], 'entry', enqueue(KEYS[2], ARGV[1]))
return 1
