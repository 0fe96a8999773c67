"""Compare columns with values that they can't have: between two of their steps, or beyond their ends.

An integer column has whole numbers of 64 bits; a timestamp is stored to the microsecond and shown to the millisecond;
values that SQL has stored may lie beyond the years that are shown. A value to compare with is put between two steps of
what readers see, so that 3 is less than 3.5, and no timestamp is later than the one that is shown for it. The column
stands alone on its side of each comparison, so that an index can be used.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import MAX_EMAX, MIN_EMIN, ROUND_FLOOR, Context, Decimal
from enum import Enum
from functools import partial
from math import inf
from typing import Any, Final

from sqlalchemy import Date, DateTime, Float, Integer, Numeric, Time
from sqlalchemy.types import TypeEngine

from hybridkit.codec import in_utc
from hybridkit.dataservice._postgres._types._parameters import bare, is_real

FIRST_MOMENT: Final = datetime(1, 1, 1, tzinfo=UTC)
LAST_MOMENT: Final = datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)
DAY: Final = timedelta(days=1)
MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**63 - 1
MAX_REAL: Final = 3.4028234663852886e38
MAX_NUMERIC_DIGITS: Final = 131_072
"""The most digits before the decimal point."""
MAX_NUMERIC_SCALE: Final = 16_383
"""The most digits after the decimal point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The position of a value: at a step of what is shown, or between it and the next one.

    Attributes:
        point: the value, if it is at the step; None between two.
        start: the least stored value that is shown as this step; None if no step is before it.
        end: the least stored value that is shown as a later step, or with `closed` the last that isn't; None if no step
            is after it.
        closed: whether `end` still belongs to the step.
        before_all: whether the value lies before every step.
    """

    point: Any = None
    start: Any = None
    end: Any = None
    closed: bool = False
    before_all: bool = False


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a column.

    Attributes:
        find: a function that returns the step of a value.
        right: the SQL of the value to compare with, or with `[]` of several.
        left: the SQL of the column as it is compared.
        shown: the SQL of the column as it is shown, to look it up in a list.
    """

    find: Callable[[Any], Step]
    right: str = "{0}"
    left: str = "{0}"
    shown: str = "{0}"

    def compared(self, column: str, operator: str, value: Any, add: Callable[[Any], str]) -> str:
        """Write the condition; as with every comparison in SQL, it is NULL if the column is.

        Args:
            column: the SQL of the column.
            operator: `eq neq gt gte lt lte`, or `in` with several values.
            value: the value to compare with.
            add: adds a value to the statement's arguments, and returns its placeholder.
        """
        left = self.left.format(column)
        if operator == "in":
            points = [point for each in value if (point := self.find(each).point) is not None]
            shown = self.shown.format(column)
            return f"{shown} = ANY({self._cast(add(points), '[]')})" if points else f"{left} <> {left}"
        step = self.find(value)
        match operator:
            case "eq" | "neq" if step.closed and step.point is not None and step.point == step.start:
                return f"{left} {'=' if operator == 'eq' else '<>'} {self._cast(add(step.point))}"
            case "eq" if step.point is not None:
                return f"({self._from(left, step, add)} AND {self._until(left, step, add)})"
            case "neq" if step.point is not None:
                return f"({self._before(left, step, add)} OR {self._after(left, step, add)})"
            case "eq" | "neq":
                return f"{left} {'<>' if operator == 'eq' else '='} {left}"
            case "gte" if step.point is not None:
                return self._from(left, step, add)
            case "lt" if step.point is not None:
                return self._before(left, step, add)
            case "gt" | "gte":
                return self._after(left, step, add)
            case _:
                return self._until(left, step, add)

    def _from(self, left: str, step: Step, add: Callable[[Any], str]) -> str:
        return f"{left} = {left}" if step.start is None else f"{left} >= {self._cast(add(step.start))}"

    def _before(self, left: str, step: Step, add: Callable[[Any], str]) -> str:
        return f"{left} <> {left}" if step.start is None else f"{left} < {self._cast(add(step.start))}"

    def _until(self, left: str, step: Step, add: Callable[[Any], str]) -> str:
        if step.end is None:
            return f"{left} {'<>' if step.before_all else '='} {left}"
        return f"{left} {'<=' if step.closed else '<'} {self._cast(add(step.end))}"

    def _after(self, left: str, step: Step, add: Callable[[Any], str]) -> str:
        if step.end is None:
            return f"{left} {'=' if step.before_all else '<>'} {left}"
        return f"{left} {'>' if step.closed else '>='} {self._cast(add(step.end))}"

    def _cast(self, placeholder: str, several: str = "") -> str:
        return self.right.format(placeholder, several)


