"""Rates: how much of something is allowed in a time, and how much of it at once."""

import re
from dataclasses import dataclass
from typing import Any, Final, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema

from hybridkit.errors import DeclarationError
from hybridkit.settings._text_schema import text_schema

_PERIODS: Final = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_SHORT: Final = {"s": "second", "m": "minute", "h": "hour", "d": "day"}
_FORM: Final = re.compile(r"([0-9]{1,9})/([a-z]+)(?:;burst=([0-9]{1,9}))?")

MAX_PER_SECOND: Final = 10_000
"""The highest rate. Intervals are whole microseconds, which makes this one at most 1 % slower than it says."""
MAX_REFILL_SECONDS: Final = 366 * 86_400


@dataclass(frozen=True, slots=True)
class Rate:
    """A number of requests per period, and how many of them may come at once.

    Requests are let through at even intervals, as by a bucket that holds `burst` and is refilled with `count` per
    period. So no stretch of time sees more than `burst`, and `count` for each period that it lasts.

    Attributes:
        count: the requests per period.
        period: `second`, `minute`, `hour` or `day`.
        burst: the requests that may come at once after a quiet time.

    A field of a settings class may be a `Rate`; its variable is text, as for `parse`.
    """

    count: int
    period: str
    burst: int

    def __post_init__(self) -> None:
        """Refuse a rate that can't be kept.

        Raises:
            DeclarationError: a value is out of its range; the message names it.
        """
        if self.period not in _PERIODS:
            raise DeclarationError(
                f"the period of a rate is one of {', '.join(_PERIODS)}, not {self.period!r}"
            )
        if self.count < 1 or self.burst < 1:
            raise DeclarationError(
                f"a rate lets at least 1 through, and at least 1 at once, not {self.count} and {self.burst}"
            )
        if self.count > MAX_PER_SECOND * _PERIODS[self.period]:
            raise DeclarationError(
                f"{self.count}/{self.period} is more than the {MAX_PER_SECOND} per second that can be told apart"
            )
        if self.burst * self.interval_microseconds > MAX_REFILL_SECONDS * 1_000_000:
            raise DeclarationError(
                f"a burst of {self.burst} at {self.count}/{self.period} takes over a year to refill"
            )

    @classmethod
    def parse(cls, text: str, *, burst: int | None = None) -> Self:
        """Read a rate such as `100/minute`; `str()` of a rate is read again as the same.

        Args:
            text: a number, a slash, and `s`, `second`, `m`, `minute`, `h`, `hour`, `d` or `day`; then
                `;burst=` with a number, or nothing.
            burst: how many may come at once; as many as the period allows if neither says it.

        Raises:
            DeclarationError: the text has another form, says the burst a second time, or a value is out of its range.
        """
        found = _FORM.fullmatch(text)
        period = found and _SHORT.get(found[2], found[2])
        if found is None or period not in _PERIODS:
            raise DeclarationError(
                f"a rate is a number per s, m, h or d, such as 100/minute or 5/s;burst=20, not {text[:80]!r}"
            )
        if burst is not None and found[3] is not None:
            raise DeclarationError(
                f"the burst of {text!r} is said twice: leave out burst={burst}, or that in the text"
            )
        count = int(found[1])
        if burst is None:
            burst = count if found[3] is None else int(found[3])
        return cls(count, period, burst)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let a field of a model or of the settings be a rate, read from its text: `UPLOAD_RATE=10/minute`."""
        return text_schema(cls, cls.parse)

    def __str__(self) -> str:
        plain = f"{self.count}/{self.period}"
        return plain if self.burst == self.count else f"{plain};burst={self.burst}"

    @property
    def period_seconds(self) -> int:
        """The length of the period."""
        return _PERIODS[self.period]

    @property
    def interval_microseconds(self) -> int:
        """The time in which the next request becomes free, rounded up, so that the rate is never exceeded."""
        return -(-_PERIODS[self.period] * 1_000_000 // self.count)
