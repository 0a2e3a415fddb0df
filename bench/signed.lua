-- wrk sends the requests of a file, one a line, one after the other, and says what came of it as one line of JSON.
-- They are signed before the round starts; nothing is computed while it runs. Without a file it sends the address
-- that wrk was given, again and again, which costs wrk less: for a peer that is faster than that.
-- It reads every answer, and counts those that are no success.

local requests = {}
local count = 0
local next_one = 0

refused = 0
local the_thread

function setup(thread)
  the_thread = thread
end

local function read_answer(status, _, body)
  if status ~= 200 or not string.find(body, '"code":200', 1, true) then refused = refused + 1 end
end

function init(arguments)
  if not arguments[1] then
    request = nil
    return
  end
  response = read_answer
  local file = assert(io.open(arguments[1], "r"))
  for line in file:lines() do
    count = count + 1
    requests[count] = "GET " .. line .. " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
  end
  file:close()
end

function request()
  next_one = next_one + 1
  if next_one > count then next_one = 1 end
  return requests[next_one]
end

function done(summary, latency, _)
  local errors = summary.errors
  print(string.format(
    'RESULT {"requests":%d,"microseconds":%d,"bytes":%d,"errors":%d,"refused":%d,"p50_us":%d,"p99_us":%d}',
    summary.requests, summary.duration, summary.bytes,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    the_thread:get("refused"), latency:percentile(50), latency:percentile(99)))
end