def steps_of(kind: TypeEngine[Any], value: Any) -> Steps | None:
    """Return the steps of a column for a value of this type; None if the two are simply compared.

    Args:
        kind: the column's type; a custom type has no steps.
        value: the value to compare with, or one of several.
    """
    if not type(kind).__module__.startswith("sqlalchemy.") or isinstance(value, Enum | bool):
        return None
    match bare(kind), value:
        case (Integer(), int() | float() | Decimal()):
            return _INTEGERS
        case (Float() as own, int() | float() | Decimal()) if not own.asdecimal:
            return _REALS if is_real(kind) else _FLOATS
        case (Numeric() as own, int() | float() | Decimal()):
            return _NUMERICS if own.asdecimal else _NUMERIC_FLOATS
        case (DateTime() as own, datetime()):
            return _MOMENTS if own.timezone else _LOCAL_MOMENTS
        case (Date(), date()) if not isinstance(value, datetime):
            return _DAYS
        case (Time() as own, time()) if not own.timezone and value.tzinfo is None:
            return _TIMES
        case _:
            return None


def _point(value: Any, *, is_last: bool = False) -> Step:
    """Return the step of a value that a column can have; the last one stands for everything beyond, too."""
    return Step(point=value, start=value, end=None if is_last else value, closed=not is_last)


def _after(value: Any) -> Step:
    """Return the step between a value and the next one."""
    return Step(end=value, closed=True)


def _integer(value: Any) -> Step:
    if value > MAX_INTEGER:
        return Step()
    if value < MIN_INTEGER:
        return Step(before_all=True)
    floor = int(value) - (int(value) > value)
    return _point(floor) if floor == value else _after(floor)


def _float(value: Any, *, largest: float = sys.float_info.max) -> Step:
    """Return the step of the nearest float, as a float's text stands for the float."""
    try:
        found = float(value)
    except OverflowError:
        found = inf if value > 0 else -inf
    if found > largest:
        return Step(end=inf)  # SQL may have put an infinity there
    return _after(-inf) if found < -largest else _point(found)


def _numeric(value: Any) -> Step:
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if number and number.adjusted() >= MAX_NUMERIC_DIGITS:
        return Step() if number > 0 else Step(before_all=True)
    floor = number.quantize(_SMALLEST, context=_EXACT) if number.adjusted() < 0 else number
    if number.is_zero() or floor == number:
        return _point(number or Decimal(0))
    return _after(floor)


_EXACT: Final = Context(prec=2 * MAX_NUMERIC_SCALE, rounding=ROUND_FLOOR, Emax=MAX_EMAX, Emin=MIN_EMIN)
_SMALLEST: Final = Decimal((0, (1,), -MAX_NUMERIC_SCALE))


def _moment(value: datetime, *, with_zone: bool) -> Step:
    moment = in_utc(value)
    floor = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    zone = UTC if with_zone else None
    is_last = floor == LAST_MOMENT
    return Step(
        point=floor.replace(tzinfo=zone) if floor == moment else None,
        start=None if floor == FIRST_MOMENT else floor.replace(tzinfo=zone),
        end=None if is_last else (floor + MILLISECOND).replace(tzinfo=zone),
    )


def _day(value: date) -> Step:
    is_first, is_last = value == date.min, value == date.max
    return Step(point=value, start=None if is_first else value, end=None if is_last else value + DAY)


def _time(value: time) -> Step:
    return _point(value, is_last=value == time.max)  # `24:00` is shown as this one


def _shown(kind: str, first: object, last: object, value: str = "{0}") -> str:
    clamped = f"LEAST(GREATEST({value}, {kind} '{first}'), {kind} '{last}')"
    return f"CASE WHEN {{0}} IS NOT NULL THEN {clamped} END"


def _moments(*, with_zone: bool) -> Steps:
    kind, zone = ("timestamptz", UTC) if with_zone else ("timestamp", None)
    first, last = FIRST_MOMENT.replace(tzinfo=zone), LAST_MOMENT.replace(tzinfo=zone)
    shown = _shown(kind, first, last, "date_trunc('milliseconds', {0})")
    return Steps(partial(_moment, with_zone=with_zone), shown=shown)


_INTEGERS: Final = Steps(_integer, "CAST({0} AS bigint{1})")
_FLOATS: Final = Steps(_float)
_REALS: Final = Steps(partial(_float, largest=MAX_REAL))
_NUMERICS: Final = Steps(_numeric, "CAST({0} AS numeric{1})")
_NUMERIC_FLOATS: Final = Steps(_float, "CAST({0} AS float8{1})", "CAST({0} AS float8)", "CAST({0} AS float8)")
_MOMENTS: Final = _moments(with_zone=True)
_LOCAL_MOMENTS: Final = _moments(with_zone=False)
_DAYS: Final = Steps(_day, shown=_shown("date", date.min, date.max))
_TIMES: Final = Steps(_time, shown=_shown("time", time.min, time.max))
