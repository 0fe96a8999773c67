"""Calls of this process with one idempotency key: one of them works, the others wait for what comes of it.

They hold no connection meanwhile, and ask the database nothing. Between processes the database itself decides.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from hybridkit.dataservice._store._keys import replayed
from hybridkit.dataservice._store._operations import Outcome, Write
from hybridkit.errors import InProgressError

PATIENCE_SECONDS: Final = 0.5
"""How long a call waits for another one with its key."""

type Work = Callable[[], Awaitable[Outcome]]


class InFlight:
    """Which keys are at work here."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], asyncio.Future[tuple[bytes, Outcome] | None]] = {}

    def __repr__(self) -> str:
        return f"InFlight({len(self._running)})"

    async def run(self, write: Write, work: Work) -> Outcome:
        """Do the work, or wait for an equal call and give its outcome again. If that fails, the next one tries.

        Args:
            write: says whose key it is.
            work: does it.

        Raises:
            InProgressError: the other call took too long.
            KeyReusedError: the other call asks for something else, under a key that its caller made.
        """
        name = (write.caller, write.key)
        give_up = time.monotonic() + PATIENCE_SECONDS
        while (other := self._running.get(name)) is not None:
            done, _ = await asyncio.wait({other}, timeout=max(give_up - time.monotonic(), 0.0))
            if not done:
                raise in_progress()
            if (found := other.result()) is not None:
                return replayed(write, *found)
        mine = self._running[name] = asyncio.get_running_loop().create_future()
        outcome: Outcome | None = None
        try:
            outcome = await work()
            return outcome
        finally:
            del self._running[name]
            mine.set_result(None if outcome is None else (write.fingerprint, outcome))


def in_progress() -> InProgressError:
    """Another call has the key."""
    return InProgressError("a call with this Idempotency-Key has not finished", retry_after_seconds=0.2)
