"""The end of requests whose time is over, by one timer for all of them, as one for each would cost too much."""

import asyncio
import time
from typing import Final, Protocol

GRACE_SECONDS: Final = 1.0
"""How long after its deadline work is cancelled at the earliest: calls that end at the deadline say more."""
SWEEP_SECONDS: Final = 0.2
"""The interval at which requests are looked through, while there are any."""


class Expiring(Protocol):
    """A request that can be ended."""

    def run_out_of_time(self) -> None:
        """End the request; called once."""
        ...


class Deadlines:
    """The deadlines of the requests that run."""

    def __init__(self) -> None:
        self._deadlines: dict[Expiring, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"Deadlines({len(self._deadlines)} requests)"

    def add(self, request: Expiring, deadline: float) -> None:
        """End a request if it still runs after that time.

        Args:
            request: the request.
            deadline: the time by `time.monotonic`.
        """
        self._deadlines[request] = deadline
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # no timer runs, or one of a loop that has ended
            self._loop = loop
            loop.call_later(SWEEP_SECONDS, self._sweep)

    def discard(self, request: Expiring) -> None:
        """Forget a request, which has ended."""
        self._deadlines.pop(request, None)

    def _sweep(self) -> None:
        passed = time.monotonic() - GRACE_SECONDS
        for request in [each for each, deadline in self._deadlines.items() if deadline <= passed]:
            del self._deadlines[request]
            request.run_out_of_time()
        if self._deadlines:
            asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)
        else:
            self._loop = None
