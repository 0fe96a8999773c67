"""The order of a query on MongoDB, and the cursor that goes on in it: both have to compare alike.

MongoDB's `$sort` compares values of all types with each other, and of an array its least or greatest element, while
`$gt` in a filter finds values of one type only, and arrays by any of their elements. A field of one declared type
knows no such difference, and its order and cursor may use an index. Anything else, such as a path into a document, is
compared as one object that a stage computes: there whole values are compared, as an expression of the cursor does too.
"""

import math
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

import bson
from bson.errors import BSONError
from pydantic import TypeAdapter, ValidationError

from hybridkit.dataservice._annotations import alternatives
from hybridkit.dataservice._mongo_collection import ResourceCollection, stored_name
from hybridkit.dataservice._mongo_values import CODEC, to_bson
from hybridkit.errors import PageTokenError
from hybridkit.queries import Query

__all__ = ["Ordering"]

type Clause = dict[str, Any]

_NOTHING: Final[Clause] = {"_id": {"$in": []}}
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
"""What these are stored as; in this order, as some are others too."""


class Ordering:
    """The order of a query, and what comes after a position in it.

    Records without a value come last, or first when descending, as PostgreSQL has it. MongoDB has it the other way
    round, so such fields are sorted by whether they have a value first, which no index serves.

    Args:
        collection: of the resource.
        query: says the order; the id is added at its end.
    """

    def __init__(self, collection: ResourceCollection, query: Query) -> None:
        self._collection = collection
        self._resource = collection.resource
        pairs = query.order if any(name == "id" for name, _ in query.order) else (*query.order, ("id", "asc"))
        self._pairs = pairs
        self._nullable = {name for name, _ in pairs if collection.is_nullable(name)}
        self._whole = {name for name, _ in pairs if not self._has_one_type(name)}

    def __repr__(self) -> str:
        return f"Ordering({self._pairs!r})"

    def _has_one_type(self, name: str) -> bool:
        """Whether all its values are stored as one type, which is no array."""
        if name == "id":
            return True
        if "." in name:
            return False
        kinds = {_stored_as(kind) for kind in alternatives(self._annotation(name))}
        return len(kinds) == 1 and None not in kinds

    def stages(self) -> list[Clause]:
        """The stages of an aggregation that bring matched documents into order."""
        computed: Clause = {}
        for at, (name, _) in enumerate(self._pairs):
            if name in self._whole:
                computed[f"k{at}"] = _whole_value(name)
            elif name in self._nullable:
                computed[f"k{at}"] = _has_none(name)
        added: list[Clause] = [{"$addFields": {_COMPUTED: computed}}] if computed else []
        return [*added, {"$sort": dict(self._keys())}]

    def _keys(self) -> Iterator[tuple[str, int]]:
        for at, (name, direction) in enumerate(self._pairs):
            sign = 1 if direction == "asc" else -1
            if name in self._whole or name in self._nullable:
                yield f"{_COMPUTED}.k{at}", sign
            if name not in self._whole:
                yield stored_name(name), sign

    def position(self, stored: Mapping[str, Any]) -> Sequence[Any]:
        """Where a document that the stages gave stands, for a token."""
        return [self._at(stored, at, name) for at, (name, _) in enumerate(self._pairs)]

    def _at(self, stored: Mapping[str, Any], at: int, name: str) -> Any:
        if name in self._whole:
            return b64encode(bson.encode(stored[_COMPUTED][f"k{at}"], codec_options=CODEC)).decode()
        value = self._collection.value(stored, name) if name == "id" or name in stored else None
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    def after(self, position: Sequence[Any]) -> Clause:
        """The documents that come after that one.

        Raises:
            PageTokenError: a position of another order.
        """
        if len(position) != len(self._pairs):
            raise _another_order()
        values = [self._parsed(name, value) for (name, _), value in zip(self._pairs, position, strict=True)]
        return {"$or": [self._after_at(index, values) for index in range(len(values))]}

    def _after_at(self, index: int, values: Sequence[Any]) -> Clause:
        """Equal in every field before `index`, and beyond in that one."""
        equal = [self._same(self._pairs[at][0], values[at]) for at in range(index)]
        return {"$and": [*equal, self._beyond(*self._pairs[index], values[index])]}

    def _same(self, name: str, value: Any) -> Clause:
        if name in self._whole:
            return _compares(name, value, 0)
        return {stored_name(name): {"$eq": value}}

    def _beyond(self, name: str, direction: str, value: Any) -> Clause:
        if name in self._whole:
            return _compares(name, value, 1 if direction == "asc" else -1)
        stored = stored_name(name)
        if direction == "desc":
            return {stored: {"$ne": None}} if value is None else _less(stored, value)
        if value is None:
            return _NOTHING
        beyond = _greater(stored, value)
        return {"$or": [beyond, {stored: {"$eq": None}}]} if name in self._nullable else beyond

    def _parsed(self, name: str, value: Any) -> Any:
        """A value of the token, which JSON has flattened, as it is stored."""
        if name in self._whole:
            return _decoded(value)
        if value is None and name in self._nullable:
            return None
        try:
            if name == "id":
                return to_bson(self._resource.kept_id(str(value)))
            adapter: TypeAdapter[Any] = TypeAdapter(self._annotation(name))
            return to_bson(adapter.validate_python(value))
        except ValidationError:
            raise _another_order() from None

    def _annotation(self, name: str) -> Any:
        return self._resource.record.model_fields[name].annotation


def _stored_as(kind: Any) -> str | None:
    """What values of that type are stored as; None where there is no telling, or an array or object."""
    if not isinstance(kind, type):
        return None
    if issubclass(kind, Enum):
        found = {_stored_as(type(member.value)) for member in kind}
        return found.pop() if len(found) == 1 else None
    return next((stored for scalar, stored in _SCALARS.items() if issubclass(kind, scalar)), None)


def _has_none(name: str) -> Clause:
    return {"$cond": [{"$eq": [{"$ifNull": [f"${stored_name(name)}", None]}, None]}, 1, 0]}


def _whole_value(name: str) -> Clause:
    """An object that compares as the value does: whether there is none, then the value itself."""
    return {"none": _has_none(name), "value": {"$ifNull": [f"${stored_name(name)}", None]}}


def _compares(name: str, value: Any, sign: int) -> Clause:
    """The documents whose value comes after that one (1), before it (-1), or neither (0); one of these always holds."""
    return {"$expr": {"$eq": [{"$cmp": [_whole_value(name), {"$literal": value}]}, sign]}}


def _greater(stored: str, value: Any) -> Clause:
    """NaN is the least number, and for a filter no number is greater."""
    return {stored: {"$gte": -math.inf} if _is_nan(value) else {"$gt": value}}


def _less(stored: str, value: Any) -> Clause:
    if _is_nan(value):
        return _NOTHING
    less = {stored: {"$lt": value}}
    return {"$or": [less, {stored: {"$eq": math.nan}}]} if isinstance(value, float) else less


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _decoded(text: Any) -> Any:
    try:
        return bson.decode(b64decode(text), CODEC)  # pyright: ignore[reportUnknownMemberType]
    except (TypeError, ValueError, Base64Error, BSONError):
        raise _another_order() from None


def _another_order() -> PageTokenError:
    return PageTokenError("the page token belongs to another order", pointer="/page_token")
