"""The record and its three transitions, as Lua scripts: each runs as one atomic step inside Redis.

The record is a hash:

| field         | meaning                                                                              |
|---------------|--------------------------------------------------------------------------------------|
| `state`       | `P` in progress, `C` completed, `F` failed for good, `R` released for the next try   |
| `token`       | the last holder's                                                                    |
| `fingerprint` | of the payload; absent when nothing was begun                                        |
| `lease_end`   | milliseconds of Redis's clock; the holders' clocks never matter                      |
| `first`       | the token of the first holder                                                        |
| `fence`       | acquisitions so far                                                                  |
| `takeovers`   | acquisitions after a lease ran out so far                                            |
| `how`         | what `BEGIN` told the holder, for the case that it has to be told again              |
| `changed`     | milliseconds of Redis's clock at the last transition, for people                     |
| `result`      | JSON, absent when it was too large to keep                                           |

The key's time to live is the retention, not the lease, so takeovers and fingerprint outlast a crash. Every script may
run twice with the same arguments: a reply that gets lost on its way can't lock its owner out. A token that has given
its key back never takes it again, and what it gave back is remembered for a minute even where there was no record yet:
a question that arrives late leaves no claim that nobody holds.
"""

from typing import Final

from hybridkit.coordination._redis._commands import Script

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

_BEGIN = (
    """
-- ARGV: token, fingerprint, lease_ms, retention_ms, max_takeovers
-- answers: {'ACQUIRED' | 'TAKEN_OVER', fence, takeovers} | {'IN_PROGRESS', ms} | {'COMPLETED' | 'FAILED', result?}
--          | {'MISMATCH'} | {'EXHAUSTED'}
"""
    + _NOW
    + """
local record = redis.call('HMGET', KEYS[1], 'state', 'token', 'fingerprint', 'lease_end', 'fence', 'takeovers', 'how')
local state, owner = record[1], record[2]
local fence, takeovers = tonumber(record[5] or 0), tonumber(record[6] or 0)

local function take(how)
    redis.call('HSET', KEYS[1], 'state', 'P', 'token', ARGV[1], 'fingerprint', ARGV[2],
        'lease_end', string.format('%.0f', now + ARGV[3]), 'fence', fence, 'takeovers', takeovers,
        'how', how, 'changed', string.format('%.0f', now))
    if not record[3] then
        redis.call('HSET', KEYS[1], 'first', ARGV[1])
    end
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    return {how, fence, takeovers}
end

if not state then
    fence = 1
    return take('ACQUIRED')
end
if record[3] and record[3] ~= ARGV[2] then
    return {'MISMATCH'}
end
if state == 'C' or state == 'F' then
    return {state == 'C' and 'COMPLETED' or 'FAILED', redis.call('HGET', KEYS[1], 'result')}
end
if state == 'P' and owner == ARGV[1] then
    return take(record[7])
end
if state == 'R' then
    if owner == ARGV[1] then
        return {'IN_PROGRESS', 0} -- this question was overtaken by the answer to it: nobody waits for the key
    end
    fence = fence + 1
    return take('ACQUIRED')
end
local left = tonumber(record[4]) - now
if left > 0 then
    return {'IN_PROGRESS', left}
end
if takeovers >= tonumber(ARGV[5]) then
    return {'EXHAUSTED'}
end
fence = fence + 1
takeovers = takeovers + 1
return take('TAKEN_OVER')
"""
)

_FINISH = (
    """
-- ARGV: token, outcome (C, F, R or X), retention_ms, fingerprint, fence[, result]
-- answers: 'OK' | 'ALREADY' | 'LOST' | 'GONE' | 'RECREATED'
"""
    + _NOW
    + """
local record = redis.call('HMGET', KEYS[1], 'state', 'token', 'fence', 'first')
local state, owner = record[1], record[2]
local outcome, answer = ARGV[2], 'OK'

local function forget(answer)
    redis.call('HSET', KEYS[1], 'state', 'R', 'token', ARGV[1], 'fence', record[3] or 0,
        'changed', string.format('%.0f', now))
    redis.call('HDEL', KEYS[1], 'fingerprint')
    redis.call('PEXPIRE', KEYS[1], 60000)
    return answer
end

if not state then
    if outcome == 'R' or outcome == 'X' then
        return forget('GONE')
    end
    answer = 'RECREATED'
    redis.call('HSET', KEYS[1], 'token', ARGV[1], 'fingerprint', ARGV[4], 'fence', ARGV[5], 'takeovers', 0)
elseif owner ~= ARGV[1] then
    return 'LOST'
elseif state == 'C' or state == 'F' or (state == 'R' and outcome ~= 'C' and outcome ~= 'F') then
    return 'ALREADY'
elseif outcome == 'X' then
    if record[4] == ARGV[1] then
        return forget('OK')
    end
    outcome = 'R' -- an earlier holder has begun it: what is known of that stays known
end
redis.call('HSET', KEYS[1], 'state', outcome, 'changed', string.format('%.0f', now))
if ARGV[6] then
    redis.call('HSET', KEYS[1], 'result', ARGV[6])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return answer
"""
)

_RENEW = (
    """
-- ARGV: token, lease_ms, retention_ms, fingerprint, fence
-- answers: 'OK' | 'LOST' | 'RECREATED' (Redis had lost the record: whoever works on it holds it)
"""
    + _NOW
    + """
local record = redis.call('HMGET', KEYS[1], 'state', 'token')
local answer = 'OK'

if not record[1] then
    answer = 'RECREATED'
    redis.call('HSET', KEYS[1], 'state', 'P', 'token', ARGV[1], 'fingerprint', ARGV[4], 'fence', ARGV[5],
        'takeovers', 0, 'how', 'ACQUIRED', 'changed', string.format('%.0f', now))
elseif record[1] ~= 'P' or record[2] ~= ARGV[1] then
    return 'LOST'
end
redis.call('HSET', KEYS[1], 'lease_end', string.format('%.0f', now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return answer
"""
)


BEGIN: Final = Script("BEGIN", _BEGIN)
FINISH: Final = Script("FINISH", _FINISH)
RENEW: Final = Script("RENEW", _RENEW)
