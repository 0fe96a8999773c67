"""Locks: one holder of a name at a time, over all replicas."""

import asyncio
import math
import random
import secrets
import time
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, NamedTuple, cast

from prometheus_client import Counter, Histogram
from redis.asyncio import Redis

from hybridkit._syntax import KEY_SYNTAX
from hybridkit._tasks import TaskSet
from hybridkit.context import current
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._lease import LeaseKeeper
from hybridkit.coordination._process_redis import redis_of_process
from hybridkit.coordination._redis._commands import CommandRefusedError, Script
from hybridkit.coordination._redis._multiplexer import Multiplexer
from hybridkit.errors import DeclarationError, LockLostError, LockTimeoutError, MisuseError, UnavailableError
from hybridkit.observability import metrics

# A lock is a hash: `token` of the last holder; `lease_end` in milliseconds of Redis's clock, absent when nobody holds
# it; `fence`. A token that has given the lock back is still there, so that its question, if it arrives a second time
# and late, doesn't take a lock that nobody would give back. What a full Redis has to carry out too is done by HDEL.
_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

ACQUIRE: Final = Script(
    "LOCK_ACQUIRE",
    _NOW
    + """
-- ARGV: token, lease_ms, kept_ms
-- answers: {1 | 2 (the lease of the last holder had run out), fence} | {0, ms until the lease ends}
local lock = redis.call('HMGET', KEYS[1], 'token', 'lease_end', 'fence')
local mine, lease_end, fence = lock[1] == ARGV[1], tonumber(lock[2]), tonumber(lock[3] or 0)
local how = 1
if mine and not lease_end then
    return {0, 0}
elseif not mine then
    if lease_end and lease_end > now then
        return {0, lease_end - now}
    end
    how = lease_end and 2 or 1
    -- By the clock it goes on to grow even where Redis has lost the last one.
    fence = math.max(fence + 1, time[1] * 1000000 + time[2])
end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'lease_end', string.format('%.0f', now + ARGV[2]),
    'fence', string.format('%.0f', fence))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {how, fence}
""",
)

RENEW: Final = Script(
    "LOCK_RENEW",
    _NOW
    + """
-- ARGV: token, lease_ms, kept_ms, fence
-- answers: 1 | 0 (another holder has it)
local lock = redis.call('HMGET', KEYS[1], 'token', 'lease_end')
if lock[1] and not (lock[1] == ARGV[1] and lock[2]) then
    return 0
end
-- Without a record nobody has taken it since Redis lost it.
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'lease_end', string.format('%.0f', now + ARGV[2]), 'fence', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""",
)

RELEASE: Final = Script(
    "LOCK_RELEASE",
    """
-- ARGV: token, kept_ms
-- answers: 1 | 0 (another holder has it, or had it since)
local lock = redis.call('HMGET', KEYS[1], 'token', 'lease_end')
if lock[1] == ARGV[1] then
    redis.call('HDEL', KEYS[1], 'lease_end')
    return 1
end
if not lock[2] then
    redis.call('HSET', KEYS[1], 'token', ARGV[1])
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return lock[1] and 0 or 1
""",
)

KEPT_SECONDS: Final = 3_600.0
"""How long a fence is kept after its last use, at least: a clock that goes back by less does no harm."""
_POLL_SECONDS: Final = 0.05
_AWAY_SECONDS: Final = 0.25
MAX_RETURNS: Final = 1_000
"""The most locks that a process tries to give back at a time. Of more, the lease has to run out."""


class HeldLock(NamedTuple):
    """A lock inside its block.

    Attributes:
        key: the key of the lock.
        fence: a number that grows with each acquisition. Store it with what the block writes, and refuse a write with a
            smaller one: that comes from a holder which lost the lock and doesn't know it yet.
    """

    key: str
    fence: int


class _Holding(NamedTuple):
    multiplexer: Multiplexer
    token: str
    keeper: LeaseKeeper


