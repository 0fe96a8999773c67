"""The record of a job in Redis and its transitions, as Lua scripts: each runs as one atomic step.

A record is a hash. All times are milliseconds of Redis's clock, so the clocks of the replicas don't matter.

| field        | meaning                                                                                    |
|--------------|--------------------------------------------------------------------------------------------|
| `cursor`     | the last slot that was begun or skipped: no slot up to it is begun again                    |
| `slot`       | of the run that was begun and has not ended; absent otherwise                              |
| `manual`     | 1 where that run was asked for by a person, and is no slot of the schedule                 |
| `token`      | the holder of the run, or the last one                                                     |
| `lease_end`  | when another replica takes the run over; 0 when its holder has given it back               |
| `begun`      | when the run was begun for the first time                                                  |
| `fence`      | counts the holders; greater than that of every earlier one                                 |
| `takeovers`  | how many holders of the run have died                                                      |
| `requested`  | the time of a request to run now that nobody has taken yet                                 |
| `request_…`  | time and token of the last request                                                         |
| `last_…`     | slot, begin, end, outcome and error of the last run that has ended                         |

A slot is begun by moving the cursor to it, so it can't be begun twice, whatever the clock does. A run whose holder has
died, or has given it back, is taken over before any other slot is begun. Every script may run twice with the same
arguments.
"""

from typing import Final

from hybridkit.coordination._redis._commands import Script

_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

FIELDS: Final = (
    "cursor",
    "slot",
    "manual",
    "token",
    "lease_end",
    "requested",
    "last_slot",
    "last_begun",
    "last_ended",
    "last_outcome",
    "last_error",
)
"""The fields that `LOOK` returns after the time."""

LOOK: Final = Script(
    "JOB_LOOK",
    _NOW
    + f"""
-- answers: {{now, the fields}}
local found = redis.call('HMGET', KEYS[1], {", ".join(f"'{name}'" for name in FIELDS)})
table.insert(found, 1, string.format('%.0f', now))
return found
""",
)

SKIP: Final = Script(
    "JOB_SKIP",
    """
-- ARGV: cursor as seen ('' for none), new cursor, kept_ms
-- answers: 1 | 0 (another replica was faster)
local cursor = redis.call('HGET', KEYS[1], 'cursor') or ''
if cursor ~= ARGV[1] then
    return cursor == ARGV[2] and 1 or 0
end
redis.call('HSET', KEYS[1], 'cursor', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""",
)

BEGIN: Final = Script(
    "JOB_BEGIN",
    _NOW
    + """
-- ARGV: token, slot, manual (0 or 1), cursor as seen, lease_ms, kept_ms, max_takeovers
-- answers: {'BEGUN' | 'TAKEN_OVER', fence} | {'BUSY'} | {'CHANGED'} | {'GIVEN_UP'}
local record = redis.call('HMGET', KEYS[1], 'slot', 'token', 'lease_end', 'cursor', 'fence', 'takeovers', 'requested')
local slot, lease_end = record[1], tonumber(record[3] or 0)
local fence, takeovers = tonumber(record[5] or 0), tonumber(record[6] or 0)
local how = 'BEGUN'
if slot and slot == ARGV[2] and record[2] == ARGV[1] then
    -- Asked for the second time: the reply was lost.
    redis.call('HSET', KEYS[1], 'lease_end', string.format('%.0f', now + ARGV[5]))
    return {takeovers > 0 and 'TAKEN_OVER' or 'BEGUN', fence}
elseif slot then
    if lease_end > now then
        return {'BUSY'}
    elseif slot ~= ARGV[2] then
        return {'CHANGED'}
    end
    if lease_end > 0 then
        takeovers = takeovers + 1
    end
    if takeovers > tonumber(ARGV[7]) then
        redis.call('HSET', KEYS[1], 'last_slot', slot, 'last_begun', redis.call('HGET', KEYS[1], 'begun') or now,
            'last_ended', string.format('%.0f', now), 'last_outcome', 'given_up', 'last_error', '')
        redis.call('HDEL', KEYS[1], 'slot', 'manual', 'lease_end', 'takeovers')
        return {'GIVEN_UP'}
    end
    how = 'TAKEN_OVER'
elseif ARGV[3] == '1' then
    redis.call('HDEL', KEYS[1], 'requested')
    if record[7] ~= ARGV[2] or now - tonumber(ARGV[2]) > 3600000 then
        return {'CHANGED'} -- nobody waits any more for what was asked for an hour ago
    end
    redis.call('HSET', KEYS[1], 'manual', 1)
elseif (record[4] or '') ~= ARGV[4] or tonumber(ARGV[2]) > now then
    return {'CHANGED'}
else
    redis.call('HSET', KEYS[1], 'cursor', ARGV[2])
end
-- By the clock it goes on to grow even where Redis has lost the last one.
fence = math.max(fence + 1, time[1] * 1000000 + time[2])
if not slot then
    takeovers = 0
    redis.call('HSET', KEYS[1], 'begun', string.format('%.0f', now))
end
redis.call('HSET', KEYS[1], 'slot', ARGV[2], 'token', ARGV[1], 'takeovers', takeovers,
    'lease_end', string.format('%.0f', now + ARGV[5]), 'fence', string.format('%.0f', fence))
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return {how, fence}
""",
)

