"""Comparisons with values that BSON doesn't have: finer than a millisecond, or with more digits than it keeps.

Such a value lies between two that can be stored. It is replaced by the lower one, and the operator by the one that has
the same result for stored values.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import ROUND_FLOOR, Context, Decimal
from enum import Enum
from operator import is_
from typing import Any, Final

from hybridkit.codec import truncate_timestamp
from hybridkit.resources import And, Compare, Filter, Operator, Or

_BETWEEN: Final[Mapping[Operator, Operator]] = {"gt": "gt", "gte": "gt", "lt": "lte", "lte": "lte"}
_DECIMAL128: Final = Context(prec=34, rounding=ROUND_FLOOR, Emin=-6143, Emax=6144, clamp=1, traps=[])


def storable(compare: Compare) -> Filter:
    """Return the equivalent filter with values that BSON has; the same one where it has them already."""
    field, operator = compare.field, compare.operator
    match operator:
        case "eq" | "neq" | "gt" | "gte" | "lt" | "lte":
            kept, exact = floor(compare.value)
            if exact:
                return compare if kept is compare.value else Compare(field, operator, kept)
            # Parts that exclude each other, or that hold together for each value, but never for none.
            below, above = Compare(field, "lte", kept), Compare(field, "gt", kept)
            if operator == "eq":
                return And((below, above))
            return Or((below, above)) if operator == "neq" else Compare(field, _BETWEEN[operator], kept)
        case "in" if compare.value:
            found = tuple(kept for kept, exact in map(floor, compare.value) if exact)
            if not found:
                return storable(Compare(field, "eq", compare.value[0]))
            is_same = len(found) == len(compare.value) and all(map(is_, found, compare.value))
            return compare if is_same else Compare(field, "in", found)
        case _:
            return compare


def floor(value: Any) -> tuple[Any, bool]:
    """Return the greatest value of BSON that isn't greater, and whether it is the same value."""
    match value:
        case Enum() | bool():
            return value, True
        case datetime():
            kept = truncate_timestamp(value)
            return (value, True) if kept == value else (kept, False)
        case int() if -(2**63) <= value < 2**63:
            return value, True
        case int() | Decimal():
            number = value if isinstance(value, Decimal) else Decimal(value)
            floor = _DECIMAL128.plus(number)
            if floor.is_infinite() and floor > 0:
                floor = _DECIMAL128.next_minus(floor)
            return (number, True) if floor == number else (floor, False)
        case _:
            return value, True
