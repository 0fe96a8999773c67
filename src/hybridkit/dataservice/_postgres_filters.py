"""From a query's tree to SQL: declared columns, operators from a closed list, and bound values. No text is pasted."""

from collections.abc import Sequence
from typing import Any, assert_never, cast

import orjson
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, Text, and_, false, func, literal, not_, or_, tuple_
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import JSONB

from hybridkit.dataservice._postgres_table import ResourceTable
from hybridkit.errors import InvalidQueryError, InvalidRequestError, PageTokenError
from hybridkit.filters import And, Compare, Filter, Not, Or
from hybridkit.queries import Query

__all__ = ["Ordering", "condition"]

type Clause = ColumnElement[bool]


def condition(table: ResourceTable, where: Filter) -> Clause:
    """The filter as a condition.

    Raises:
        InvalidQueryError: a comparison that the column's type doesn't know.
    """
    match where:
        case Compare():
            return _compare(table, where)
        case And():
            return and_(*(condition(table, part) for part in where.parts))
        case Or():
            return or_(*(condition(table, part) for part in where.parts))
        case Not():
            return not_(condition(table, where.part))
        case _:
            assert_never(where)


def _compare(table: ResourceTable, compare: Compare) -> Clause:
    operand = _Operand(table, compare.field)
    left, value = operand.expression, compare.value
    match compare.operator:
        case "eq":
            return cast("Clause", left == operand.bind(value))
        case "neq":
            return cast("Clause", left != operand.bind(value))
        case "gt" | "gte" | "lt" | "lte":
            return operand.ordered(compare.operator, value)
        case "in":
            return left.in_([operand.bind(item) for item in value]) if value else false()
        case "like":
            return operand.text.like(value)
        case "ilike":
            return operand.text.ilike(value)
        case "is":
            return operand.is_(value)
        case _:
            assert_never(compare.operator)


class _Operand:
    """The left side of a comparison: a column, or a path into a JSON column."""

    def __init__(self, table: ResourceTable, field: str) -> None:
        self._table = table
        self._name, _, path = field.partition(".")
        self._path = tuple(path.split(".")) if path else ()
        self._field = field

    @property
    def is_path(self) -> bool:
        """Whether it leads into a document."""
        return bool(self._path)

    @property
    def expression(self) -> Any:
        """What is compared. Inside a document it is JSON, and JSON's null is no value, as outside."""
        column = self._table[self._name]
        if not self._path:
            return column
        return func.nullif(
            sql_cast(column, JSONB)[self._path], sql_cast(literal("null", Text), JSONB), type_=JSONB
        )

    @property
    def text(self) -> ColumnElement[str]:
        """What a pattern is matched with."""
        column = self._table[self._name]
        if self._path:
            text = sql_cast(column, JSONB)[self._path].astext
        else:
            text = column if self._table.python_type(self._name) is str else sql_cast(column, Text)
        return cast("ColumnElement[str]", text)

    def bind(self, value: Any) -> Any:
        """The right side, of the column's type."""
        if self._path:
            return sql_cast(literal(orjson.dumps(value, default=str).decode(), Text), JSONB)
        try:
            return self._table.bind(self._name, value)
        except InvalidRequestError:
            raise InvalidQueryError(f"{self._field} can't be compared with this value") from None

    def ordered(self, operator: str, value: Any) -> Clause:
        """A comparison by size. Of JSON only values of one kind: it would order a text after every number."""
        left, right = self.expression, self.bind(value)
        clauses = {"gt": left > right, "gte": left >= right, "lt": left < right, "lte": left <= right}
        if not self._path:
            return cast("Clause", clauses[operator])
        return and_(func.jsonb_typeof(left) == func.jsonb_typeof(right), clauses[operator])

    def is_(self, value: bool | None) -> Clause:  # noqa: FBT001 - the operand of `is`
        """A test for no value, true or false, which is never itself without an answer."""
        left = self.expression
        if value is None:
            return cast("Clause", left.is_(None))
        if self._path:
            return func.coalesce(left == self.bind(value), False)
        if self._table.python_type(self._name) is not bool:
            raise InvalidQueryError(f"{self._field} is neither true nor false")
        return cast("Clause", left.is_(value))


class Ordering:
    """The order of a query with the id at its end, and what comes after a position in it.

    NULLs stand where PostgreSQL has them without being asked (last, or first when descending), as an index does.
    """

    def __init__(self, table: ResourceTable, query: Query) -> None:
        self._table = table
        pairs = query.order if any(name == "id" for name, _ in query.order) else (*query.order, ("id", "asc"))
        self._operands = [_Operand(table, name) for name, _ in pairs]
        self._names = [name for name, _ in pairs]
        self._descending = [direction == "desc" for _, direction in pairs]

    @property
    def columns(self) -> Sequence[ColumnElement[Any]]:
        """What a row has to bring so that its position is known."""
        return [operand.expression for operand in self._operands]

    @property
    def clauses(self) -> Sequence[ColumnElement[Any]]:
        """For `ORDER BY`."""
        return [
            column.desc() if descending else column.asc()
            for column, descending in zip(self.columns, self._descending, strict=True)
        ]

    def after(self, position: Sequence[Any]) -> Clause:
        """The rows that come after that one.

        Raises:
            PageTokenError: a position of another order.
        """
        if len(position) != len(self._names):
            raise PageTokenError("the page token belongs to another order", pointer="/page_token")
        values = [self._parsed(index, value) for index, value in enumerate(position)]
        if self._is_plain():
            left, right = tuple_(*self.columns), tuple_(*values)
            return left < right if self._descending[0] else left > right
        return or_(*(self._after_at(index, values) for index in range(len(values))))

    def _is_plain(self) -> bool:
        """All one way and never NULL: then one comparison of rows does, and an index serves it."""
        nullable = any("." in name or self._table[name].nullable for name in self._names)
        return not nullable and len(set(self._descending)) == 1

    def _after_at(self, index: int, values: Sequence[Any]) -> Clause:
        """Equal in every field before `index`, and beyond in that one."""
        columns = self.columns
        equal = [
            columns[at].is_(None) if values[at] is None else columns[at] == values[at] for at in range(index)
        ]
        return and_(*equal, _beyond(columns[index], values[index], descending=self._descending[index]))

    def _parsed(self, index: int, value: Any) -> Any:
        """A value of the token, which JSON has flattened, as its column has it: exactly, or rows would be skipped."""
        operand = self._operands[index]
        if value is None:
            return None
        if operand.is_path:
            return operand.bind(value)
        kind = self._table.python_type(self._names[index])
        if kind is None:
            return value
        try:
            parsed = TypeAdapter(kind).validate_python(value)
        except ValidationError:
            raise PageTokenError("the page token belongs to another order", pointer="/page_token") from None
        return literal(parsed, self._table[self._names[index]].type)


def _beyond(column: ColumnElement[Any], value: Any, *, descending: bool) -> Clause:
    if descending:
        return column.is_not(None) if value is None else column < value
    return false() if value is None else or_(column > value, column.is_(None))
