"""Conditions on a path into a document that are about one whole value, as PostgreSQL has them on `jsonb`.

In a filter of MongoDB's a path leads through arrays, and a condition on an array holds where it holds for an element.
An expression has the value itself: an array wherever there is one on the way. It stands beside the filter's own
condition, which may use an index.
"""

from collections.abc import Sequence
from typing import Any, Final

from hybridkit.dataservice._mongo._values import to_bson
from hybridkit.resources import Compare

type Clause = dict[str, Any]

_NOTHING: Final[Clause] = {"_id": {"$in": []}}


def path_condition(compare: Compare, operand: Clause, *, negated: bool) -> Clause:
    """Return the condition, or its opposite among the records that have a value at the path.

    Args:
        compare: on a path.
        operand: MongoDB's condition on a value that is no array.
        negated: whether to return the opposite.
    """
    path = compare.field
    match compare.operator:
        case "is" if compare.value is None:
            return _present(path) if negated else {"$nor": [_present(path)]}
        case "is":
            holds = _single(path, operand)
            return {"$nor": [holds]} if negated else holds
        case "neq":
            holds = _equal(path, [compare.value])
            return holds if negated else _otherwise(path, holds)
        case "in" if not compare.value:  # nothing is in it, whatever the value
            return {} if negated else _NOTHING
        case "eq" | "in":
            holds = _equal(path, compare.value if compare.operator == "in" else [compare.value])
        case _:
            holds = _single(path, operand)
    return _otherwise(path, holds) if negated else holds


def _equal(path: str, values: Sequence[Any]) -> Clause:
    """Match one of the values: scalars by the filter's own condition, arrays and objects by comparing them whole."""
    stored = [to_bson(value) for value in values]
    scalars = [value for value in stored if not isinstance(value, list | dict)]
    parts = [_single(path, {"$in": scalars})] if scalars else []
    for value in stored:
        if isinstance(value, list | dict):
            compared: Clause = {"$cmp": [f"${path}", {"$literal": value}]}
            parts.append({"$and": [_present(path), {"$expr": {"$eq": [compared, 0]}}]})
    return {"$or": parts}


def _otherwise(path: str, holds: Clause) -> Clause:
    return {"$and": [_present(path), {"$nor": [holds]}]}


def _single(path: str, operand: Clause) -> Clause:
    """Match a value that is no array, nor in one, and for which the condition holds."""
    return {"$and": [{path: operand}, _is_no_array(path)]}


def _present(path: str) -> Clause:
    """Match any value, also an array, that isn't in an array itself."""
    value: Clause = {"$ifNull": [f"${path}", None]}
    return {"$and": [{"$expr": {"$ne": [value, None]}}, _is_no_array(path.rpartition(".")[0])]}


def _is_no_array(path: str) -> Clause:
    return {"$expr": {"$not": [{"$isArray": [f"${path}"]}]}}
