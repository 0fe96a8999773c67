"""Calls of this process with one idempotency key: one of them works, the others wait for its outcome.

Those who wait hold no connection and ask the database nothing. Between processes the database itself decides.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from hybridkit.dataservice._store._keys import replayed
from hybridkit.dataservice._store._operations import Outcome, Write
from hybridkit.errors import InProgressError

PATIENCE_SECONDS: Final = 0.5
"""The longest wait of a call for another one with its key."""

type Work = Callable[[], Awaitable[Outcome]]


class InFlight:
    """The keys that calls of this process work under."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], asyncio.Future[tuple[bytes, Outcome] | None]] = {}

    def __repr__(self) -> str:
        return f"InFlight({len(self._running)})"

    async def run(self, write: Write, work: Work) -> Outcome:
        """Do the work, or wait for the call at work with the same key and return its outcome.

        If the call at work fails, the next one does the work.

        Args:
            write: has the key, its caller and the fingerprint.
            work: carries the write out.

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
    """Return the refusal of a call whose key another call works under."""
    return InProgressError("a call with this Idempotency-Key has not finished", retry_after_seconds=0.2)
