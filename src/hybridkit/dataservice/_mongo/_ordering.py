"""The order of a query on MongoDB, and the condition for what follows a position in it: both must compare alike.

MongoDB's `$sort` compares values of all types with each other, and of an array its least or greatest element, while
`$gt` in a filter finds values of one type only, and arrays by any of their elements. So a cursor asks by expressions,
which compare as `$sort` does all that is no array, whatever others have stored in a field.

A field of one declared type that every record has a value for is sorted as it is, which an index may serve; the cursor
also names the types and values that come into question, for the same index. Anything else, such as a path into a
document, is compared as one object that a stage computes.
"""

import math
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Final
from uuid import UUID

import bson
from bson import MaxKey, MinKey, ObjectId, Timestamp
from bson.binary import Binary
from bson.code import Code
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.errors import BSONError
from bson.int64 import Int64
from bson.regex import Regex

from hybridkit.dataservice._mongo._collection import ResourceCollection, stored_name
from hybridkit.dataservice._mongo._values import CODEC
from hybridkit.dataservice._store._annotations import alternatives
from hybridkit.errors import PageTokenError
from hybridkit.resources import Query

type Clause = dict[str, Any]

_COMPUTED: Final = "_hk_order"
_SCALARS: Final[Mapping[type, str]] = {
    bool: "bool",
    int: "number",
    float: "number",
    Decimal: "number",
    datetime: "date",
    str: "text",
    UUID: "text",
    date: "text",
    time: "text",
    timedelta: "text",
}
"""The stored type of each; in this order, as some are subclasses of others."""
_BRACKETS: Final[Sequence[tuple[tuple[type, ...], Sequence[int]]]] = (
    ((MinKey,), []),
    ((NoneType,), [10]),
    ((int, Int64, float, Decimal128), [1, 16, 18, 19]),
    ((str,), [2, 14]),
    ((dict, DBRef), [3]),
    ((list,), []),
    ((bytes, Binary, UUID), [5]),
    ((ObjectId,), [7]),
    ((bool,), [8]),
    ((datetime, DatetimeMS), [9]),
    ((Timestamp,), [17]),
    ((Regex,), [11]),
    ((Code,), [12, 13, 15]),
    ((MaxKey,), []),
)
"""The order of MongoDB's types, https://www.mongodb.com/docs/manual/reference/bson-type-comparison-order/: what
the driver makes of them, and their numbers. Arrays are found by `$gte`, as indexes don't know their type; the least and
the greatest, of which each is one value, by `$eq`."""
_PLACES: Final[Mapping[type, int]] = {kind: at for at, (kinds, _) in enumerate(_BRACKETS) for kind in kinds}


class Ordering:
    """The order of a query, and the condition for the documents after a position in it.

    Records without a value come last, or first when descending, as PostgreSQL has it. MongoDB has it the other way
    round, so fields that may be without one are sorted by whether they have it first, which no index serves.

    Args:
        collection: of the resource.
        query: has the order.
    """

    def __init__(self, collection: ResourceCollection, query: Query) -> None:
        self._resource = collection.resource
        self._pairs = query.total_order
        self._whole = {
            name for name, _ in self._pairs if collection.is_nullable(name) or not self._has_one_type(name)
        }

    def __repr__(self) -> str:
        return f"Ordering({self._pairs!r})"

    def _has_one_type(self, name: str) -> bool:
        """Return whether all values of the field are stored as one type that is no array."""
        if name == "id":
            return True
        if "." in name:
            return False
        declared = self._resource.record.model_fields[name].annotation
        kinds = {_stored_as(kind) for kind in alternatives(declared)}
        return len(kinds) == 1 and None not in kinds

    def stages(self) -> list[Clause]:
        """Return the stages of an aggregation that bring matched documents into order."""
        computed = {
            f"k{at}": _whole_value(name) for at, (name, _) in enumerate(self._pairs) if name in self._whole
        }
        added: list[Clause] = [{"$addFields": {_COMPUTED: computed}}] if computed else []
        return [*added, {"$sort": dict(self._keys())}]

    def _keys(self) -> Iterator[tuple[str, int]]:
        for at, (name, direction) in enumerate(self._pairs):
            key = f"{_COMPUTED}.k{at}" if name in self._whole else stored_name(name)
            yield key, _sign(direction)

    def has_no_place(self, stored: Mapping[str, Any]) -> bool:
        """Return whether a list was stored where one value is declared: there `$sort` takes one of its elements."""
        plain = [stored_name(name) for name, _ in self._pairs if name not in self._whole]
        return any(isinstance(stored.get(name), list) for name in plain)

    def position(self, stored: Mapping[str, Any]) -> Sequence[Any]:
        """Return the position of a document from the stages, as texts of BSON: JSON doesn't know all its types."""
        return [self._at(stored, at, name) for at, (name, _) in enumerate(self._pairs)]

    def _at(self, stored: Mapping[str, Any], at: int, name: str) -> str:
        value = stored[_COMPUTED][f"k{at}"] if name in self._whole else stored.get(stored_name(name))
        return b64encode(bson.encode({"": value}, codec_options=CODEC)).decode()

    def after(self, position: Sequence[Any]) -> Clause:
        """Return the condition for the documents after the position.

        Raises:
            PageTokenError: the position belongs to another order.
        """
        if len(position) != len(self._pairs):
            raise _another_order()
        values = [_decoded(text) for text in position]
        return {"$or": [self._after_at(index, values) for index in range(len(values))]}

    def _after_at(self, index: int, values: Sequence[Any]) -> Clause:
        """Match documents that are equal in every field before `index` and beyond the value in that one."""
        equal = [self._compares(self._pairs[at][0], values[at], 0) for at in range(index)]
        name, direction = self._pairs[index]
        return {"$and": [*equal, self._compares(name, values[index], _sign(direction))]}

    def _compares(self, name: str, value: Any, sign: int) -> Clause:
        """Match documents whose value comes after the given one (1), before it (-1), or neither (0)."""
        if name in self._whole:
            return {"$expr": _differs(_whole_value(name), value, sign)}
        stored = stored_name(name)
        found: Clause = {"$ifNull": [f"${stored}", None]}
        exactly = _differs(found, value, sign)
        if sign == 0:
            return {"$and": [_near(stored, value, "$eq"), {"$expr": exactly}]}
        # Arrays come too, so that none is passed over in silence: see has_no_place.
        others: Clause = {"$or": [*_beyond(stored, value, sign), {stored: {"$gte": []}}]}
        return {"$and": [others, {"$expr": {"$or": [{"$isArray": [found]}, exactly]}}]}


