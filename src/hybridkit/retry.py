"""Decide after a failed attempt: try again in some seconds, pause, or give up.

```python
Retry.exponential(first_seconds=1, cap_seconds=300, attempts=8).never(PermissionError).pause_on(UnavailableError)
```

A policy is a value. It never sleeps or reads a clock; the caller does, so that a decision can be tested without
waiting.
"""

import math
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import partial
from operator import getitem
from typing import Any, Final, Self, cast

from hybridkit.errors import (
    DeclarationError,
    MisuseError,
    RejectedError,
    ResponseError,
    StaleVersionError,
)

__all__ = [
    "UNLIMITED",
    "Decision",
    "GiveUp",
    "Pause",
    "Retry",
    "RetryAfter",
    "asked_seconds",
    "retry_after_seconds",
]

MAX_DELAY_SECONDS: Final = 36 * 3600.0
UNLIMITED: Final = sys.maxsize
"""The attempts of a policy that never gives up."""


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """The decision to try again, `seconds` from now."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The decision to stop: `reason` is `permanent` (the error can't go away) or `exhausted` (no attempts are left)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Pause:
    """The decision to stop taking work until a dependency is back; the attempt doesn't count."""


type Decision = RetryAfter | GiveUp | Pause


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A policy: how many attempts, how far apart, and for which errors. Make one with `immediate` or `exponential`.

    Attributes:
        attempts: how often the work runs at most, the first time included; at least 1.
        first_seconds: the upper bound of the first delay; 0 for retries at once.
        cap_seconds: the upper bound of every delay, at most 36 h.
        never_for: errors that are given up at once. Errors that blame the request or the code
            (`RejectedError`, `MisuseError`), and `ResponseError`, always are, except `StaleVersionError`: work that
            runs again reads the record again. An unmet `require` is a `RequirementNotMetError`, and permanent.
        pause_for: errors that say a dependency is down.
    """

    attempts: int = 8
    first_seconds: float = 1.0
    cap_seconds: float = 300.0
    never_for: tuple[type[BaseException], ...] = ()
    pause_for: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a policy that contradicts itself.

        Raises:
            DeclarationError: a value is out of its range; the message names it.
        """
        if self.attempts < 1:
            raise DeclarationError(f"attempts must be at least 1, not {self.attempts}")
        if not 0 <= self.first_seconds <= self.cap_seconds <= MAX_DELAY_SECONDS:
            raise DeclarationError(
                f"0 <= first_seconds <= cap_seconds <= {MAX_DELAY_SECONDS:.0f} must hold,"
                f" not {self.first_seconds} and {self.cap_seconds}"
            )

    @classmethod
    def immediate(cls, *, attempts: int = 3) -> Self:
        """Make a policy that tries again at once: for races that the next attempt wins."""
        return cls(attempts=attempts, first_seconds=0.0, cap_seconds=0.0)

    @classmethod
    def exponential(
        cls, *, first_seconds: float = 1.0, cap_seconds: float = 300.0, attempts: int = 8
    ) -> Self:
        """Make a policy with full jitter: each delay is uniform between 0 and a bound that doubles up to the cap.

        https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        """
        return cls(attempts=attempts, first_seconds=first_seconds, cap_seconds=cap_seconds)

    def never(self, *errors: type[BaseException]) -> Self:
        """Return a policy that also gives up at once on these errors."""
        return replace(self, never_for=self.never_for + errors)

    def pause_on(self, *errors: type[BaseException]) -> Self:
        """Return a policy that pauses on these errors instead of spending attempts; `never` wins over it."""
        return replace(self, pause_for=self.pause_for + errors)

    def decide(self, error: BaseException, *, attempt: int, jitter: float) -> Decision:
        """Decide what to do after a failed attempt.

        Where an error says when to come back (`asked_seconds`), the delay begins then; 36 h at most in all. A group is
        given up where one of its errors would be, and pauses where all of them would.

        Args:
            error: the error that the attempt raised.
            attempt: the attempt's number; the first is 1.
            jitter: a random number from 0 up to 1, as `random.random()` gives it.
        """
        leaves = tuple(_leaves(error))
        if any(isinstance(one, self.never_for) for one in (error, *leaves)):
            return GiveUp("permanent")
        if isinstance(error, self.pause_for) or all(isinstance(one, self.pause_for) for one in leaves):
            return Pause()
        if any(map(_is_permanent, leaves)):
            return GiveUp("permanent")
        if attempt >= self.attempts:
            return GiveUp("exhausted")
        seconds = asked_seconds(error) + self.bound_seconds(attempt) * jitter
        return RetryAfter(min(seconds, MAX_DELAY_SECONDS))

    def bound_seconds(self, attempt: int) -> float:
        """Return the longest delay that can follow an attempt; the first attempt is 1."""
        return min(self.first_seconds * 2.0 ** min(attempt - 1, self._doublings), self.cap_seconds)

    @property
    def _doublings(self) -> int:
        """How often the bound doubles until it reaches the cap."""
        return math.ceil(math.log2(self.cap_seconds / self.first_seconds)) if self.first_seconds else 0

    def pauses(self, *, jitter: Callable[[], float] = random.random) -> Iterator[float]:
        """Yield the pauses in seconds between the attempts of a loop that asks for no decision, such as a reconnect.

        Each is a random part of its upper bound, but at least a quarter of it, so that nothing is asked again at once.
        After a success, a loop begins again with a new iterator.

        Args:
            jitter: gives a number from 0 up to 1 for each pause.
        """
        for attempt in range(1, self.attempts):
            yield self.bound_seconds(attempt) * (0.25 + 0.75 * jitter())

    def total_seconds(self) -> float:
        """Return the longest time that all delays together can take."""
        retries = self.attempts - 1
        growing = min(retries, self._doublings)
        bounds = (self.bound_seconds(attempt) for attempt in range(1, growing + 1))
        return sum(bounds) + (retries - growing) * self.bound_seconds(self.attempts)


