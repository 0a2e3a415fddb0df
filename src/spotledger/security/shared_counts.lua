-- Count requests against the limits that all nodes share, and remember their signatures (rules R12 and R20).
--
-- One call takes what many requests ask for, in order, and does it atomically. ARGV[1] is msgpack:
--   { now_ms, replay_ms, limits, asks }
--     now_ms     0 for the clock of this server: the nodes' own clocks differ by more than a window may
--     replay_ms  how long a nonce can be in the window: past and future together
--     limits     each { name, limit, window_ms, lock_ms, lock's name }; the first is that of addresses
--     asks       each { address to count, signature or "", strict, customer or "", number of the account's limit,
--                address to bind the signature to }
-- The answer is msgpack, five numbers for each ask: what is left for the address and the ms until its window, or its
-- lock, ends; 1 if the signature passes; the same two for the account. What is left is below zero where the request
-- is refused: the ms to wait. Where one refuses, those after it are not asked.
--
-- Every key ends by itself. The times in the values decide; the ends of the keys only tidy up.

local function number(value)
  return string.format('%.0f', value)
end

local function hit(limit, who, now)
  local name, most, window_ms, lock_ms = limit[1], limit[2], limit[3], limit[4]
  local lock_key = 'spotledger:lock:' .. limit[5] .. ':' .. who
  local lock = redis.call('GET', lock_key)
  if lock then
    local remaining = tonumber(string.match(lock, '^(%d+):')) - now
    if remaining > 0 and remaining <= lock_ms then
      return -remaining, remaining
    end
    redis.call('DEL', lock_key)
  end
  if most == 0 then
    return 0, 0
  end
  local key = 'spotledger:window:' .. name .. ':' .. who
  local kept = redis.call('GET', key)
  if kept then
    local begun, count = string.match(kept, '^(%d+):(%d+)$')
    local age = now - tonumber(begun)
    count = tonumber(count) + 1
    if age >= 0 and age < window_ms then
      if count <= most then
        redis.call('SET', key, begun .. ':' .. number(count), 'PX', number(window_ms - age))
        return most - count, window_ms - age
      end
      if lock_ms > 0 then
        redis.call('SET', lock_key, number(now + lock_ms) .. ':' .. name, 'PX', number(lock_ms))
        redis.call('DEL', key)
        return -lock_ms, lock_ms
      end
      return age - window_ms, window_ms - age
    end
  end
  redis.call('SET', key, number(now) .. ':1', 'PX', number(window_ms))
  return most - 1, window_ms
end

local function passes(signature, address, strict, now, replay_ms)
  local key = 'spotledger:used:' .. signature
  local kept = redis.call('GET', key)
  if kept then
    local begun, bound = string.match(kept, '^(%d+):(.*)$')
    if now - tonumber(begun) < replay_ms then
      return bound == address and not strict
    end
  end
  redis.call('SET', key, number(now) .. ':' .. address, 'PX', number(replay_ms))
  return true
end

local told = cmsgpack.unpack(ARGV[1])
local now, replay_ms, limits = told[1], told[2], told[3]
if now == 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local answers = {}
for _, ask in ipairs(told[4]) do
  local address, signature, strict, customer, which, sender = ask[1], ask[2], ask[3], ask[4], ask[5], ask[6]
  local address_left, address_reset = hit(limits[1], address, now)
  local passed, left, reset = 1, 0, 0
  if address_left >= 0 then
    if signature ~= '' and not passes(signature, sender, strict, now, replay_ms) then
      passed = 0
    elseif customer ~= '' then
      left, reset = hit(limits[which + 1], customer, now)
    end
  end
  for _, value in ipairs({ address_left, address_reset, passed, left, reset }) do
    answers[#answers + 1] = value
  end
end
return cmsgpack.pack(answers)
