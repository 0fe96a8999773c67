"""One entry of a cache, and its transitions as Lua scripts: each runs as one atomic step inside Redis.

The entry is a hash. An invalidation deletes all of it, so that a loader whose claim was deleted can't store.

| field     | meaning                                                                               |
|-----------|---------------------------------------------------------------------------------------|
| `value`   | JSON; absent while the first loader runs                                              |
| `fresh`   | milliseconds of Redis's clock until which the value is fresh; afterwards it is stale  |
| `claim`   | the token of the last loader                                                          |
| `until`   | milliseconds of Redis's clock until which nobody else may load                        |
| `epoch`   | the cache's epoch in which the load of the value began; absent without tags           |
| `tags`    | a JSON array of the value's tags; absent without tags                                 |

The token of the claim is the entry's generation: it is new for each loader, and gone after an invalidation, an
eviction or a flush. A counter would begin anew after those, and could match a loader from before.

Tags have a record each, and a cache has one clock for them: an entry is valid if its epoch is not before that of any of
its tags. The three keys may be on different nodes of a cluster, so each script touches one of them.
"""

from typing import Final

from hybridkit.coordination._redis._commands import Script

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

READ: Final = Script(
    "CACHE_READ",
    """
-- ARGV: token, claim_ms
-- replies: value | {'TAGGED', value, epoch, tags}
--          | {how, value or nil, token of the claim, milliseconds left of it, epoch or nil, tags or nil}
--            where how is 'GRANTED' or 'TAKEN_OVER' (the claim is the caller's) or 'HELD' (it is another's)
"""
    + _NOW
    + """
local entry = redis.call('HMGET', KEYS[1], 'value', 'fresh', 'claim', 'until', 'epoch', 'tags')
local value, claim, left = entry[1], entry[3], tonumber(entry[4] or 0) - now
if value and tonumber(entry[2]) > now then
    if entry[6] then
        return {'TAGGED', value, entry[5], entry[6]}
    end
    return value
end
if left > 0 and claim ~= ARGV[1] then
    return {'HELD', value, claim, left, entry[5], entry[6]}
end
local how = 'GRANTED'
if not value and claim and claim ~= ARGV[1] then
    how = 'TAKEN_OVER'
end
redis.call('HSET', KEYS[1], 'claim', ARGV[1], 'until', string.format('%.0f', now + ARGV[2]))
if not value then
    redis.call('PEXPIRE', KEYS[1], 2 * ARGV[2]) -- longer than the claim, to tell the next loader of a dead one
end
return {how, value, ARGV[1], tonumber(ARGV[2]), entry[5], entry[6]}
""",
)

STORE: Final = Script(
    "CACHE_STORE",
    """
-- ARGV: token, fresh_ms, kept_ms, value (empty: the stored one is still right), epoch, tags (both empty without tags)
-- replies: 1 | 0 (the claim is gone, and with it the right to store)
"""
    + _NOW
    + """
if redis.call('HGET', KEYS[1], 'claim') ~= ARGV[1] then
    return 0
end
if ARGV[4] ~= '' then
    redis.call('HSET', KEYS[1], 'value', ARGV[4])
elseif redis.call('HEXISTS', KEYS[1], 'value') == 0 then
    return 0 -- it ran out meanwhile
end
-- The token stays: the script may run twice, and its second run has to be the same loader's.
redis.call('HSET', KEYS[1], 'fresh', string.format('%.0f', now + ARGV[2]), 'until', 0)
if ARGV[6] == '' then
    redis.call('HDEL', KEYS[1], 'epoch', 'tags')
else
    redis.call('HSET', KEYS[1], 'epoch', ARGV[5], 'tags', ARGV[6])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""",
)

RENEW: Final = Script(
    "CACHE_RENEW",
    """
-- ARGV: token, claim_ms
-- replies: 1 | 0 (the claim is gone)
"""
    + _NOW
    + """
local entry = redis.call('HMGET', KEYS[1], 'claim', 'value')
if entry[1] ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[1], 'until', string.format('%.0f', now + ARGV[2]))
if not entry[2] then
    redis.call('PEXPIRE', KEYS[1], 2 * ARGV[2])
end
return 1
""",
)

RELEASE: Final = Script(
    "CACHE_RELEASE",
    """
-- ARGV: token, pause_ms (until the next loader may try while there is a stale value; -1: there is no value any more)
-- replies: 1 | 0 (the claim is gone)
"""
    + _NOW
    + """
local entry = redis.call('HMGET', KEYS[1], 'claim', 'value')
if entry[1] ~= ARGV[1] then
    return 0
end
if entry[2] and ARGV[2] ~= '-1' then
    redis.call('HSET', KEYS[1], 'claim', '', 'until', string.format('%.0f', now + ARGV[2]))
else
    redis.call('DEL', KEYS[1])
end
return 1
""",
)

DROP: Final = Script(
    "CACHE_DROP",
    """
-- ARGV: value, epoch (empty without tags): those of an entry that can't be used
-- replies: 1 | 0 (there is another one by now)
local entry = redis.call('HMGET', KEYS[1], 'value', 'epoch')
if entry[1] ~= ARGV[1] or (entry[2] or '') ~= ARGV[2] then
    return 0
end
return redis.call('DEL', KEYS[1])
""",
)

ADVANCE: Final = Script(
    "CACHE_ADVANCE",
    """
-- KEYS: the clock of a cache; ARGV: kept_ms
-- replies: the next epoch, as text. It is the time in microseconds, unless that is not after the last one: the clocks
-- of two nodes differ, and a restart may lose the key.
local time = redis.call('TIME')
local epoch = math.max(time[1] * 1000000 + time[2], tonumber(redis.call('GET', KEYS[1]) or 0) + 1)
local text = string.format('%.0f', epoch)
redis.call('SET', KEYS[1], text, 'PX', ARGV[1])
return text
""",
)

TAG: Final = Script(
    "CACHE_TAG",
    """
-- KEYS: the record of a tag; ARGV: epoch, kept_ms, 'INVALIDATE' or 'USE'
-- replies: the epoch before which entries with this tag are invalid, as text
local known = redis.call('GET', KEYS[1])
if not known or (ARGV[3] == 'INVALIDATE' and tonumber(known) < tonumber(ARGV[1])) then
    known = ARGV[1]
end
redis.call('SET', KEYS[1], known, 'PX', ARGV[2])
return known
""",
)
