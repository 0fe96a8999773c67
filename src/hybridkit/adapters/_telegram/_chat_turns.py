"""Turns of a chat: one update of a chat is handled at a time, over all replicas of a bot.

A turn is a lease in Redis. Those who wait for it stand there too, each with its update's id, so that of those who wait
the oldest update comes first. Whoever dies loses its turn with the lease, and its place after some seconds.
"""

import asyncio
import math
import random
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final

from hybridkit._tasks import is_set_within
from hybridkit.coordination import Redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._lease import LeaseKeeper
from hybridkit.coordination._redis._commands import Script
from hybridkit.errors import LockLostError
from hybridkit.observability import get_logger, metrics

LEASE_SECONDS: Final = 30.0
"""How long a chat waits for a replica that has died: as long as the update that it had waits for its claim."""

PLACE_SECONDS: Final = 3.0
"""How long a waiting update that asks no more keeps later ones behind it."""

_FIRST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.25
_RECORD_MS: Final = 60_000
"""How long a record is kept after its lease: a question that arrives twice, the second time late, is known then."""

_log = get_logger("hybridkit.bot")

# A chat is a hash: `token` of the last holder; `lease_end` in milliseconds of Redis's clock, absent when nobody holds
# it; and a field for each who waits, `w:TOKEN`, with the end of its place, its arrival in microseconds
# and its update's id.
_TAKE: Final = Script(
    "TAKE_TURN",
    """
-- ARGV: token, update id or '', lease_ms, place_ms, kept_ms
-- answers: 1 (taken) | 2 (taken from a holder whose lease had run out) | 0 (another one's turn)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local mine, order = 'w:' .. ARGV[1], tonumber(ARGV[2])
local token, lease_end, arrival
local waiting = {}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'token' then
        token = value
    elseif name == 'lease_end' then
        lease_end = tonumber(value)
    else
        local until_ms, arrived, id = string.match(value, '^(%d+):(%d+):(%d*)$')
        if name == mine then
            arrival = tonumber(arrived)
        elseif tonumber(until_ms) <= now then
            redis.call('HDEL', KEYS[1], name)
        else
            waiting[#waiting + 1] = {tonumber(arrived), tonumber(id)}
        end
    end
end
if token == ARGV[1] and not lease_end then
    return 0 -- this question was overtaken by the end of its turn
end
local is_mine = token == ARGV[1]
arrival = arrival or time[1] * 1000000 + time[2]
local is_next = is_mine or not lease_end or lease_end <= now
for _, other in ipairs(waiting) do
    local is_before
    if order and other[2] then
        is_before = other[2] < order
    elseif not order and not other[2] then
        is_before = other[1] < arrival
    end
    is_next = is_mine or (is_next and not is_before)
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
if not is_next then
    redis.call('HSET', KEYS[1], mine, string.format('%.0f:%.0f:%s', now + ARGV[4], arrival, ARGV[2]))
    return 0
end
redis.call('HDEL', KEYS[1], mine)
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'lease_end', string.format('%.0f', now + ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return lease_end and not is_mine and 2 or 1
""",
)

_RENEW: Final = Script(
    "RENEW_TURN",
    """
-- ARGV: token, lease_ms, kept_ms; answers: 1 | 0 (another holder has it)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local turn = redis.call('HMGET', KEYS[1], 'token', 'lease_end')
if turn[1] and not (turn[1] == ARGV[1] and turn[2]) then
    return 0
end
-- Without a record nobody has taken it since Redis lost it.
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'lease_end', string.format('%.0f', now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""",
)

_LEAVE: Final = Script(
    "LEAVE_TURN",
    """
-- ARGV: token; gives up the turn and the place
redis.call('HDEL', KEYS[1], 'w:' .. ARGV[1])
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then
    redis.call('HDEL', KEYS[1], 'lease_end')
end
return 1
""",
)


class _Turn:
    """A turn that is held by the current work; cleared when it ends, as tasks may outlive it."""

    def __init__(self, key: str) -> None:
        self.key: str | None = key


_current: ContextVar[_Turn | None] = ContextVar("hybridkit_chat_turn", default=None)


