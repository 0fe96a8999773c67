"""Translate the filter and order of a query to SQL: declared columns, operators of a closed list, and bound values.

Whatever a caller sends is a bound value; everything that is written into the text comes from the declarations.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, Literal, assert_never

from sqlalchemy import CHAR, JSON, ColumnElement, TextClause, bindparam, text
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.types import ARRAY as ANY_ARRAY
from sqlalchemy.types import NullType, UserDefinedType

from hybridkit.codec import encode_json
from hybridkit.dataservice._postgres._driver._errors import UNTAKEN
from hybridkit.dataservice._postgres._json_printing import literal
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._postgres._types._parameters import (
    DIALECT,
    MAX_PARAMETERS,
    bare,
    document_depth,
    is_scalar,
    parameter_type,
)
from hybridkit.dataservice._postgres._types._steps import Steps, steps_of
from hybridkit.dataservice._postgres._types._values import fitted, in_texts
from hybridkit.dataservice._store._annotations import alternatives
from hybridkit.errors import InvalidQueryError, PageTokenError
from hybridkit.resources import And, Compare, Filter, Not, Or, Query

_COMPARISONS: Final = {"eq": "=", "neq": "<>", "gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_STEPPED: Final = frozenset({*_COMPARISONS, "in"})

_MARK: Final = "\0"
"""The character around a placeholder until SQLAlchemy gets it: no name and no literal can have it."""
_PLACEHOLDER: Final = re.compile(f"{_MARK}([0-9]+){_MARK}")


class Arguments:
    """The values of one statement, in the order of their placeholders in its text.

    Args:
        for_clause: whether the text goes to SQLAlchemy, by `clause`; else the placeholders are asyncpg's `$1`, `$2`, ….
    """

    def __init__(self, *, for_clause: bool = False) -> None:
        self.values: list[Any] = []
        self._for_clause = for_clause

    def __repr__(self) -> str:
        return f"Arguments({len(self.values)})"

    def add(self, value: Any) -> str:
        """Add a value, and return its placeholder.

        Raises:
            InvalidQueryError: there are more values than fit into a statement.
        """
        if len(self.values) == MAX_PARAMETERS:
            raise InvalidQueryError(f"the filter has more than {MAX_PARAMETERS} values of such types")
        self.values.append(value)
        number = len(self.values)
        return f"{_MARK}{number}{_MARK}" if self._for_clause else f"${number}"

    def clause(self, sql: str) -> TextClause:
        """Make SQLAlchemy's clause of SQL, with the values bound to its placeholders."""
        escaped = sql.replace(":", "\\:")  # a colon in a name or a literal would begin a placeholder
        parameters = (
            bindparam(f"hk_{n}", value, NullType(), unique=True) for n, value in enumerate(self.values, 1)
        )
        return text(_PLACEHOLDER.sub(r":hk_\1", escaped)).bindparams(*parameters)


def condition(table: ResourceTable, where: Filter) -> ColumnElement[bool]:
    """Make a condition of an SQLAlchemy statement of a filter; a statement can have only one of them.

    Raises:
        InvalidQueryError: a column's type doesn't have the comparison.
    """
    arguments = Arguments(for_clause=True)
    clause: Any = arguments.clause(f"({write_condition(table, where, arguments)})")
    return clause  # type: ignore[no-any-return] # a text is taken wherever a condition is


def write_condition(table: ResourceTable, where: Filter, arguments: Arguments) -> str:
    """Write a filter as SQL.

    Raises:
        InvalidQueryError: a column's type doesn't have the comparison.
    """
    match where:
        case Compare():
            return _compare(operand(table, where.field), where, arguments)
        case And():
            return _joined(" AND ", [write_condition(table, part, arguments) for part in where.parts], "true")
        case Or():
            return _joined(" OR ", [write_condition(table, part, arguments) for part in where.parts], "false")
        case Not():
            return f"NOT ({write_condition(table, where.part, arguments)})"
        case _:
            assert_never(where)


def _joined(word: str, parts: Sequence[str], nothing: str) -> str:
    return f"({word.join(parts)})" if parts else nothing


def _compare(left: "Operand", compare: Compare, arguments: Arguments) -> str:
    value = compare.value
    if compare.operator in _STEPPED and (steps := left.steps(value)):
        return steps.compared(left.sql, compare.operator, value, arguments.add)
    match compare.operator:
        case "eq" | "neq":
            return f"{left.sql} {_COMPARISONS[compare.operator]} {left.right_side(value, arguments)}"
        case "gt" | "gte" | "lt" | "lte":
            right = left.right_side(value, arguments)
            clause = f"{left.sql} {_COMPARISONS[compare.operator]} {right}"
            if not left.is_path:
                return clause
            # JSON orders every text after every number, but only values of one kind should compare.
            return f"(jsonb_typeof({left.sql}) = jsonb_typeof({right}) AND {clause})"
        case "in":
            return f"{left.sql} {left.among(value, arguments)}" if value else "false"
        case "contains" | "overlaps":
            return left.listed(compare.operator, value, arguments)
        case "like" | "ilike":
            return f"{left.text} {compare.operator.upper()} {arguments.add(value)}"
        case "is":
            return _is(left, value)
        case _:
            assert_never(compare.operator)


