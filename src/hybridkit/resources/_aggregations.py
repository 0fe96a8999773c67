"""Aggregations on a resource: groups, and functions over the records of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, cast, get_args

from hybridkit._syntax import NAME_SYNTAX
from hybridkit.errors import InvalidQueryError
from hybridkit.resources._filters import Filter
from hybridkit.resources._queries import Direction, Query
from hybridkit.resources._resource import AnyResource

type FunctionName = Literal["count", "count_distinct", "sum", "avg", "min", "max"]

FUNCTION_NAMES: Final[tuple[str, ...]] = get_args(FunctionName.__value__)
MAX_GROUP_FIELDS: Final = 8
MAX_FUNCTIONS: Final = 16
MAX_GROUPS: Final = 1000
DEFAULT_GROUPS: Final = 100


@dataclass(frozen=True, slots=True)
class Function:
    """One function over the records of a group.

    Attributes:
        name: `count count_distinct sum avg min max`.
        field: what it is computed from; None for `count`, which counts records.
    """

    name: FunctionName
    field: str | None = None


def count() -> Function:
    """Return the function that counts records."""
    return Function("count")


def distinct(field: str) -> Function:
    """Return the function that counts the different values of a field."""
    return Function("count_distinct", field)


def total(field: str) -> Function:
    """Return the function that adds a field's values; its result is null where no record has one."""
    return Function("sum", field)


def average(field: str) -> Function:
    """Return the function for the arithmetic mean of a field; its result is null where no record has a value."""
    return Function("avg", field)


def smallest(field: str) -> Function:
    """Return the function for the smallest value of a field; its result is null where no record has one."""
    return Function("min", field)


def largest(field: str) -> Function:
    """Return the function for the largest value of a field; its result is null where no record has one."""
    return Function("max", field)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """A computation over a resource: functions over the records of each group.

    Attributes:
        functions: 1 to 16, by the name that the result has in each row.
        group_by: up to 8 fields; there is one row for each combination of their values. Empty for one row over all
            records.
        where: the filter for the records that count; None for all.
        order: (name, direction) pairs, of functions or `group_by` fields; rows are otherwise ordered by `group_by`.
        limit: the most rows to return, 1 to 1,000; 100 by default.
    """

    functions: Mapping[str, Function]
    group_by: tuple[str, ...] = ()
    where: Filter | None = None
    order: tuple[tuple[str, Direction], ...] = field(default=())
    limit: int = DEFAULT_GROUPS

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without members that have their default."""
        body: dict[str, Any] = {
            "functions": {
                name: [function.name] if function.field is None else [function.name, function.field]
                for name, function in self.functions.items()
            }
        }
        if self.group_by:
            body["group_by"] = list(self.group_by)
        if self.where is not None:
            body |= Query(where=self.where).to_json()
        if self.order:
            body["order"] = [list(pair) for pair in self.order]
        if self.limit != DEFAULT_GROUPS:
            body["limit"] = self.limit
        return body

    @classmethod
    def from_json(cls, resource: AnyResource, body: Mapping[str, Any]) -> Self:
        """Read an aggregation from its JSON form.

        Raises:
            InvalidQueryError: the resource doesn't allow a member; the error has a pointer to it.
        """
        for name in body:
            if name not in _MEMBERS:
                raise InvalidQueryError(
                    f"an aggregation has no member {name[:100]!r}", pointer=f"/{name[:100]}"
                )
        group_by = _group_by(resource, body.get("group_by", []))
        functions = _functions(resource, body.get("functions"), taken=group_by)
        return cls(
            functions=functions,
            group_by=group_by,
            where=Query.from_json(resource, {"where": body.get("where")}).where,
            order=_order(body.get("order", []), allowed={*group_by, *functions}),
            limit=_limit(body.get("limit", DEFAULT_GROUPS)),
        )


_MEMBERS: Final = ("functions", "group_by", "where", "order", "limit")


def _group_by(resource: AnyResource, wanted: object) -> tuple[str, ...]:
    names = cast("list[Any]", wanted)
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in names):
        raise InvalidQueryError("group_by is a list of fields", pointer="/group_by")
    if len(names) > MAX_GROUP_FIELDS:
        raise InvalidQueryError(f"at most {MAX_GROUP_FIELDS} fields can be grouped by", pointer="/group_by")
    for name in names:
        resource.field(name, pointer="/group_by")
    return tuple(dict.fromkeys(names))


def _functions(resource: AnyResource, wanted: object, *, taken: tuple[str, ...]) -> Mapping[str, Function]:
    named = cast("dict[str, Any]", wanted)
    if not isinstance(wanted, dict) or not 1 <= len(named) <= MAX_FUNCTIONS:
        raise InvalidQueryError(
            f'functions are 1 to {MAX_FUNCTIONS} members such as {{"orders": ["count"]}}',
            pointer="/functions",
        )
    return {name: _function(resource, name, value, taken=taken) for name, value in named.items()}


def _function(resource: AnyResource, name: str, wanted: object, *, taken: tuple[str, ...]) -> Function:
    pointer = f"/functions/{name[:100]}"
    if not NAME_SYNTAX.fullmatch(name) or name in taken:
        raise InvalidQueryError("a result has a snake_case name of its own", pointer=pointer)
    match wanted:
        case ["count"]:
            return Function("count")
        case [str(function), str(path)] if function in FUNCTION_NAMES and function != "count":
            resource.field(path, pointer=pointer)
            return Function(cast("FunctionName", function), path)
        case _:
            raise InvalidQueryError(
                f'a function is ["count"] or one of {" ".join(FUNCTION_NAMES[1:])} with a field',
                pointer=pointer,
            )


def _order(wanted: object, *, allowed: set[str]) -> tuple[tuple[str, Direction], ...]:
    if not isinstance(wanted, list):
        raise InvalidQueryError("order is a list", pointer="/order")
    entries = cast("list[Any]", wanted)
    pairs: dict[str, Direction] = {}
    for entry in entries:
        match entry:
            case [str(name), "asc" | "desc" as direction] if name in allowed and name not in pairs:
                pairs[name] = direction
            case _:
                raise InvalidQueryError(
                    f'an order entry is a pair such as ["revenue", "desc"], each once, of {sorted(allowed)}',
                    pointer="/order",
                )
    return tuple(pairs.items())


def _limit(wanted: object) -> int:
    if type(wanted) is not int or not 1 <= wanted <= MAX_GROUPS:
        raise InvalidQueryError(f"limit is a whole number from 1 to {MAX_GROUPS}", pointer="/limit")
    return wanted
