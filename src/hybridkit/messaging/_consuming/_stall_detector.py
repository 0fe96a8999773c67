"""Stalls: steps that a consumer tries again and again, and that should have succeeded long ago."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

GRACE_SECONDS: Final = 10.0
"""A shorter time is no stall: the broker restarts, or another process reads the same queue."""
FORGOTTEN_SECONDS: Final = 60.0
"""A step that was not tried for so long has ended in another way: its message went elsewhere."""


class StallDetector:
    """Knows since when each step of a consumer fails.

    Args:
        clock: returns seconds that never go back; for tests.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}
        self._tried: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"StallDetector({self.reason or 'none'})"

    @contextmanager
    def attempt(self, what: str) -> Generator[None]:
        """Run the block as one attempt at a step; if it doesn't raise, the stall is over.

        Args:
            what: the step, as a sentence for people; the same for each attempt.
        """
        now = self._clock()
        if now - self._tried.get(what, now) >= FORGOTTEN_SECONDS:
            self._since.pop(what, None)
        self._since.setdefault(what, now)
        self._tried[what] = now
        try:
            yield
        except BaseException:
            self._tried[what] = self._clock()
            self._since.setdefault(what, now)  # another try may have gone well meanwhile
            raise
        self._since.pop(what, None)
        self._tried.pop(what, None)

    @property
    def reason(self) -> str | None:
        """The step that has failed for more than 10 s and is still tried; None where there is none."""
        now = self._clock()
        for what, since in self._since.items():
            if now - since >= GRACE_SECONDS and now - self._tried.get(what, since) < FORGOTTEN_SECONDS:
                return what
        return None
