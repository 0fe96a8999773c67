"""Aggregations over records in memory."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import cmp_to_key
from typing import Any, Final, get_args

from hybridkit.dataservice._memory._filters import compared, fits, value_at
from hybridkit.errors import InvalidQueryError
from hybridkit.resources import Aggregation, Function
from hybridkit.resources._resource import AnyResource

type Values = Mapping[str, Any]


def aggregated(
    resource: AnyResource, aggregation: Aggregation, records: Sequence[Values]
) -> list[dict[str, Any]]:
    """Return a row for each group, in the aggregation's order.

    Raises:
        InvalidQueryError: a field's type doesn't have a function.
    """
    for function in aggregation.functions.values():
        _check(resource, function)
    groups: dict[str, tuple[list[Any], list[Values]]] = {}
    for values in records:
        if fits(aggregation.where, values):
            found = [value_at(values, name) for name in aggregation.group_by]
            groups.setdefault(repr(found), (found, []))[1].append(values)
    if not aggregation.group_by:
        groups.setdefault("[]", ([], []))  # over no records there is one row too
    rows = [
        dict(zip(aggregation.group_by, key, strict=True))
        | {name: _computed(function, members) for name, function in aggregation.functions.items()}
        for key, members in groups.values()
    ]
    named = {name for name, _ in aggregation.order}
    order = (*aggregation.order, *((name, "asc") for name in aggregation.group_by if name not in named))

    def sign(left: Values, right: Values) -> int:
        for name, direction in order:
            if found := compared(left[name], right[name]):
                return found if direction == "asc" else -found
        return 0

    return sorted(rows, key=cmp_to_key(sign))[: aggregation.limit]


def _computed(function: Function, members: Sequence[Values]) -> Any:
    if function.field is None:
        return len(members)
    found = [value for values in members if (value := value_at(values, function.field)) is not None]
    if function.name == "count_distinct":
        return len({repr(value) for value in found})
    return _FUNCTIONS[function.name](found) if found else None


def _check(resource: AnyResource, function: Function) -> None:
    """Refuse sums and averages of a field without numbers; a path into a document has no type to check."""
    if function.name not in ("sum", "avg") or "." in (function.field or ""):
        return
    annotation = resource.record.model_fields[function.field or ""].annotation
    if not {int, float, Decimal}.intersection((annotation, *get_args(annotation))):
        raise InvalidQueryError(f"{function.field} is no number", pointer="/functions")


_FUNCTIONS: Final[Mapping[str, Callable[[Sequence[Any]], Any]]] = {
    "sum": sum,
    "avg": lambda found: sum(found) / len(found),
    "min": lambda found: min(found, key=cmp_to_key(compared)),
    "max": lambda found: max(found, key=cmp_to_key(compared)),
}