def _sign(direction: str) -> int:
    return 1 if direction == "asc" else -1


def _stored_as(kind: Any) -> str | None:
    """Return the stored type of a type's values; None where it isn't known, or is an array or object."""
    if not isinstance(kind, type):
        return None
    if issubclass(kind, Enum):
        found = {_stored_as(type(member.value)) for member in kind}
        return found.pop() if len(found) == 1 else None
    return next((stored for scalar, stored in _SCALARS.items() if issubclass(kind, scalar)), None)


def _whole_value(name: str) -> Clause:
    """Return an object that sorts values as SQL does: first by whether there is one, then by the value itself."""
    value: Clause = {"$ifNull": [f"${stored_name(name)}", None]}
    return {"none": {"$cond": [{"$eq": [value, None]}, 1, 0]}, "value": value}


def _differs(found: Clause, value: Any, sign: int) -> Clause:
    """Return an expression: the found value is greater (1), less (-1) or the same (0), of which one always holds."""
    return {"$eq": [{"$cmp": [found, {"$literal": value}]}, sign]}


def _beyond(stored: str, value: Any, sign: int) -> Iterator[Clause]:
    """Yield conditions that an index serves; for every document on that side of the value one of them holds."""
    own = _PLACES[type(value)]
    yield _near(stored, value, "$gt" if sign > 0 else "$lt")
    if sign < 0 and own == _PLACES[float]:
        yield {stored: {"$eq": math.nan}}
    if sign < 0 and own > _PLACES[NoneType]:
        yield {stored: {"$eq": None}}
    others = _BRACKETS[own + 1 :] if sign > 0 else _BRACKETS[:own]
    if types := [number for _, numbers in others for number in numbers]:
        yield {stored: {"$type": types}}
    yield {stored: {"$eq": MaxKey() if sign > 0 else MinKey()}}


def _near(stored: str, value: Any, operator: str) -> Clause:
    """Return a condition that an index serves; it holds for every value of that type for which the operator holds."""
    match value:
        case float() | Decimal128() if Decimal(str(value)).is_nan():
            pass
        case Code():
            pass
        case None | MinKey() | MaxKey():
            return {stored: {"$eq": value}}
        case str() | bool() | int() | float() | Decimal128() | datetime() | ObjectId():
            return {stored: {operator: value}}
        case _:
            pass
    return {stored: {"$type": list(_BRACKETS[_PLACES[type(value)]][1])}}


def _decoded(text: Any) -> Any:
    try:
        return bson.decode(b64decode(text), CODEC)[""]  # pyright: ignore[reportUnknownMemberType]
    except (TypeError, ValueError, KeyError, Base64Error, BSONError):
        raise _another_order() from None


def _another_order() -> PageTokenError:
    return PageTokenError("the page token belongs to another order", pointer="/page_token")
