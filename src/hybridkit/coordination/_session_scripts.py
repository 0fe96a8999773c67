"""The record of a session and its transitions, as Lua scripts: each runs as one atomic step inside Redis.

The record is a hash:

| field     | meaning                                                                     |
|-----------|-----------------------------------------------------------------------------|
| `secret`  | the SHA-256 of the id that the browser has                                  |
| `user`    | the user's id; empty before a login                                         |
| `data`    | JSON                                                                        |
| `version` | the number of times the data was written                                    |
| `write`   | the token of the last write, which tells it from another when it comes twice |
| `label`   | what the user recognises the session by                                     |
| `created` | milliseconds of Redis's clock                                               |
| `seen`    | milliseconds of Redis's clock at the last request                           |
| `ends`    | milliseconds of Redis's clock at which the session ends, used or not        |

Each script has one key, so all of them work on a cluster. Each may run twice with the same arguments.
"""

from typing import Final

from hybridkit.coordination._redis._commands import Script

_PRELUDE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function ms(number)
    return string.format('%.0f', number)
end

local function read(touches, idle_ms)
    local record = redis.call('HMGET', KEYS[1], 'user', 'label', 'created', 'seen', 'ends', 'version', 'data')
    local left = tonumber(record[5]) - now
    if touches then
        redis.call('HSET', KEYS[1], 'seen', ms(now))
        redis.call('PEXPIRE', KEYS[1], ms(math.min(idle_ms, left)))
    end
    return record
end

-- answers nil for a session that is there and belongs to the holder of the secret
local function refusal(secret, idle_ms)
    local record = redis.call('HMGET', KEYS[1], 'secret', 'ends', 'seen')
    if not record[1] then
        return {'GONE'}
    end
    if tonumber(record[2]) <= now or tonumber(record[3]) + idle_ms <= now then
        redis.call('DEL', KEYS[1])
        return {'GONE'}
    end
    if secret and record[1] ~= secret then
        return {'OTHER_SECRET'}
    end
end
"""

CREATE: Final = Script(
    "CREATE_SESSION",
    _PRELUDE
    + """
-- ARGV: secret, user, label, data, idle_ms, lifetime_ms
if redis.call('EXISTS', KEYS[1]) == 0 then
    redis.call('HSET', KEYS[1], 'secret', ARGV[1], 'user', ARGV[2], 'label', ARGV[3], 'data', ARGV[4],
        'version', 1, 'write', '', 'created', ms(now), 'seen', ms(now), 'ends', ms(now + ARGV[6]))
end
return {'OK', unpack(read(true, tonumber(ARGV[5])))}
""",
)

LOAD: Final = Script(
    "LOAD_SESSION",
    _PRELUDE
    + """
-- ARGV: secret, idle_ms; answers: {'OK', …} | {'GONE'} | {'OTHER_SECRET'}
local idle_ms = tonumber(ARGV[2])
return refusal(ARGV[1], idle_ms) or {'OK', unpack(read(true, idle_ms))}
""",
)

SAVE: Final = Script(
    "SAVE_SESSION",
    _PRELUDE
    + """
-- ARGV: secret, idle_ms, version, write, data; answers: {'OK', …} | {'GONE'} | {'OTHER_SECRET'} | {'STALE'}
local idle_ms = tonumber(ARGV[2])
local refused = refusal(ARGV[1], idle_ms)
if refused then
    return refused
end
local record = redis.call('HMGET', KEYS[1], 'version', 'write')
if record[1] == ARGV[3] then
    redis.call('HSET', KEYS[1], 'data', ARGV[5], 'version', tonumber(record[1]) + 1, 'write', ARGV[4])
elseif record[2] ~= ARGV[4] then
    return {'STALE'}
end
return {'OK', unpack(read(true, idle_ms))}
""",
)

ROTATE: Final = Script(
    "ROTATE_SESSION",
    _PRELUDE
    + """
-- ARGV: secret, idle_ms, new secret, user or '', lifetime_ms
-- answers: {'OK', …} | {'GONE'} | {'OTHER_SECRET'} | {'OTHER_USER'}
local idle_ms = tonumber(ARGV[2])
local refused = refusal(ARGV[1], idle_ms)
if refused and not (refused[1] == 'OTHER_SECRET' and redis.call('HGET', KEYS[1], 'secret') == ARGV[3]) then
    return refused
end
if not refused then
    if ARGV[4] ~= '' then
        local user = redis.call('HGET', KEYS[1], 'user')
        if user ~= '' and user ~= ARGV[4] then
            return {'OTHER_USER'}
        end
        redis.call('HSET', KEYS[1], 'user', ARGV[4], 'ends', ms(now + ARGV[5]))
    end
    redis.call('HSET', KEYS[1], 'secret', ARGV[3])
end
return {'OK', unpack(read(true, idle_ms))}
""",
)

END: Final = Script(
    "END_SESSION",
    """
-- ARGV: secret or '', user or ''; only a session that has them is ended
local record = redis.call('HMGET', KEYS[1], 'secret', 'user')
if (ARGV[1] == '' or record[1] == ARGV[1]) and (ARGV[2] == '' or record[2] == ARGV[2]) then
    redis.call('DEL', KEYS[1])
end
return 'OK'
""",
)

DESCRIBE: Final = Script(
    "DESCRIBE_SESSION",
    _PRELUDE
    + """
-- ARGV: idle_ms; answers as LOAD does, without taking the session for used
return refusal(nil, tonumber(ARGV[1])) or {'OK', unpack(read(false))}
""",
)

ENTER: Final = Script(
    "ENTER_SESSION",
    """
-- ARGV: name of the session, lifetime_ms; the key is the sorted set of a user's sessions by their end
-- answers: the number of sessions in it
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', last[2]))
return redis.call('ZCARD', KEYS[1])
""",
)