def _is(left: "Operand", value: bool | None) -> str:  # noqa: FBT001 - the operand of `is`
    """Write the test for no value, true or false; its result is never NULL."""
    if value is None:
        return f"{left.sql} IS NULL"
    word = "true" if value else "false"
    if left.is_path:
        return f"COALESCE({left.sql} = CAST('{word}' AS jsonb), false)"
    if left.python_type is not bool:
        raise InvalidQueryError(f"{left.field} is neither true nor false")
    return f"{left.sql} IS {word.upper()}"


class Operand:
    """The left side of a comparison: a column, or a path into a JSON column.

    Attributes:
        field: the field as the query names it.
        column: SQLAlchemy's column.
        is_path: whether the field is a path into a document.
        sql: the SQL that is compared. Inside a document it is JSON, where JSON's null counts as NULL.
        text: the SQL that patterns are matched with.
        type: the SQL type of the values.
        python_type: the Python type of the values; None if SQLAlchemy doesn't say.
    """

    def __init__(self, table: ResourceTable, field: str) -> None:
        name, _, path = field.partition(".")
        self.field = field
        self.column = table[name]
        self.is_path = bool(path)
        self.python_type = None if path else table.python_type(name)
        self._table = table
        self._name = name
        own = bare(self.column.type)
        column = table.sql(name)
        self.type = self.column.type.compile(dialect=DIALECT)
        if isinstance(own, EnumType) and isinstance(self.column.type, DOMAIN):
            # PostgreSQL doesn't see by itself that it compares labels if they are of a domain.
            self.type = own.compile(dialect=DIALECT)
            column = f"CAST({column} AS {self.type})"
        if path:
            keys = literal(_array(path.split(".")))
            self.type = "jsonb"
            self.sql = f"NULLIF(CAST({column} AS jsonb) #> {keys}, CAST('null' AS jsonb))"
            self.text = f"(CAST({column} AS jsonb) #>> {keys})"
        else:
            self.sql = column
            is_text = self.python_type is str and not isinstance(own, CHAR)
            self.text = column if is_text else f"CAST({column} AS text)"
        self._is_foreign = isinstance(own, UserDefinedType)
        declared = set(alternatives(table.resource.record.model_fields[name].annotation))
        # A document has decimals as texts if the field declares decimals.
        self._has_bare_numbers = document_depth(own) == 0 and Decimal not in declared
        self._has_decimals = document_depth(own) == 0 and Decimal in declared and int not in declared
        bound = parameter_type(self.column.type).dialect_impl(DIALECT)
        self._process = bound.bind_processor(DIALECT) if document_depth(own) is None else None

    def __repr__(self) -> str:
        return f"Operand({self.field!r})"

    @property
    def is_nullable(self) -> bool:
        """Whether the value may be NULL."""
        return self.is_path or bool(self.column.nullable)

    def steps(self, value: Any) -> Steps | None:
        """Return the column's steps for a value like this one, or the first of these; None if it has no steps."""
        if self.is_path or value == ():
            return None
        return steps_of(self.column.type, value[0] if isinstance(value, tuple) else value)

    def right_side(self, value: Any, arguments: Arguments) -> str:
        """Write the right side of a comparison."""
        if self.is_path:
            return f"CAST(CAST({arguments.add(_json(value))} AS text) AS jsonb)"
        placeholder = arguments.add(self.bound(value))
        # Without the cast PostgreSQL takes a composite's parameter for a row of no type, which can't be sent.
        return f"CAST({placeholder} AS {self.type})" if self._is_foreign else placeholder

    def among(self, values: Sequence[Any], arguments: Arguments) -> str:
        """Write the operator and right side of `in`: an array, or a list if the column itself may be an array."""
        if self.is_path:
            return (
                f"= ANY(CAST(CAST({arguments.add([_json(value) for value in values])} AS text[]) AS jsonb[]))"
            )
        if is_scalar(self.column.type):
            return f"= ANY({arguments.add([self.bound(value) for value in values])})"
        return f"IN ({', '.join(self.right_side(value, arguments) for value in values)})"

    def listed(
        self, operator: Literal["contains", "overlaps"], values: Sequence[Any], arguments: Arguments
    ) -> str:
        """Write the condition that the list has all of the values, or one of them.

        Raises:
            InvalidQueryError: the column is no array and no JSON.
        """
        own = bare(self.column.type)
        if isinstance(own, JSON):
            document = f"CAST({self.sql} AS jsonb)"
            if operator == "contains":
                return f"{document} @> CAST(CAST({arguments.add(_json(values))} AS text) AS jsonb)"
            if not values:  # `ANY` of nothing is false for no value too, and its opposite would be true
                return f"NULLIF({self.sql} IS NULL, true)"
            each = arguments.add([_json([value]) for value in values])
            return f"{document} @> ANY(CAST(CAST({each} AS text[]) AS jsonb[]))"
        if not isinstance(own, ANY_ARRAY):
            raise InvalidQueryError(f"{self.field} is no list in the database")
        sign = "@>" if operator == "contains" else "&&"
        return f"{self.sql} {sign} {self.right_side(list(values), arguments)}"

    def bound(self, value: Any) -> Any:
        """Convert a value to what asyncpg takes.

        Raises:
            InvalidQueryError: the column can't be compared with the value.
        """
        if isinstance(value, Decimal) and self._has_bare_numbers:
            return _json(value)
        if isinstance(value, int) and self._has_decimals:
            value = Decimal(value)
        try:
            bound = in_texts(self.column.type, fitted(self.column.type, value))
            return bound if self._process is None else self._process(bound)
        except UNTAKEN:
            raise InvalidQueryError(f"{self.field} can't be compared with this value") from None


