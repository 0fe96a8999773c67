"""Cron expressions: five fields in a time zone, and what they mean when the clock is put forward or back."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema

from hybridkit.errors import DeclarationError
from hybridkit.settings._text_schema import text_schema

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_SEARCH_DAYS: Final = 41 * 366
"""29 February on a given day of the week comes after 40 years at the latest, across a year such as 2100."""
_MINUTE: Final = timedelta(minutes=1)
_DAY: Final = timedelta(days=1)
_MAX_CHARS: Final = 200


class _Field(NamedTuple):
    name: str
    first: int
    last: int
    names: tuple[str, ...] = ()


_FIELDS: Final = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of the week", 0, 7, _DAYS),  # 0 and 7 are Sunday
)


class Cron:
    """The moments of a cron expression, in a time zone.

    `minute hour day-of-month month day-of-week`, each `*`, a number, a range `a-b`, a list `a,b`, with steps `/n`;
    months and days of the week also by their English names of three letters. When both the day of the month and that of
    the week are restricted (neither begins with `*`), a day that fits either of them counts, as in crontab(5).

    When the clocks change, an expression with a fixed time of day (neither minute nor hour begins with `*`) has its
    moment on each day once: one that falls into the hour that is left out comes at the end of that gap, and one in the
    hour that comes twice comes the first time. Any other expression goes by what the clock shows: nothing in the gap,
    and both times in the hour that comes twice.

    Args:
        expression: the five fields.
        time_zone: the name of a zone of the IANA database, such as `Europe/Berlin`.

    Raises:
        DeclarationError: the expression can't be read or has no moments, or the zone is not known.
    """

    def __init__(self, expression: str, *, time_zone: str = "UTC") -> None:
        self.expression = " ".join(expression.split())
        self.time_zone = time_zone
        try:
            self._zone = ZoneInfo(time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise DeclarationError(
                f"there is no time zone {time_zone!r}: use a name such as Europe/Berlin, and where the system has no"
                " database of time zones, install `tzdata`"
            ) from None
        parts = self.expression.lower().split()
        if len(parts) != len(_FIELDS) or len(self.expression) > _MAX_CHARS:
            raise self._unreadable("has five fields: minute hour day-of-month month day-of-week")
        minutes, hours, days, months, weekdays = (
            self._values(field, part) for field, part in zip(_FIELDS, parts, strict=True)
        )
        self._minutes, self._hours = sorted(minutes), sorted(hours)
        self._days, self._months = days, months
        self._weekdays = {day % 7 for day in weekdays}
        self._is_fixed = not (parts[0].startswith("*") or parts[1].startswith("*"))
        self._either_day = not (parts[2].startswith("*") or parts[4].startswith("*"))
        next(self._matching_days(date(2000, 1, 1)))

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let a field of the settings be a cron expression in UTC, read from its text."""
        return text_schema(cls, cls, text=lambda cron: cron.expression)

    def __repr__(self) -> str:
        return f"Cron({self.expression!r}, time_zone={self.time_zone!r})"

    def __str__(self) -> str:
        return f"{self.expression} ({self.time_zone})"

    def next_after(self, moment: datetime) -> datetime:
        """Return the first moment of the expression after another one, in UTC."""
        return self._next_fixed(moment) if self._is_fixed else self._next_shown(moment)

    def _next_fixed(self, moment: datetime) -> datetime:
        # A moment in a gap moves to its end, which may be on the next day.
        days = self._matching_days(moment.astimezone(self._zone).date() - _DAY)
        while True:
            day = next(days)
            for hour in self._hours:
                for minute in self._minutes:
                    found = self._instant(datetime.combine(day, time(hour, minute)))
                    if found > moment:
                        return found

    def _next_shown(self, moment: datetime) -> datetime:
        """Walk along the time that passes, and look at what the clock shows."""
        at = moment.astimezone(UTC).replace(second=0, microsecond=0) + _MINUTE
        days = self._matching_days(at.astimezone(self._zone).date())
        while True:
            day = next(days)
            at = max(at, self._instant(datetime.combine(day, time())))
            while (shown := at.astimezone(self._zone)).date() <= day:
                if shown.hour not in self._hours:
                    at += timedelta(minutes=60 - shown.minute)
                elif shown.minute not in self._minutes or shown.date() < day:
                    at += _MINUTE
                else:
                    return at

    def _matching_days(self, first: date) -> Iterator[date]:
        for offset in range(_LONGEST_SEARCH_DAYS):
            day = first + timedelta(days=offset)
            if day.month not in self._months:
                continue
            by_number, by_weekday = day.day in self._days, day.isoweekday() % 7 in self._weekdays
            if (by_number or by_weekday) if self._either_day else (by_number and by_weekday):
                yield day
        raise self._unreadable("has no day at all")

    def _instant(self, shown: datetime) -> datetime:
        """Return the first moment at which the clock shows this, or the end of the gap that leaves it out."""
        local = shown.replace(tzinfo=self._zone)
        found = local.astimezone(UTC)
        if found.astimezone(self._zone).replace(tzinfo=None) == shown:
            return found
        # In a gap the two readings of `fold` lie on both sides of its end.
        before, after = local.replace(fold=1).astimezone(UTC), found
        offset = after.astimezone(self._zone).utcoffset()
        while after - before > timedelta(seconds=1):
            middle = before + (after - before) / 2
            if middle.astimezone(self._zone).utcoffset() == offset:
                after = middle
            else:
                before = middle
        return after.replace(microsecond=0)

    def _values(self, field: _Field, text: str) -> set[int]:
        """Read a field.

        Raises:
            DeclarationError: it has a part that can't be read, or a value out of its range.
        """
        values: set[int] = set()
        for part in text.split(","):
            span, has_step, step_text = part.partition("/")
            low_text, is_range, high_text = span.partition("-")
            if span == "*":
                low, high = field.first, min(field.last, 6) if field.names == _DAYS else field.last
            else:
                low = self._number(field, low_text)
                # `5/10` is `5-59/10`.
                high = self._number(field, high_text) if is_range else field.last if has_step else low
            if not is_number(step_text or "1") or int(step_text or "1") < 1 or (has_step and not step_text):
                raise self._unreadable(f"has the step {step_text!r} in its {field.name}")
            if low > high:
                raise self._unreadable(f"has the range {span!r} in its {field.name}, which is empty")
            values.update(range(low, high + 1, int(step_text or "1")))
        return values

    def _number(self, field: _Field, text: str) -> int:
        if text in field.names:
            return field.names.index(text) + field.first
        if not is_number(text) or not field.first <= int(text) <= field.last:
            raise self._unreadable(
                f"has {text!r} as its {field.name}, which is from {field.first} to {field.last}"
            )
        return int(text)

    def _unreadable(self, reason: str) -> DeclarationError:
        return DeclarationError(f"the cron expression {self.expression[:_MAX_CHARS]!r} {reason}")


def is_number(text: str) -> bool:
    """Return whether a text is up to four ASCII digits, with none of the other digits of Unicode."""
    return text.isascii() and text.isdigit() and len(text) <= 4
