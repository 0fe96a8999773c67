"""A claim that is asked for somewhere inside of a block, and finished before the block ends."""

from typing import TYPE_CHECKING, Any, Final, assert_never

from hybridkit.errors import ClaimLostError, InProgressError, KeyReusedError, MisuseError, RejectedError
from hybridkit.idempotency._answers import (
    Acquired,
    Completed,
    Exhausted,
    Failed,
    Finish,
    InProgress,
    Mismatch,
    Outcome,
)

if TYPE_CHECKING:
    from hybridkit.idempotency._guard import IdempotencyGuard

__all__ = ["Attempt", "error_for", "refuse_lost"]

SOON_SECONDS: Final = 1.0
"""When to ask again for work that somebody is at."""


class Attempt:
    """What `IdempotencyGuard.attempt` gives to its block."""

    def __init__(self, guard: "IdempotencyGuard") -> None:
        self._guard = guard
        self._acquired: Acquired | None = None
        self._is_finished = False

    async def begin(self, key: str, payload: Any, *, wait_seconds: float = 0.5) -> Completed | None:
        """Ask for the work: None when it is the block's to do, what is left of it when it was done before.

        Args:
            key: `context:entity:id`.
            payload: what makes it the same request: anything with a JSON form, or bytes.
            wait_seconds: how long to wait for another holder.

        Raises:
            InProgressError: another holder is still at it.
            KeyReusedError: the key came back with another payload.
            RejectedError: it failed for good before, or too many holders died on it.
            UnavailableError: Redis is down, and `when_down` refuses.
            MisuseError: it has asked before.
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
            ClaimLostError: it is done, but another holder had taken it over.
        """
        if self._acquired is None or self._is_finished:
            return
        self._is_finished = True
        how = await self._guard.finish(self._acquired, outcome, result)
        if how is Finish.LOST and outcome is Outcome.COMPLETED:
            refuse_lost(self._acquired)

    async def give_back(self) -> None:
        """Release what was begun and not finished."""
        await self.finish(Outcome.RELEASED)

    def __repr__(self) -> str:
        return f"Attempt(acquired={self._acquired is not None}, finished={self._is_finished})"


def refuse_lost(acquired: Acquired) -> None:
    """The end of work that another holder has taken over.

    Raises:
        ClaimLostError: unless it was unguarded, and so never had the key: then another holder is no surprise, and no
            harm to its writes.
    """
    if acquired.guarded:
        raise ClaimLostError("the claim was taken over by another holder before it ended")


def error_for(answer: InProgress | Failed | Mismatch | Exhausted) -> Exception:
    """That refusal as an error. It never names the key: who asks may be somebody else than who chose it."""
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