@lru_cache(maxsize=4096)
def operand(table: ResourceTable, field: str) -> Operand:
    """Return the operand for a declared field of the table, or a path into one."""
    return Operand(table, field)


class Ordering:
    """The order of a query with the id at its end, and the condition for the rows after a position.

    NULLs are where PostgreSQL puts them by default (last, or first when descending), as in an index. Positions are
    PostgreSQL's own texts, so they are exact for every type.
    """

    def __init__(self, table: ResourceTable, query: Query) -> None:
        self._operands = [operand(table, name) for name, _ in query.total_order]
        self._descending = [direction == "desc" for _, direction in query.total_order]

    def __repr__(self) -> str:
        return f"Ordering({self._operands})"

    @property
    def position(self) -> str:
        """The SQL for a row's position: an array of texts."""
        return f"ARRAY[{', '.join(f'CAST({operand.sql} AS text)' for operand in self._operands)}]"

    @property
    def clause(self) -> str:
        """The SQL after `ORDER BY`."""
        return ", ".join(
            f"{operand.sql} DESC" if descending else operand.sql
            for operand, descending in zip(self._operands, self._descending, strict=True)
        )

    def after(self, position: Sequence[Any], arguments: Arguments) -> str:
        """Write the condition for the rows that come after a position.

        Raises:
            PageTokenError: the position is of another order.
        """
        if len(position) != len(self._operands) or not all(
            value is None or isinstance(value, str) for value in position
        ):
            raise PageTokenError("the page token belongs to another order", pointer="/page_token")
        values = [
            None if value is None else f"CAST(CAST({arguments.add(value)} AS text) AS {operand.type})"
            for operand, value in zip(self._operands, position, strict=True)
        ]
        if self._is_plain() and None not in values:
            left = ", ".join(operand.sql for operand in self._operands)
            sign = "<" if self._descending[0] else ">"
            return f"({left}) {sign} ({', '.join(map(str, values))})"
        return _joined(" OR ", [self._after_at(index, values) for index in range(len(values))], "false")

    def _is_plain(self) -> bool:
        """Return whether one comparison of rows will do, which an index serves: one direction, and never NULL."""
        nullable = any(operand.is_nullable for operand in self._operands)
        return not nullable and len(set(self._descending)) == 1

    def _after_at(self, index: int, values: Sequence[str | None]) -> str:
        """Write the condition for rows that equal the position before `index`, and come after it in that field."""
        equal = [
            f"{operand.sql} IS NULL" if value is None else f"{operand.sql} = {value}"
            for operand, value in zip(self._operands[:index], values[:index], strict=True)
        ]
        beyond = _beyond(self._operands[index].sql, values[index], descending=self._descending[index])
        return _joined(" AND ", [*equal, beyond], "true")


def _beyond(left: str, value: str | None, *, descending: bool) -> str:
    if descending:
        return f"{left} IS NOT NULL" if value is None else f"{left} < {value}"
    return "false" if value is None else f"({left} > {value} OR {left} IS NULL)"


def _json(value: Any) -> str:
    return str(value) if isinstance(value, Decimal) else encode_json(value).decode()


def _array(keys: Sequence[str]) -> str:
    """Write an array of texts as PostgreSQL does."""
    return "{" + ",".join('"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"' for key in keys) + "}"