class ChatTurns:
    """The turns of a bot's chats.

    Args:
        redis: a client from `connect_redis`.
        lease_seconds: how long a replica that has died keeps a chat.
    """

    def __init__(self, redis: Redis, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._redis = multiplexer_of(redis)
        self._lease_seconds = lease_seconds
        self._lease_ms = int(lease_seconds * 1000)

    def __repr__(self) -> str:
        return f"ChatTurns(lease_seconds={self._lease_seconds})"

    @asynccontextmanager
    async def hold(
        self,
        bot_id: int,
        chat: object,
        *,
        update_id: int | None = None,
        stopping: asyncio.Event | None = None,
        wait_seconds: float = math.inf,
    ) -> AsyncGenerator[bool]:
        """Wait for the turn of a chat, and run the block in it; inside of another block for the chat, at once.

        Of those who wait, the one with the lowest update id comes first; those without an id in the order of their
        arrival.

        Args:
            bot_id: the bot.
            chat: the chat's id.
            update_id: the id of the update that is to be handled; None for an unknown one.
            stopping: ends the waiting.
            wait_seconds: how long to wait.

        Yields:
            Whether the turn is held; False when the stop or the end of that time came first.

        Raises:
            LockLostError: another replica has the chat, or Redis did not answer for nearly a lease; the block was
                cancelled.
            UnavailableError: Redis does not answer, so nobody can know whose turn it is.
        """
        key = f"hk:bot:{bot_id}:chat:{chat}"
        outer = _current.get()
        if outer is not None and outer.key == key:
            yield True
            return
        token = secrets.token_hex(12)
        try:
            asked_at = await self._take(key, token, update_id, stopping or asyncio.Event(), wait_seconds)
            if asked_at is None:
                yield False
                return
            turn = _Turn(key)
            reset = _current.set(turn)
            try:
                async with LeaseKeeper(
                    lambda: self._renew(key, token),
                    lease_seconds=self._lease_seconds,
                    may_outlive=False,
                    error_of_loss=lambda reason: LockLostError(f"the turn of a chat is lost: {reason}"),
                    since=asked_at,
                ):
                    yield True
            finally:
                turn.key = None
                _current.reset(reset)
        finally:
            # Not awaited: the next question goes over the same connection, behind it; without Redis the lease ends.
            leaving = self._redis.run(_LEAVE, [key], token)
            leaving.add_done_callback(_look_at)

    async def _take(
        self, key: str, token: str, update_id: int | None, stopping: asyncio.Event, wait_seconds: float
    ) -> float | None:
        """Return when the turn was asked for, or None when the stop or the end of the time came first."""
        since = time.monotonic()
        pause_seconds = _FIRST_PAUSE_SECONDS
        has_waited = False
        while not stopping.is_set():
            asked_at = time.monotonic()
            taken = await self._redis.run(
                _TAKE,
                [key],
                token,
                "" if update_id is None else update_id,
                self._lease_ms,
                int(PLACE_SECONDS * 1000),
                self._lease_ms + _RECORD_MS,
            )
            if taken:
                if has_waited:
                    metrics.bot_chat_wait.observe(time.monotonic() - since)
                if taken == 2:
                    metrics.bot_chat_takeovers.inc()
                    _log.warning(
                        "a chat is taken over", reason="the replica that had it has died or is frozen"
                    )
                return asked_at
            if time.monotonic() - since >= wait_seconds:
                return None
            has_waited = True
            jitter = random.uniform(0.5, 1.0)  # noqa: S311 # nosec B311  # spreads the load, no secret
            await is_set_within(stopping, seconds=pause_seconds * jitter)
            pause_seconds = min(pause_seconds * 1.5, _LONGEST_PAUSE_SECONDS)
        return None

    async def _renew(self, key: str, token: str) -> bool:
        return bool(await self._redis.run(_RENEW, [key], token, self._lease_ms, self._lease_ms + _RECORD_MS))


def _look_at(ended: "asyncio.Future[Any]") -> None:
    if not ended.cancelled():
        ended.exception()
