"""Filters as conditions of MongoDB: declared fields, operators from a closed list, values that are never operators.

A field without a value compares as SQL's NULL does: neither equal nor unequal to anything, so `neq` and `not` leave
such records out. MongoDB's own operators would let them in, so negations are pushed down to the single conditions.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, assert_never

from hybridkit.dataservice._mongo._collection import stored_name
from hybridkit.dataservice._mongo._paths import path_condition
from hybridkit.dataservice._mongo._steps import storable
from hybridkit.dataservice._mongo._values import to_bson
from hybridkit.resources import And, Compare, Filter, Not, Or
from hybridkit.resources._filters import pattern_tokens

type Clause = dict[str, Any]

_ORDERED: Final = {"gt": "$gt", "gte": "$gte", "lt": "$lt", "lte": "$lte"}
_INVERSE: Final = {"gt": "$lte", "gte": "$lt", "lt": "$gte", "lte": "$gt"}


def condition(where: Filter, *, negated: bool = False) -> Clause:
    """Return the filter, or its opposite, as a condition of MongoDB."""
    match where:
        case Compare() if (asked := storable(where)) is not where:
            return condition(asked, negated=negated)
        case Compare() if "." in where.field:
            return path_condition(where, _compared(where)[where.field], negated=negated)
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
            return _none_of(name, [value])
        case "gt" | "gte" | "lt" | "lte" as operator:
            return {name: {_ORDERED[operator]: value}}
        case "in":
            return _one_of(name, value)
        case "contains":
            return {name: {"$all": value} if value else {"$type": "array"}}
        case "overlaps":
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
            return _none_of(name, [value])
        case "neq":
            return {name: {"$eq": value}}
        case "gt" | "gte" | "lt" | "lte" as operator:
            return {name: {_INVERSE[operator]: value}}
        case "in":
            return _none_of(name, value) if value else {}
        case "contains":
            return {name: {"$type": "array", "$not": {"$all": value}} if value else {"$in": []}}
        case "overlaps":
            return {name: {"$type": "array", "$nin": value}}
        case "like" | "ilike":
            return {name: {"$not": _pattern(compare), "$ne": None}}
        case "is":
            return {name: {"$ne": value}}
        case _:
            assert_never(compare.operator)


def _one_of(name: str, values: Sequence[Any]) -> Clause:
    """Match one of the values; objects stand apart, as MongoDB takes one with a `$` in a list for an operator."""
    scalars = [value for value in values if not isinstance(value, dict)]
    objects: list[Clause] = [{name: {"$eq": value}} for value in values if isinstance(value, dict)]
    return {"$or": [{name: {"$in": scalars}}, *objects]} if objects else {name: {"$in": scalars}}


def _none_of(name: str, values: Sequence[Any]) -> Clause:
    """Match a value that is none of these."""
    if any(isinstance(value, dict) for value in values):
        return {"$nor": [_one_of(name, [*values, None])]}
    return {name: {"$nin": [*values, None]}}


def _pattern(compare: Compare) -> Clause:
    expression = "".join(
        _TOKENS.get(token) or re.escape(token[-1]) for token in pattern_tokens(compare.value)
    )
    return {"$regex": f"^{expression}$(?!\\n)", "$options": "is" if compare.operator == "ilike" else "s"}


_TOKENS: Final = {"%": ".*", "_": "."}
