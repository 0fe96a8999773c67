"""Filters and orders over records in memory, with SQL's rule: a condition on no value is neither true nor false."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import cmp_to_key
from typing import Any, Final, assert_never, cast

import orjson
from pydantic import TypeAdapter, ValidationError

from hybridkit.codec import truncate_timestamp
from hybridkit.errors import InvalidQueryError, PageTokenError
from hybridkit.resources import And, Compare, Filter, Not, Or, Query
from hybridkit.resources._filters import pattern_tokens
from hybridkit.resources._resource import AnyResource

type Values = Mapping[str, Any]


def value_at(values: Values, path: str) -> Any:
    """Return the value of a field, or of a dotted path into a document; None where there is none."""
    found: Any = values
    for name in path.split("."):
        found = cast("Values", found).get(name) if isinstance(found, Mapping) else None
    if isinstance(found, datetime):
        return truncate_timestamp(found)  # as it is shown
    return found.value if isinstance(found, Enum) else found


def fits(where: Filter | None, values: Values) -> bool:
    """Return whether the filter holds; it doesn't where it is neither true nor false."""
    return where is None or _truth(where, values) is True


def _truth(where: Filter, values: Values) -> bool | None:
    match where:
        case Compare():
            return _compare(where, value_at(values, where.field))
        case And():
            found = [_truth(part, values) for part in where.parts]
            return False if False in found else None if None in found else True
        case Or():
            found = [_truth(part, values) for part in where.parts]
            return True if True in found else None if None in found else False
        case Not():
            found_one = _truth(where.part, values)
            return None if found_one is None else not found_one
        case _:
            assert_never(where)


def _compare(compare: Compare, value: Any) -> bool | None:
    operator, wanted = compare.operator, compare.value
    if operator == "is":
        return _is(compare, value)
    if operator == "in" and not wanted:
        return False  # nothing is in an empty list, not even what has no value
    if value is None:
        return None
    match operator:
        case "eq":
            return _equal(value, wanted)
        case "neq":
            return not _equal(value, wanted)
        case "in":
            return _has(wanted, value)
        case "contains" | "overlaps":
            found = [_has(value, one) for one in wanted]
            return all(found) if operator == "contains" else any(found)
        case "gt" | "gte" | "lt" | "lte":
            return _kind(value) == _kind(wanted) and _ORDERED[operator](compared(value, wanted))
        case "like" | "ilike":
            return _pattern(wanted, ignore_case=operator == "ilike").fullmatch(_text(value)) is not None
        case _:
            assert_never(operator)


_ORDERED: Final[Mapping[str, Callable[[int], bool]]] = {
    "gt": lambda sign: sign > 0,
    "gte": lambda sign: sign >= 0,
    "lt": lambda sign: sign < 0,
    "lte": lambda sign: sign <= 0,
}


def _is(compare: Compare, value: Any) -> bool:
    if compare.value is not None and "." not in compare.field and not isinstance(value, bool | None):
        raise InvalidQueryError(f"{compare.field} is neither true nor false")
    return value is compare.value


def _has(values: Sequence[Any], wanted: Any) -> bool:
    return any(_equal(value, wanted) for value in values)


def _equal(left: Any, right: Any) -> bool:
    return _kind(left) == _kind(right) and bool(_plain(left) == _plain(right))


def _pattern(pattern: str, *, ignore_case: bool) -> re.Pattern[str]:
    expression = "".join(_WILDCARDS.get(token) or re.escape(token[-1]) for token in pattern_tokens(pattern))
    return re.compile(expression, re.DOTALL | (re.IGNORECASE if ignore_case else 0))


_WILDCARDS: Final = {"%": ".*", "_": "."}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def compared(left: Any, right: Any) -> int:
    """Compare two values: below 0 where the left one comes first, above 0 where it comes last; None comes last."""
    if left is None or right is None:
        return (left is None) - (right is None)
    left_kind, right_kind = _kind(left), _kind(right)
    if left_kind != right_kind:
        return 1 if left_kind > right_kind else -1
    left, right = _plain(left), _plain(right)
    return int(left > right) - int(left < right)


def _kind(value: Any) -> int:
    """Return the number of a kind of values that can be compared with each other; documents mix kinds."""
    match value:
        case bool():
            return 2
        case int() | float() | Decimal():
            return 1
        case list():
            return _DOCUMENTS
        case dict():
            return _DOCUMENTS + 1
        case _:
            return 0


_DOCUMENTS: Final = 3


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if _kind(value) >= _DOCUMENTS:
        return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS)
    return value


class Ordering:
    """The total order of a query over records in memory.

    Records without a value come last, or first where the order descends.
    """

    def __init__(self, resource: AnyResource, query: Query) -> None:
        self._resource = resource
        self._pairs = query.total_order
        self._key = cmp_to_key(self._sign)

    def position(self, values: Values) -> Sequence[Any]:
        """Return the position of a record in the order."""
        return [value_at(values, name) for name, _ in self._pairs]

    def key(self, values: Values) -> Any:
        """Return the key to sort a record by."""
        return self._key(self.position(values))

    def is_after(self, values: Values, position: Sequence[Any]) -> bool:
        """Return whether a record comes after the position."""
        return self._sign(self.position(values), position) > 0

    def read(self, position: Sequence[Any]) -> Sequence[Any]:
        """Read a position from a page token, with values of the fields' types.

        Raises:
            PageTokenError: the position belongs to another order.
        """
        if len(position) != len(self._pairs):
            raise _another_order()
        return [self._parsed(name, value) for (name, _), value in zip(self._pairs, position, strict=True)]

    def _sign(self, left: Sequence[Any], right: Sequence[Any]) -> int:
        for (_, direction), one, other in zip(self._pairs, left, right, strict=True):
            if sign := compared(one, other):
                return sign if direction == "asc" else -sign
        return 0

    def _parsed(self, name: str, value: Any) -> Any:
        if value is None or "." in name:
            return value
        if name == "id":
            return self._resource.kept_id(str(value))
        try:
            parsed = TypeAdapter(self._resource.record.model_fields[name].annotation).validate_python(value)
        except ValidationError:
            raise _another_order() from None
        return parsed.value if isinstance(parsed, Enum) else parsed


def _another_order() -> PageTokenError:
    return PageTokenError("the page token belongs to another order", pointer="/page_token")