RENEW: Final = Script(
    "JOB_RENEW",
    _NOW
    + """
-- ARGV: token, slot, lease_ms, kept_ms, cursor, manual
-- answers: 1 | 0 (another replica has it)
local record = redis.call('HMGET', KEYS[1], 'slot', 'token', 'cursor')
if not record[1] and not record[2] and not record[3] then
    -- Redis has lost the record: nobody has begun the slot since.
    redis.call('HSET', KEYS[1], 'cursor', ARGV[5], 'slot', ARGV[2], 'token', ARGV[1])
    if ARGV[6] == '1' then
        redis.call('HSET', KEYS[1], 'manual', 1)
    end
elseif record[1] ~= ARGV[2] or record[2] ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[1], 'lease_end', string.format('%.0f', now + ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
""",
)

FINISH: Final = Script(
    "JOB_FINISH",
    _NOW
    + """
-- ARGV: token, slot, outcome, error, kept_ms, cursor at the begin, cursor from now on
-- answers: 1 | 0 (another replica has it, or had it)
local record = redis.call('HMGET', KEYS[1], 'slot', 'token', 'last_slot', 'begun', 'cursor')
if record[2] == ARGV[1] and not record[1] and record[3] == ARGV[2] then
    return 1
elseif record[2] and (record[2] ~= ARGV[1] or record[1] ~= ARGV[2]) then
    return 0
end
if not record[5] then
    redis.call('HSET', KEYS[1], 'cursor', ARGV[6])
end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'last_slot', ARGV[2],
    'last_begun', record[4] or string.format('%.0f', now), 'last_ended', string.format('%.0f', now),
    'last_outcome', ARGV[3], 'last_error', ARGV[4])
redis.call('HDEL', KEYS[1], 'slot', 'manual', 'lease_end', 'takeovers', 'begun')
if tonumber(ARGV[7]) > tonumber(record[5] or 0) then
    redis.call('HSET', KEYS[1], 'cursor', ARGV[7])
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
""",
)

GIVE_BACK: Final = Script(
    "JOB_GIVE_BACK",
    """
-- ARGV: token, slot
-- answers: 1 | 0 (another replica has it)
local record = redis.call('HMGET', KEYS[1], 'slot', 'token')
if record[1] ~= ARGV[2] or record[2] ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[1], 'lease_end', 0)
return 1
""",
)

REQUEST: Final = Script(
    "JOB_REQUEST",
    _NOW
    + """
-- ARGV: token, kept_ms
-- answers: the time of the request, as text: of the one that waits already, if there is one
local record = redis.call('HMGET', KEYS[1], 'requested', 'request_token', 'request_time')
if record[2] == ARGV[1] then
    return record[3]
elseif record[1] then
    return record[1]
end
local requested = string.format('%.0f', now)
redis.call('HSET', KEYS[1], 'requested', requested, 'request_token', ARGV[1], 'request_time', requested)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return requested
""",
)

WITHDRAW: Final = Script(
    "JOB_WITHDRAW",
    """
-- ARGV: the time of the request
-- answers: 1 (nobody had taken it) | 0
if redis.call('HGET', KEYS[1], 'requested') ~= ARGV[1] then
    return 0
end
return redis.call('HDEL', KEYS[1], 'requested')
""",
)
