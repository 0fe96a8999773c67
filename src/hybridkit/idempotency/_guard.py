"""The guard: one piece of work runs once, however often it is asked for."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from hybridkit.idempotency._answers import Acquired, Begin, Finish, Outcome, RedisDown

__all__ = ["Claimed", "IdempotencyGuard"]


class Claimed:
    """What `IdempotencyGuard.claim` gives: either the work is yours, or it was done before."""

    @property
    def key(self) -> str:
        """The key, `context:entity:id`."""
        raise NotImplementedError

    @property
    def done(self) -> bool:
        """Someone has completed this before: leave the block with `result`."""
        raise NotImplementedError

    @property
    def result(self) -> Any:
        """The stored result, decoded from JSON, when `done`."""
        raise NotImplementedError

    def set_result(self, value: Any) -> None:
        """Store this when the block ends without an error."""
        raise NotImplementedError


class IdempotencyGuard:
    """Keeps one record per key in Redis: who is working on it until when, or how it ended.

    Args:
        redis: a client from `connect_redis`; the guard doesn't close it.
        when_down: what to do while Redis doesn't answer.
        lease_seconds: how long a holder may go without renewing before another takes over.
        retention_seconds: how long an outcome is remembered; longer than the work can come back.
        max_takeovers: how many holders may die before the work is given up.
        key_prefix: goes before every key in Redis.
        timeout_seconds: how long one question to Redis may take.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        when_down: RedisDown = RedisDown.DURABLE,
        lease_seconds: float = 30.0,
        retention_seconds: float = 86_400.0,
        max_takeovers: int = 5,
        key_prefix: str = "hk:claim:",
        timeout_seconds: float = 0.5,
    ) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def claim(self, key: str, payload: Any, *, wait_seconds: float = 0.5) -> AsyncGenerator[Claimed]:
        """Run the block once per key.

        The block runs with `hybridkit.context` bound to the claim. An error releases the key for the next try.

        Args:
            key: `context:entity:id`.
            payload: what makes it the same request: anything with a JSON form, or bytes.
            wait_seconds: how long to wait for another holder.

        Raises:
            InProgressError: another holder is still at it.
            KeyReusedError: the key came back with another payload.
            RejectedError: it failed for good before, or too many holders died on it.
            ClaimLostError: another holder has taken over; the block was cancelled.
            UnavailableError: Redis is down, and `when_down` refuses.
        """
        raise NotImplementedError
        yield

    def idempotent[**P, T](
        self, *, key: Callable[P, str], payload: Callable[P, Any], wait_seconds: float = 0.5
    ) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
        """The decorator form of `claim`: a repeated call gets the stored result, as the annotated return type."""
        raise NotImplementedError

    async def begin(self, key: str, payload: Any, *, wait_seconds: float = 0.0) -> Begin:
        """Ask for the work.

        Args:
            key: `context:entity:id`; `claim_key` makes one from parts that others choose.
            payload: what makes it the same work; for an event its type, version and data, without timestamp and
                request id.
            wait_seconds: how long to wait for another holder before answering `InProgress`.

        Raises:
            UnavailableError: Redis is down, and `when_down` refuses.
        """
        raise NotImplementedError

    @asynccontextmanager
    async def hold(self, acquired: Acquired) -> AsyncGenerator[None]:
        """Run the block as the holder: the context carries the claim, and the lease is renewed every third of it.

        Doesn't finish: call `finish` after the block.

        Raises:
            ClaimLostError: another holder has taken over; the block was cancelled.
        """
        raise NotImplementedError
        yield

    async def finish(self, acquired: Acquired, outcome: Outcome, result: Any = None) -> Finish:
        """Record how the work ended. Never raises because of Redis: see `Finish`.

        Args:
            acquired: what `begin` gave.
            outcome: completed, failed for good, or released for another try.
            result: anything with a JSON form, kept up to 32 KiB.
        """
        raise NotImplementedError

    async def renew(self, acquired: Acquired) -> bool:
        """Extend the lease from now; False when another holder has it. `hold` does it by itself.

        Raises:
            UnavailableError: Redis did not answer.
        """
        raise NotImplementedError
