"""A claim that begins somewhere inside a block, and is finished before the block ends."""

from typing import Any, Final, Protocol, assert_never

from hybridkit.errors import ClaimLostError, InProgressError, KeyReusedError, MisuseError, RejectedError
from hybridkit.idempotency._answers import (
    Acquired,
    Begin,
    Completed,
    Exhausted,
    Failed,
    Finish,
    InProgress,
    Mismatch,
    Outcome,
)

__all__ = ["Attempt", "error_for", "refuse_lost"]

SOON_SECONDS: Final = 1.0
"""The seconds after which to ask again for work that another holder does."""


class AttemptGuard(Protocol):
    """The guard that an attempt asks; see `IdempotencyGuard` for the methods."""

    async def begin(self, key: str, payload: Any, *, wait_seconds: float = 0.0) -> Begin:
        """Ask for the work."""
        ...

    async def renew(self, acquired: Acquired) -> bool:
        """Extend the lease."""
        ...

    async def finish(self, acquired: Acquired, outcome: Outcome, result: Any = None) -> Finish:
        """Record how the work ended."""
        ...


class Attempt:
    """The value of an `IdempotencyGuard.attempt` block."""

    def __init__(self, guard: AttemptGuard) -> None:
        self._guard = guard
        self._acquired: Acquired | None = None
        self._is_finished = False

    async def begin(self, key: str, payload: Any, *, wait_seconds: float = 0.5) -> Completed | None:
        """Ask for the work, and return None where it is the block's to do, or its outcome where it was done before.

        Args:
            key: `context:entity:id`.
            payload: the values that make it the same request: anything with a JSON form, or bytes.
            wait_seconds: how long to wait for another holder.

        Raises:
            InProgressError: another holder still does the work.
            KeyReusedError: the key came back with another payload.
            RejectedError: the work failed for good before, or too many holders died on it.
            UnavailableError: Redis is down, and `when_down` refuses.
            MisuseError: the block has asked before.
        """
        if self._acquired is not None:
            raise MisuseError("an attempt asks for one key, once")
        match await self._guard.begin(key, payload, wait_seconds=wait_seconds):
            case Acquired() as acquired:
                self._acquired = acquired
                return None
            case Completed() as before:
                return before
            case refused:
                raise error_for(refused)

    async def renew(self) -> bool:
        """Extend the lease, as long as there is one."""
        if self._acquired is None or self._is_finished:
            return True
        # A question that was under way while the work was finished finds no lease: nothing is lost by that.
        return await self._guard.renew(self._acquired) or self._is_finished

    async def finish(self, outcome: Outcome, result: Any = None) -> None:
        """Record how the work ended; what comes after this in the block isn't part of it.

        Args:
            outcome: how it ended.
            result: anything with a JSON form, kept up to 32 KiB.

        Raises:
            ClaimLostError: the work is done, but another holder had taken it over.
        """
        if self._acquired is None or self._is_finished:
            return
        self._is_finished = True
        how = await self._guard.finish(self._acquired, outcome, result)
        if how is Finish.LOST and outcome is Outcome.COMPLETED:
            refuse_lost(self._acquired)

    async def give_back(self) -> None:
        """Release the work that was begun and not finished."""
        await self.finish(Outcome.RELEASED)

    def __repr__(self) -> str:
        return f"Attempt(acquired={self._acquired is not None}, finished={self._is_finished})"


def refuse_lost(acquired: Acquired) -> None:
    """Fail the end of work that another holder has taken over.

    Raises:
        ClaimLostError: the claim was guarded. An unguarded one never had the key: another holder is no surprise then,
            and does no harm to its writes.
    """
    if acquired.guarded:
        raise ClaimLostError("the claim was taken over by another holder before it ended")


def error_for(answer: InProgress | Failed | Mismatch | Exhausted) -> Exception:
    """Make an error of a refusal. It never names the key: the caller may be another one than who chose it."""
    match answer:
        case InProgress(retry_after_ms):
            # The lease is how long it takes at most, if the holder is dead; most work is done much sooner.
            after_seconds = min(retry_after_ms / 1000, SOON_SECONDS)
            return InProgressError("another holder is working on it", retry_after_seconds=after_seconds)
        case Failed():
            return RejectedError("it was given up for good; a new try needs a new key")
        case Mismatch():
            return KeyReusedError("the key came with another payload before; a new request needs a new key")
        case Exhausted():
            return RejectedError("too many holders died while working on it; it isn't run again")
        case _:
            assert_never(answer)
