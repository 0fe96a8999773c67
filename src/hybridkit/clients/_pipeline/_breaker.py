"""A circuit breaker: stops calling a target that fails, and finds out with single calls when it is back.

```
closed ──half of at least 20 calls in 10 s failed──► open ──5 s──► half open ──one call succeeds──► closed
                                                      ▲                │
                                                      └─twice as long──┘ it fails
```
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from hybridkit.errors import UnavailableError

type BreakerState = Literal["closed", "open", "half_open"]

WINDOW_SECONDS: Final = 10.0
MIN_CALLS: Final = 20
FAILURE_RATIO: Final = 0.5
FIRST_OPEN_SECONDS: Final = 5.0
MAX_OPEN_SECONDS: Final = 60.0
SLICES: Final = 10


@dataclass(slots=True)
class _Slice:
    """The calls that ended in one tenth of the window; remembering each would need memory in proportion to the load."""

    ends_at: float
    calls: int = 0
    failures: int = 0


class Breaker:
    """Counts how calls end, and refuses new ones while the target is failing; makes no calls itself.

    Args:
        target: the name of the target in the refusal.
        clock: gives monotonic seconds.
        on_change: called with each new state.
    """

    def __init__(
        self,
        target: str,
        *,
        clock: Callable[[], float],
        on_change: Callable[[BreakerState], object] | None = None,
    ) -> None:
        self._target = target
        self._clock = clock
        self._on_change = on_change
        self._state: BreakerState = "closed"
        self._slices: deque[_Slice] = deque()
        self._open_seconds = FIRST_OPEN_SECONDS
        self._opened_at = 0.0
        self._period = 0
        self._probing = False

    def __repr__(self) -> str:
        return f"Breaker({self._target!r}, {self.state})"

    @property
    def state(self) -> BreakerState:
        """The state; `half_open` as soon as the next call would be let through as a probe."""
        if self._state == "open" and self._wait_seconds() <= 0:
            return "half_open"
        return self._state

    def enter(self) -> int:
        """Let a call through, and return the ticket that `leave` takes back.

        Raises:
            UnavailableError: the target is failing, so nothing is sent to it now.
        """
        if self._state == "closed":
            return self._period
        wait_seconds = self._wait_seconds()
        if wait_seconds > 0 or self._probing:
            raise UnavailableError(
                f"{self._target} has been failing; calls to it are held back to let it recover",
                retry_after_seconds=max(wait_seconds, 0.0),
            )
        if self._state != "half_open":
            self._become("half_open")
        self._probing = True
        return self._period

    def note_failure(self) -> None:
        """Count a failure of the target that showed after `leave`: a body that broke off."""
        if self._state == "closed":
            self._count(failed=True)

    def leave(self, ticket: int, *, failed: bool | None) -> None:
        """Count how the call ended.

        Args:
            ticket: the one from `enter`; a ticket from before the last change of state is ignored.
            failed: whether the target is to blame; None if the call tells nothing about it.
        """
        if ticket != self._period:  # a slow call from before the breaker opened must not judge the probe
            return
        if self._state == "half_open":
            self._judge_probe(failed=failed)
        elif failed is not None:
            self._count(failed=failed)

    def _judge_probe(self, *, failed: bool | None) -> None:
        self._probing = False
        if failed is False:
            self._become("closed")
            self._open_seconds = FIRST_OPEN_SECONDS
            self._period += 1
        elif failed:
            self._open_seconds = min(self._open_seconds * 2, MAX_OPEN_SECONDS)
            self._open()

    def _count(self, *, failed: bool) -> None:
        now = self._clock()
        while self._slices and self._slices[0].ends_at <= now - WINDOW_SECONDS:
            self._slices.popleft()
        if not self._slices or self._slices[-1].ends_at <= now:
            self._slices.append(_Slice(now + WINDOW_SECONDS / SLICES))
        self._slices[-1].calls += 1
        self._slices[-1].failures += failed
        if failed:
            calls = sum(part.calls for part in self._slices)
            failures = sum(part.failures for part in self._slices)
            if calls >= MIN_CALLS and failures >= calls * FAILURE_RATIO:
                self._open()

    def _open(self) -> None:
        self._become("open")
        self._opened_at = self._clock()
        self._slices.clear()
        self._period += 1

    def _become(self, state: BreakerState) -> None:
        self._state = state
        if self._on_change is not None:
            self._on_change(state)

    def _wait_seconds(self) -> float:
        return self._opened_at + self._open_seconds - self._clock()
