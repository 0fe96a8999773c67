"""From a query's tree to MongoDB's: declared fields, operators from a closed list, values that are never operators.

A field without a value compares as SQL's NULL does: neither equal nor unequal to anything, so `neq` and `not` leave
such records out. MongoDB's own operators would let them in, so negations are pushed down to the single conditions.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, assert_never

from pydantic import TypeAdapter, ValidationError

from hybridkit.dataservice._mongo_collection import ResourceCollection, stored_name
from hybridkit.dataservice._mongo_steps import storable
from hybridkit.dataservice._mongo_values import to_bson
from hybridkit.errors import PageTokenError
from hybridkit.filters import And, Compare, Filter, Not, Or, pattern_tokens
from hybridkit.queries import Query

__all__ = ["Ordering", "condition"]

type Clause = dict[str, Any]

_ORDERED: Final = {"gt": "$gt", "gte": "$gte", "lt": "$lt", "lte": "$lte"}
_INVERSE: Final = {"gt": "$lte", "gte": "$lt", "lt": "$gte", "lte": "$gt"}
_NOTHING: Final[Clause] = {"_id": {"$in": []}}


def condition(where: Filter, *, negated: bool = False) -> Clause:
    """The filter as a condition, or its opposite."""
    match where:
        case Compare() if (asked := storable(where)) is not where:
            return condition(asked, negated=negated)
        case Compare():
            return _refuted(where) if negated else _compared(where)
        case And() | Or():
            both = isinstance(where, And) != negated
            return {"$and" if both else "$or": [condition(part, negated=negated) for part in where.parts]}
        case Not():
            return condition(where.part, negated=not negated)
        case _:
            assert_never(where)


def _compared(compare: Compare) -> Clause:
    name, value = stored_name(compare.field), to_bson(compare.value)
    match compare.operator:
        case "eq":
            return {name: {"$eq": value}}
        case "neq":
            return {name: {"$nin": [value, None]}}
        case "gt" | "gte" | "lt" | "lte" as operator:
            return {name: {_ORDERED[operator]: value}}
        case "in":
            return {name: {"$in": value}}
        case "like" | "ilike":
            return {name: _pattern(compare)}
        case "is":
            return {name: {"$eq": value}}
        case _:
            assert_never(compare.operator)


def _refuted(compare: Compare) -> Clause:
    name, value = stored_name(compare.field), to_bson(compare.value)
    match compare.operator:
        case "eq":
            return {name: {"$nin": [value, None]}}
        case "neq":
            return {name: {"$eq": value}}
        case "gt" | "gte" | "lt" | "lte" as operator:
            return {name: {_INVERSE[operator]: value}}
        case "in":
            return {name: {"$nin": [*value, None]}} if value else {}
        case "like" | "ilike":
            return {name: {"$not": _pattern(compare), "$ne": None}}
        case "is":
            return {name: {"$ne": value}}
        case _:
            assert_never(compare.operator)


def _pattern(compare: Compare) -> Clause:
    expression = "".join(
        _TOKENS.get(token) or re.escape(token[-1]) for token in pattern_tokens(compare.value)
    )
    return {"$regex": f"^{expression}$(?!\\n)", "$options": "is" if compare.operator == "ilike" else "s"}


_TOKENS: Final = {"%": ".*", "_": "."}


class Ordering:
    """The order of a query with the id at its end, and what comes after a position in it.

    Records without a value come last, or first when descending, as PostgreSQL has it. MongoDB has it the other way
    round, so such fields are sorted by whether they have a value first, which no index serves.
    """

    def __init__(self, collection: ResourceCollection, query: Query) -> None:
        self._resource = collection.resource
        pairs = query.order if any(name == "id" for name, _ in query.order) else (*query.order, ("id", "asc"))
        self._pairs = pairs
        self._nullable = {name for name, _ in pairs if collection.is_nullable(name)}

    @property
    def names(self) -> Sequence[str]:
        """The fields, in their order."""
        return [name for name, _ in self._pairs]

    def stages(self) -> list[Clause]:
        """The stages of an aggregation that bring matched documents into order."""
        markers = {
            _marker(name): {"$cond": [{"$eq": [{"$ifNull": [f"${stored_name(name)}", None]}, None]}, 1, 0]}
            for name in self._nullable
        }
        added: list[Clause] = [{"$addFields": markers}] if markers else []
        return [*added, {"$sort": dict(self._keys())}]

    def _keys(self) -> Iterator[tuple[str, int]]:
        for name, direction in self._pairs:
            sign = 1 if direction == "asc" else -1
            if name in self._nullable:
                yield _marker(name), sign
            yield stored_name(name), sign

    def after(self, position: Sequence[Any]) -> Clause:
        """The documents that come after that one.

        Raises:
            PageTokenError: a position of another order.
        """
        if len(position) != len(self._pairs):
            raise _another_order()
        values = [self._parsed(name, value) for name, value in zip(self.names, position, strict=True)]
        return {"$or": [self._after_at(index, values) for index in range(len(values))]}

    def _after_at(self, index: int, values: Sequence[Any]) -> Clause:
        """Equal in every field before `index`, and beyond in that one."""
        equal: list[Clause] = [{stored_name(self._pairs[at][0]): {"$eq": values[at]}} for at in range(index)]
        return {"$and": [*equal, self._beyond(*self._pairs[index], values[index])]}

    def _beyond(self, name: str, direction: str, value: Any) -> Clause:
        stored = stored_name(name)
        if direction == "desc":
            return {stored: {"$ne": None}} if value is None else {stored: {"$lt": value}}
        if value is None:
            return _NOTHING
        beyond: Clause = {stored: {"$gt": value}}
        return {"$or": [beyond, {stored: {"$eq": None}}]} if name in self._nullable else beyond

    def _parsed(self, name: str, value: Any) -> Any:
        """A value of the token, which JSON has flattened, as it is stored."""
        if value is None or "." in name:
            return value
        adapter: TypeAdapter[Any] = TypeAdapter(self._resource.record.model_fields[name].annotation)
        try:
            return to_bson(self._resource.kept_id(value) if name == "id" else adapter.validate_python(value))
        except ValidationError:
            raise _another_order() from None


def _marker(name: str) -> str:
    return f"_hk_without_{name.replace('.', '_')}"


def _another_order() -> PageTokenError:
    return PageTokenError("the page token belongs to another order", pointer="/page_token")
