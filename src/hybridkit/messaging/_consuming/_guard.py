"""What a consumer asks of an idempotency guard; `hybridkit.idempotency.IdempotencyGuard` has it."""

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from hybridkit.idempotency import Acquired, Begin, Finish, Outcome

__all__ = ["Guard"]


class Guard(Protocol):
    """Lets one piece of work run once per key."""

    async def begin(self, key: str, payload: Any, *, wait_seconds: float = 0.0) -> Begin:
        """Ask for the work, waiting that long for another holder."""
        ...

    def hold(self, acquired: Acquired) -> AbstractAsyncContextManager[None]:
        """Run the block as the holder, with the claim in the context and the lease renewed."""
        ...

    async def finish(self, acquired: Acquired, outcome: Outcome, result: Any = None) -> Finish:
        """Record how it ended."""
        ...