class Lock:
    """A block that at most one process or task runs at a time.

    ```python
    async with Lock("report:daily:2026-11-30", redis=redis) as held:
        await store_report(report, fence=held.fence)
    ```

    The lease is renewed every third of it while the block runs, however long that is. When another holder has the lock,
    or Redis hasn't answered for nine tenths of a lease, the block is cancelled and leaves with `LockLostError`. Of a
    holder that dies, another one takes over after the lease.

    Those who wait ask again about 20 times a second, each at moments of its own, so that all have the same chance:
    there is no order among them. For more than some dozens that wait, send commands to a queue instead.

    A lock in Redis can't promise that there is one holder only, as a frozen process or a fail-over of Redis may make it
    two for a moment; a row with a condition in the data service can: `WHERE fence < :fence`.

    One object may be used by several tasks.

    Args:
        key: `context:entity:id`; the context is also the `scope` of the metrics, so it has few values.
        redis: a client from `connect_redis`; by default that of the process, see `use_redis`.
        wait_seconds: how long to wait for another holder, but never beyond the context's deadline; 0 to try once.
        lease_seconds: how long a holder that has died keeps the lock.
        key_prefix: the prefix of the key in Redis.

    Raises:
        MisuseError: the key has another form.
        DeclarationError: the lease is not positive, or the time to wait is negative.
    """

    def __init__(
        self,
        key: str,
        *,
        redis: Redis | None = None,
        wait_seconds: float = 10.0,
        lease_seconds: float = 30.0,
        key_prefix: str = "hk:lock:",
    ) -> None:
        if not KEY_SYNTAX.fullmatch(key):
            raise MisuseError(
                f"the key of a lock is context:entity:id, like report:daily:2026-11-30, not {key[:80]!r}"
            )
        if lease_seconds <= 0 or wait_seconds < 0:
            raise DeclarationError(
                "lease_seconds must be positive and wait_seconds must not be negative,"
                f" not {lease_seconds} and {wait_seconds}"
            )
        self.key = key
        self._redis = redis
        self._wait_seconds = wait_seconds
        self._lease_seconds = lease_seconds
        self._lease_ms = max(round(lease_seconds * 1000), 1)
        self._kept_ms = max(round(KEPT_SECONDS * 1000), self._lease_ms)
        self._keys = [key_prefix + key]
        self._scope = key.partition(":")[0]

    def __repr__(self) -> str:
        return f"Lock({self.key!r}, lease_seconds={self._lease_seconds}, wait_seconds={self._wait_seconds})"

    async def __aenter__(self) -> HeldLock:
        """Acquire the lock.

        Raises:
            LockTimeoutError: another holder had it all the time.
            UnavailableError: Redis doesn't answer: nobody can know who has it.
            LockLostError: this process was frozen since it got the lock, and another holder has it by now.
            MisuseError: this task holds the lock already.
        """
        place = self._place()
        multiplexer = multiplexer_of(self._redis or redis_of_process(f"the lock {self.key}"))
        if place in _holdings:
            raise MisuseError(
                f"this task holds the lock {self.key} already, and would wait for itself: pass `held` to what needs it"
            )
        token = secrets.token_hex(12)
        try:
            asked_at, fence = await self._acquire(multiplexer, token)
            keeper = LeaseKeeper(
                lambda: self._renew(multiplexer, token, fence),
                lease_seconds=self._lease_seconds,
                may_outlive=False,
                error_of_loss=self._loss,
                since=asked_at,
            )
            await keeper.__aenter__()
        except LockTimeoutError:
            raise
        except BaseException:  # the question may have been carried out, whatever became of its answer
            self._give_back(multiplexer, token)
            raise
        _holdings[place] = _Holding(multiplexer, token, keeper)
        return HeldLock(self.key, fence)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        holding = _holdings.pop(self._place(), None)
        if holding is None:
            for ended in [each for each in _holdings if each[0].done()]:
                del _holdings[ended]
            raise MisuseError(f"the block of the lock {self.key} was entered by another task")
        multiplexer, token, keeper = holding
        try:
            await keeper.__aexit__(kind, error, traceback)
        except BaseException:
            self._give_back(multiplexer, token)
            raise
        try:
            is_released = await multiplexer.run(RELEASE, self._keys, token, self._kept_ms)
        except UnavailableError:
            self._give_back(multiplexer, token)
        except asyncio.CancelledError:
            self._give_back(multiplexer, token)
            raise
        else:
            if not is_released and error is None:
                raise self._loss("another holder had taken it over before the block ended")

    async def _acquire(self, multiplexer: Multiplexer, token: str) -> tuple[float, int]:
        """Return when the lock was asked for, and its fence."""
        since = time.monotonic()
        give_up_at = min(since + self._wait_seconds, current().deadline or math.inf)
        while True:
            asked_at = time.monotonic()
            try:
                how, number = await multiplexer.run(ACQUIRE, self._keys, token, self._lease_ms, self._kept_ms)
            except UnavailableError:
                _outcome(self._scope, "unavailable").inc()
                raise
            now = time.monotonic()
            if how:
                _outcome(self._scope, "acquired" if how == 1 else "taken_over").inc()
                _wait(self._scope).observe(now - since)
                return asked_at, number
            left_seconds = give_up_at - now
            if left_seconds <= 0:
                _outcome(self._scope, "timed_out").inc()
                raise LockTimeoutError(
                    f"another holder has the lock {self.key}", retry_after_seconds=min(number / 1000, 1.0)
                )
            pause_seconds = _POLL_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - spreads the waiting, no secret
            await asyncio.sleep(min(pause_seconds, left_seconds))

    async def _renew(self, multiplexer: Multiplexer, token: str, fence: int) -> bool:
        is_held = await multiplexer.run(RENEW, self._keys, token, self._lease_ms, self._kept_ms, fence)
        return bool(is_held)

    def _give_back(self, multiplexer: Multiplexer, token: str) -> None:
        """Release the lock behind the caller's back, however long Redis is away, until the lease has run out."""
        if len(_returning) < MAX_RETURNS:
            _returning.start(self._keep_releasing(multiplexer, token), name=f"hybridkit release {self.key}")

    async def _keep_releasing(self, multiplexer: Multiplexer, token: str) -> None:
        until = time.monotonic() + self._lease_seconds
        while time.monotonic() < until:
            try:
                await multiplexer.run(RELEASE, self._keys, token, self._kept_ms, even_if_away=True)
            except CommandRefusedError:
                return  # it was not acquired: to give back what this token holds is never refused
            except UnavailableError:
                await asyncio.sleep(_AWAY_SECONDS)
            else:
                return

    def _loss(self, reason: str) -> LockLostError:
        _outcome(self._scope, "lost").inc()
        return LockLostError(f"the lock {self.key} is lost: {reason}")

    def _place(self) -> tuple[asyncio.Task[Any], str]:
        return cast("asyncio.Task[Any]", asyncio.current_task()), self._keys[0]


_holdings: Final[dict[tuple[asyncio.Task[Any], str], _Holding]] = {}
"""The locks of this process, by the task that runs their block."""
_returning: Final = TaskSet()


@lru_cache(maxsize=1024)
def _outcome(scope: str, outcome: str) -> Counter:
    """Return the counter for some labels; cached, as the look-up costs more than the counting."""
    return metrics.lock_outcomes.labels(scope, outcome)


@lru_cache(maxsize=1024)
def _wait(scope: str) -> Histogram:
    return metrics.lock_wait.labels(scope)