def asked_seconds(error: BaseException) -> float:
    """Return how long the refusing side asks to wait, from 0 (also for nonsense) to 36 h.

    It says so in `retry_after_seconds` (hybridkit's errors), in `retry_after` (aiogram's), or by the `Retry-After` of
    an HTTP response, which is the error's `response` (httpx, requests) or has its headers in the error (aiohttp). Of a
    group the longest counts.
    """
    if isinstance(error, BaseExceptionGroup):
        return max(map(asked_seconds, _leaves(cast("BaseException", error))), default=0.0)
    said = _look(error, "retry_after_seconds"), _look(error, "retry_after"), _header(error)
    found = (seconds for value in said if (seconds := retry_after_seconds(value)) is not None)
    return min(max(next(found, 0.0), 0.0), MAX_DELAY_SECONDS)


def _is_permanent(error: BaseException) -> bool:
    """Return whether the same work would fail again: a stale version is read again by the next run."""
    permanent = isinstance(error, RejectedError | MisuseError | ResponseError)
    return permanent and not isinstance(error, StaleVersionError)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors of a group and of the groups in it, without the groups."""
    pending = [error]
    while pending:
        one = pending.pop()
        if isinstance(one, BaseExceptionGroup):
            pending += cast("BaseExceptionGroup[BaseException]", one).exceptions
        else:
            yield one


def retry_after_seconds(value: object) -> float | None:
    """Read a number or text of seconds, a time span, or an HTTP date as seconds from now; None for anything else.

    https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
    """
    try:
        match value:
            case bool():
                return None
            case timedelta():
                seconds = value.total_seconds()
            case int() | float() | Decimal():
                seconds = float(value)
            case str():
                seconds = _read_seconds(value)
            case _:
                return None
    except OverflowError:  # an integer beyond all floats
        return MAX_DELAY_SECONDS
    except ValueError:  # no date
        return None
    return seconds if math.isfinite(seconds) else None


def _read_seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:  # the date of C's asctime, which is obsolete, and in UTC
            moment = moment.replace(tzinfo=UTC)
        return (moment - datetime.now(UTC)).total_seconds()


def _header(error: BaseException) -> object:
    """Return the `Retry-After` of the response that the error is about, or None."""
    for answer in (_look(error, "response"), error):
        headers: Any = _look(answer, "headers")
        for name in ("Retry-After", "retry-after"):
            if (value := _tried(partial(getitem, headers, name))) is not None:
                return value
    return None


def _look(value: object, name: str) -> object:
    """Return the attribute, or None."""
    return _tried(partial(getattr, value, name, None))


def _tried(look: Callable[[], object]) -> object:
    """Return what the look-up finds, or None where it raises: a property of a foreign class may do anything."""
    try:
        return look()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - it is looked for on the chance that it is there
        return None
