"""What a consumer can't get past: a thing that is tried again and again, and should have gone well long ago."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

GRACE_SECONDS: Final = 10.0
"""What takes no longer is no stall: a broker that is restarted, or somebody who reads the same queue."""
FORGOTTEN_SECONDS: Final = 60.0
"""What nobody has tried for so long has ended in another way: its message went elsewhere."""


class StallDetector:
    """Knows since when each of these things fails.

    Args:
        clock: seconds that never go back; for tests.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}
        self._tried: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"StallDetector({self.reason or 'none'})"

    @contextmanager
    def attempt(self, what: str) -> Generator[None]:
        """The block is one try; if it doesn't raise, whatever stood still moves again.

        Args:
            what: a sentence for people, the same for each try.
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
        """What has failed for more than 10 s and is still tried; None where all goes on."""
        now = self._clock()
        for what, since in self._since.items():
            if now - since >= GRACE_SECONDS and now - self._tried.get(what, since) < FORGOTTEN_SECONDS:
                return what
        return None
