"""A small circuit breaker: while Redis is down, most calls learn it without waiting for a timeout."""

import time
from collections.abc import Callable
from typing import Final

__all__ = ["Breaker"]

FAILURES_TO_OPEN: Final = 3
COOLDOWN_SECONDS: Final = 1.0


class Breaker:
    """A breaker that opens after three failures in a row; one call per second tries then, and a success closes it.

    Args:
        clock: gives seconds that never go back; for tests.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._next_try = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the last calls have failed."""
        return self._failures >= FAILURES_TO_OPEN

    def allows(self) -> bool:
        """Return whether to make the call; while open, the caller that gets True tries on behalf of all."""
        if not self.is_open:
            return True
        now = self._clock()
        if now < self._next_try:
            return False
        self._next_try = now + COOLDOWN_SECONDS
        return True

    def succeeded(self) -> bool:
        """Note that Redis answered, and return whether this closes the breaker."""
        was_open = self.is_open
        self._failures = 0
        return was_open

    def failed(self) -> bool:
        """Note that Redis did not answer, and return whether this opens the breaker."""
        was_open = self.is_open
        self._failures += 1
        self._next_try = self._clock() + COOLDOWN_SECONDS
        return self.is_open and not was_open

    def __repr__(self) -> str:
        return f"Breaker({'open' if self.is_open else 'closed'}, failures={self._failures})"
