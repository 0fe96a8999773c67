"""The gate in front of the handlers: shut while a dependency is down, and tried with one message at a time.

While it is shut, messages wait here instead of failing one by one. After growing intervals one of them is let through
as a probe; when the dependency answers it, the gate opens for all.
"""

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hybridkit.codec import now
from hybridkit.errors import HybridkitError
from hybridkit.observability import get_logger, metrics, printable
from hybridkit.retry import UNLIMITED, Retry, asked_seconds

PROBES: Final = Retry.exponential(first_seconds=1.0, cap_seconds=60.0, attempts=UNLIMITED)
LONGEST_ASKED_SECONDS: Final = 900.0
"""The longest time that a dependency may ask for; after it, it is tried anyway."""
STEADY_SECONDS: Final = 60.0
"""A gate that was open for less time goes on with the intervals of the last pause."""
MAX_REASON_CHARS: Final = 200

_log = get_logger(__name__)


def _ignore() -> None:
    """Do nothing: no subscription listens."""


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Paused:
    """Why a consumer takes no messages.

    Attributes:
        reason: the error that caused the pause: the message of hybridkit's own errors, only the class of any other.
        since: the time at which the pause began, in UTC.
    """

    reason: str
    since: datetime


class PauseGate:
    """Lets messages through, or makes them wait and lets probes through.

    Args:
        name: the consumer's name, for logs and metrics.
    """

    def __init__(self, name: str) -> None:
        self.paused: Paused | None = None
        self.wants_one = False
        """Whether a probe is due, and no caller waits to be it."""
        self.changed: Callable[[], None] = _ignore
        """Called whenever `paused` or `wants_one` may have changed."""
        self._name = name
        self._waiting: dict[
            asyncio.Future[bool], Callable[[], bool]
        ] = {}  # who, and whether there is a reason
        self._intervals = PROBES.pauses()
        self._timer: asyncio.TimerHandle | None = None
        self._asked_seconds = 0.0
        self._opened_at = -STEADY_SECONDS
        self.is_stopped = False
        """Everything stops: who waits is to leave."""
        self._gauge = metrics.consumer_paused.labels(name)

    def __repr__(self) -> str:
        return f"PauseGate({self._name!r}, {self.paused or 'open'}, waiting={len(self._waiting)})"

    @property
    def is_open(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.paused is None and not self.is_stopped

    def shut(self, error: BaseException) -> None:
        """Shut the gate, as a dependency is down. Of many errors at the same time, the first one is the reason."""
        self._asked_seconds = min(asked_seconds(error), LONGEST_ASKED_SECONDS) or self._asked_seconds
        if not self.is_open:
            return
        self.paused = Paused(_words(error), now())
        self._gauge.set(1)
        _log.warning("consumer paused", consumer=self._name, reason=self.paused.reason)
        if time.monotonic() - self._opened_at >= STEADY_SECONDS:
            self._intervals = PROBES.pauses()
        self._arm()
        self.changed()

    def open(self) -> None:
        """Open the gate, as the dependency is back: all messages go on."""
        paused, self.paused = self.paused, None
        if paused is None:
            return
        seconds = (now() - paused.since).total_seconds()
        _log.info("consumer resumed", consumer=self._name, reason=paused.reason, paused_seconds=seconds)
        self._opened_at = time.monotonic()
        self._release(passed=True)
        self.changed()

    def stop(self) -> None:
        """Let no message through any more, and end all waiting."""
        self.is_stopped = True
        self.paused = None
        self._release(passed=False)

    async def turn(self, *, seconds: float, is_wanted: Callable[[], bool] = _always) -> bool:
        """Wait until the gate is open, or until this caller is to be the probe.

        Args:
            seconds: the time for which the caller can wait.
            is_wanted: returns whether the caller still has a message to go on with; without one it is no probe.

        Returns:
            Whether to go on; False when the time is up, when the message is gone, or when the consumer stops.
        """
        if self.is_open or self.is_stopped or seconds <= 0:
            return self.is_open
        if self.wants_one:
            self.wants_one = False
            return True
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[place] = is_wanted
        try:
            await asyncio.wait({place}, timeout=seconds)
        except asyncio.CancelledError:
            # Not among the waiting any more: it was chosen as the probe, and cancelled before it could go on.
            if self._waiting.pop(place, None) is None:
                self.pass_on()
            raise
        if not place.done():
            del self._waiting[place]
            return False
        return place.result()

    def pass_on(self) -> None:
        """Let another caller be the probe, at once, as the one that was to be it can't."""
        if self.paused is not None:
            self._probe()

    def sift(self) -> None:
        """End the waiting of callers whose message is gone: they may occupy a place that the probe needs."""
        for place, is_wanted in tuple(self._waiting.items()):
            if not is_wanted():
                del self._waiting[place]
                place.set_result(False)

    @contextmanager
    def probing(self) -> Generator[None]:
        """Run the block as the probe; if the gate is shut at its end, the next one comes after a longer interval."""
        try:
            yield
        finally:
            if self.paused is not None:
                self._arm()

    def _arm(self) -> None:
        seconds = max(next(self._intervals), self._asked_seconds)
        self._asked_seconds = 0.0
        self._disarm()
        self._timer = self._arm_timer(seconds)

    def _arm_timer(self, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, self._probe)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _probe(self) -> None:
        # A message whose channel has closed proves nothing as a probe: it would not be settled.
        self.sift()
        if self._waiting:
            place = next(iter(self._waiting))
            del self._waiting[place]
            place.set_result(True)
            return
        self.wants_one = True  # the subscription has one message delivered, and that is the probe
        self.changed()

    def _release(self, *, passed: bool) -> None:
        self._gauge.set(0)
        self.wants_one = False
        self._disarm()
        waiting, self._waiting = self._waiting, {}
        for place in waiting:
            place.set_result(passed)


def _words(error: BaseException) -> str:
    """Describe an error, without the message of another library: it may contain an address with a password."""
    words = f": {printable(error)}" if isinstance(error, HybridkitError) else ""
    return printable(f"{type(error).__name__}{words}")[:MAX_REASON_CHARS]
