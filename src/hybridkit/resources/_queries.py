"""Queries on a resource, and their two forms on the wire: the parameters of a URL and a JSON body."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, assert_never, cast

from hybridkit.errors import InvalidQueryError
from hybridkit.resources._filters import (
    MAX_CONDITIONS,
    MAX_PARSE_DEPTH,
    OPERATORS,
    And,
    Compare,
    Filter,
    Not,
    Operator,
    Or,
    check_size,
    wire_value,
)
from hybridkit.resources._query_strings import read_filter, write_filter
from hybridkit.resources._resource import AnyResource

type Direction = Literal["asc", "desc"]

DEFAULT_PAGE_SIZE: Final = 50
MAX_PAGE_SIZE: Final = 1000
MAX_ORDER_FIELDS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A request for records of a resource: filter, order, fields and page.

    Attributes:
        where: the filter; None for all records.
        order: (field, direction) pairs. The id is always the last tie-breaker, whether it is named or not. Records
            without a value come last, or first where the direction is `desc`.
        select: the fields to return; empty for all of them.
        page_size: the most records of a page, 1 to 1,000; 50 by default.
        page_token: from the page before, to go on after it; valid for the same filter and order.
    """

    where: Filter | None = None
    order: tuple[tuple[str, Direction], ...] = ()
    select: tuple[str, ...] = ()
    page_size: int = DEFAULT_PAGE_SIZE
    page_token: str | None = None

    @property
    def total_order(self) -> tuple[tuple[str, Direction], ...]:
        """The order with the id, ascending, at its end where no field names it: no two records tie."""
        if any(name == "id" for name, _ in self.order):
            return self.order
        return (*self.order, ("id", "asc"))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, without members that have their default."""
        body: dict[str, Any] = {}
        if self.where is not None:
            body["where"] = _to_tree(self.where)
        if self.order:
            body["order"] = [list(pair) for pair in self.order]
        if self.select:
            body["select"] = list(self.select)
        if self.page_size != DEFAULT_PAGE_SIZE:
            body["page_size"] = self.page_size
        if self.page_token is not None:
            body["page_token"] = self.page_token
        return body

    def to_params(self) -> list[tuple[str, str]]:
        """Return the URL form: name and value pairs that are not percent-encoded yet."""
        params = write_filter(self.where)
        if self.order:
            params.append(("order", ",".join(f"{name}.{direction}" for name, direction in self.order)))
        if self.select:
            params.append(("select", ",".join(self.select)))
        if self.page_size != DEFAULT_PAGE_SIZE:
            params.append(("page_size", str(self.page_size)))
        if self.page_token is not None:
            params.append(("page_token", self.page_token))
        return params

    @classmethod
    def from_json(cls, resource: AnyResource, body: Mapping[str, Any]) -> Self:
        """Read a query from its JSON form.

        Raises:
            InvalidQueryError: the resource doesn't allow a member; the error has a pointer to it.
        """
        for name in body:
            if name not in _MEMBERS:
                raise InvalidQueryError(f"a query has no member {name[:100]!r}", pointer=f"/{name[:100]}")
        where = None
        if body.get("where") is not None:
            where = _TreeReader(resource).read(body["where"], "/where")
            check_size(where)
        return cls(
            where=where,
            order=_order(resource, _pairs(_listed(body.get("order"), "/order"))),
            select=_selection(resource, _listed(body.get("select"), "/select")),
            page_size=_page_size(body.get("page_size", DEFAULT_PAGE_SIZE)),
            page_token=_page_token(body.get("page_token")),
        )

    @classmethod
    def from_params(cls, resource: AnyResource, params: Iterable[tuple[str, str]]) -> Self:
        """Read a query from percent-decoded URL parameters.

        Raises:
            InvalidQueryError: the resource doesn't allow a parameter; the error has a pointer to it.
        """
        parts: list[Filter] = []
        options: dict[str, str] = {}
        for name, text in params:
            if name in _OPTIONS:
                if name in options:
                    raise InvalidQueryError(f"{name} is given twice", pointer=f"/{name}")
                options[name] = text
            elif len(parts) < MAX_CONDITIONS:
                parts.append(read_filter(resource, name, text))
            else:
                raise InvalidQueryError(
                    f"the filter has more than {MAX_CONDITIONS} conditions", pointer="/where"
                )
        where = None if not parts else parts[0] if len(parts) == 1 else And(tuple(parts))
        if where is not None:
            check_size(where)
        order = [_order_entry(entry) for entry in _split(options.get("order"))]
        return cls(
            where=where,
            order=_order(resource, order),
            select=_selection(resource, _split(options.get("select"))),
            page_size=_page_size(_whole(options.get("page_size", str(DEFAULT_PAGE_SIZE)))),
            page_token=_page_token(options.get("page_token")),
        )


_OPTIONS: Final = ("order", "select", "page_size", "page_token")
_MEMBERS: Final = ("where", *_OPTIONS)


# ── options ──────────────────────────────────────────────────────────────────────────────────────


def _split(text: str | None) -> list[str]:
    return [] if text is None else text.split(",")


def _listed(value: object, pointer: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidQueryError(f"{pointer[1:]} is a list", pointer=pointer)
    return cast("list[Any]", value)


def _pairs(entries: Sequence[object]) -> list[tuple[str, str]]:
    _check_order_length(entries)
    return [_pair(entry) for entry in entries]


def _pair(entry: object) -> tuple[str, str]:
    match entry:
        case [str(name), str(direction)]:
            return name, direction
        case _:
            raise InvalidQueryError(
                'an order entry is a pair such as ["created_at", "desc"]', pointer="/order"
            )


def _order_entry(entry: str) -> tuple[str, str]:
    name, dot, direction = entry.rpartition(".")
    return (name, direction) if dot and direction in ("asc", "desc") else (entry, "asc")


def _order(resource: AnyResource, entries: Sequence[tuple[str, str]]) -> tuple[tuple[str, Direction], ...]:
    _check_order_length(entries)
    allowed = {"id", *resource.sortable}
    names = [name for name, _ in entries]
    for name, direction in entries:
        if name not in allowed:
            raise InvalidQueryError(
                f"{resource.name} can't be ordered by {name[:100]!r}, only by {sorted(allowed)}",
                pointer="/order",
            )
        if direction not in ("asc", "desc"):
            raise InvalidQueryError("a direction is asc or desc", pointer="/order")
        if names.count(name) > 1:
            raise InvalidQueryError(f"{name} is ordered by twice", pointer="/order")
    return cast("tuple[tuple[str, Direction], ...]", tuple(entries))


def _check_order_length(entries: Sequence[object]) -> None:
    if len(entries) > MAX_ORDER_FIELDS:
        raise InvalidQueryError(f"at most {MAX_ORDER_FIELDS} fields can be ordered by", pointer="/order")


def _selection(resource: AnyResource, names: Sequence[object]) -> tuple[str, ...]:
    fields = resource.record.model_fields
    if len(names) > len(fields):
        raise InvalidQueryError(f"{resource.name} has no more than {len(fields)} fields", pointer="/select")
    selected: dict[str, None] = {}
    for name in names:
        if not isinstance(name, str) or name not in fields:
            wrong = repr(name[:100]) if isinstance(name, str) else "of that kind"
            raise InvalidQueryError(f"{resource.name} has no field {wrong}", pointer="/select")
        selected[name] = None
    return tuple(selected)


def _page_size(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_PAGE_SIZE:
        raise InvalidQueryError(
            f"page_size is a whole number from 1 to {MAX_PAGE_SIZE}", pointer="/page_size"
        )
    return value


def _whole(text: str) -> int | str:
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 8 else text


def _page_token(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidQueryError("page_token is the text that the page before gave", pointer="/page_token")
    return value


# ── the JSON form ────────────────────────────────────────────────────────────────────────────────


def _to_tree(node: Filter) -> dict[str, Any]:
    match node:
        case Compare():
            return {node.operator: [node.field, wire_value(node.value)]}
        case And():
            return {"and": [_to_tree(part) for part in node.parts]}
        case Or():
            return {"or": [_to_tree(part) for part in node.parts]}
        case Not():
            return {"not": _to_tree(node.part)}
        case _:
            assert_never(node)


class _TreeReader:
    """A reader of one tree that stops at the first condition too many, so that a hostile tree costs no more."""

    def __init__(self, resource: AnyResource) -> None:
        self._resource = resource
        self._conditions = 0

    def read(self, tree: object, pointer: str, *, depth: int = 1) -> Filter:
        if depth > MAX_PARSE_DEPTH:
            raise InvalidQueryError("the filter is nested too deeply", pointer="/where")
        if not isinstance(tree, dict) or len(cast("dict[Any, Any]", tree)) != 1:
            raise InvalidQueryError(
                'a condition has one member, such as {"eq": ["status", "paid"]}', pointer=pointer
            )
        ((operator, operand),) = cast("dict[str, Any]", tree).items()
        at = f"{pointer}/{operator[:100]}"
        match operator, operand:
            case (("and" | "or"), [_, *_]):
                listed = cast("list[Any]", operand)
                parts = tuple(
                    self.read(part, f"{at}/{index}", depth=depth + 1) for index, part in enumerate(listed)
                )
                return And(parts) if operator == "and" else Or(parts)
            case "not", dict():
                return ~self.read(cast("object", operand), at, depth=depth + 1)
            case _, [str(name), value] if operator in OPERATORS:
                return self._condition(name, cast("Operator", operator), value, at)
            case _:
                raise InvalidQueryError(
                    f"not a condition; operators are {' '.join(OPERATORS)} with [field, value], and, or, not",
                    pointer=at,
                )

    def _condition(self, name: str, operator: Operator, value: object, at: str) -> Filter:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidQueryError(f"the filter has more than {MAX_CONDITIONS} conditions", pointer="/where")
        return self._resource.field(name, pointer=at).compare(operator, value, pointer=at)
