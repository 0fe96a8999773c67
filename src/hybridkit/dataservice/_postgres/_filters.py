"""From a query's tree to SQL: declared columns, operators from a closed list, and bound values.

What a caller sends is only ever a bound value; what is written into the text comes from the declarations.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, assert_never

from sqlalchemy import CHAR, ColumnElement, TextClause, bindparam, text
from sqlalchemy import Enum as EnumType
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.types import NullType, UserDefinedType

from hybridkit.codec import encode_json
from hybridkit.dataservice._postgres._driver._errors import UNTAKEN
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._postgres._types._json_printing import literal
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
"""Around a place until SQLAlchemy gets it: the one character that no name and no literal has."""
_PLACE: Final = re.compile(f"{_MARK}([0-9]+){_MARK}")


class Arguments:
    """The values of one statement, in the order of their places in its text.

    Args:
        for_clause: whether the text goes to SQLAlchemy, by `clause`; else the places are asyncpg's `$1`, `$2`, ….
    """

    def __init__(self, *, for_clause: bool = False) -> None:
        self.values: list[Any] = []
        self._for_clause = for_clause

    def __repr__(self) -> str:
        return f"Arguments({len(self.values)})"

    def add(self, value: Any) -> str:
        """The place where that value goes.

        Raises:
            InvalidQueryError: there are more than fit into a statement.
        """
        if len(self.values) == MAX_PARAMETERS:
            raise InvalidQueryError(f"the filter has more than {MAX_PARAMETERS} values of such types")
        self.values.append(value)
        number = len(self.values)
        return f"{_MARK}{number}{_MARK}" if self._for_clause else f"${number}"

    def clause(self, sql: str) -> TextClause:
        """SQL with places for SQLAlchemy, and the values bound to them."""
        escaped = sql.replace(":", "\\:")  # a name or a literal with a colon would be a place to SQLAlchemy
        places = (
            bindparam(f"hk_{n}", value, NullType(), unique=True) for n, value in enumerate(self.values, 1)
        )
        return text(_PLACE.sub(r":hk_\1", escaped)).bindparams(*places)


def condition(table: ResourceTable, where: Filter) -> ColumnElement[bool]:
    """The filter as a condition of an SQLAlchemy statement; one per statement.

    Raises:
        InvalidQueryError: a comparison that the column's type doesn't know.
    """
    arguments = Arguments(for_clause=True)
    clause: Any = arguments.clause(f"({write_condition(table, where, arguments)})")
    return clause  # type: ignore[no-any-return] # a text is taken wherever a condition is


def write_condition(table: ResourceTable, where: Filter, arguments: Arguments) -> str:
    """The filter as SQL.

    Raises:
        InvalidQueryError: a comparison that the column's type doesn't know.
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
            return f"{left.sql} {_COMPARISONS[compare.operator]} {left.place(value, arguments)}"
        case "gt" | "gte" | "lt" | "lte":
            right = left.place(value, arguments)
            clause = f"{left.sql} {_COMPARISONS[compare.operator]} {right}"
            if not left.is_path:
                return clause
            # JSON would order a text after every number: only values of one kind are compared.
            return f"(jsonb_typeof({left.sql}) = jsonb_typeof({right}) AND {clause})"
        case "in":
            return f"{left.sql} {left.among(value, arguments)}" if value else "false"
        case "like" | "ilike":
            return f"{left.text} {compare.operator.upper()} {arguments.add(value)}"
        case "is":
            return _is(left, value)
        case _:
            assert_never(compare.operator)


def _is(left: "Operand", value: bool | None) -> str:  # noqa: FBT001 - the operand of `is`
    """A test for no value, true or false, which is never itself without an answer."""
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
        field: as declared.
        column: SQLAlchemy's.
        is_path: whether it leads into a document.
        sql: what is compared. Inside a document it is JSON, and JSON's null is no value, as outside.
        text: what a pattern is matched with.
        type: of the values, in SQL.
        python_type: of the values; None where SQLAlchemy doesn't say.
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
            # Of a domain PostgreSQL doesn't see by itself that it compares labels.
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
        # Decimals are texts in a document, where their field declares any.
        self._has_bare_numbers = document_depth(own) == 0 and Decimal not in declared
        self._has_decimals = document_depth(own) == 0 and Decimal in declared and int not in declared
        bound = parameter_type(self.column.type).dialect_impl(DIALECT)
        self._process = bound.bind_processor(DIALECT) if document_depth(own) is None else None

    def __repr__(self) -> str:
        return f"Operand({self.field!r})"

    @property
    def is_nullable(self) -> bool:
        """Whether there may be no value."""
        return self.is_path or bool(self.column.nullable)

    def steps(self, value: Any) -> Steps | None:
        """The steps of the column, for values like that one or the first of these; None where it has none."""
        if self.is_path or value == ():
            return None
        return steps_of(self.column.type, value[0] if isinstance(value, tuple) else value)

    def place(self, value: Any, arguments: Arguments) -> str:
        """The right side."""
        if self.is_path:
            return f"CAST(CAST({arguments.add(_json(value))} AS text) AS jsonb)"
        place = arguments.add(self.bound(value))
        # Beside a composite PostgreSQL would take it for a row of no type, which has no form on the wire.
        return f"CAST({place} AS {self.type})" if self._is_foreign else place

    def among(self, values: Sequence[Any], arguments: Arguments) -> str:
        """The right side of `in`, with its operator: an array, or a list where arrays would be of arrays."""
        if self.is_path:
            return (
                f"= ANY(CAST(CAST({arguments.add([_json(value) for value in values])} AS text[]) AS jsonb[]))"
            )
        if is_scalar(self.column.type):
            return f"= ANY({arguments.add([self.bound(value) for value in values])})"
        return f"IN ({', '.join(self.place(value, arguments) for value in values)})"

    def bound(self, value: Any) -> Any:
        """The value as asyncpg takes it."""
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
    """That field of the table, or path into one; a declared one."""
    return Operand(table, field)


class Ordering:
    """The order of a query with the id at its end, and what comes after a position in it.

    NULLs stand where PostgreSQL has them without being asked (last, or first when descending), as an index does.
    Positions are PostgreSQL's own texts, so that they are exact whatever the type.
    """

    def __init__(self, table: ResourceTable, query: Query) -> None:
        self._operands = [operand(table, name) for name, _ in query.total_order]
        self._descending = [direction == "desc" for _, direction in query.total_order]

    def __repr__(self) -> str:
        return f"Ordering({self._operands})"

    @property
    def position(self) -> str:
        """Where a row stands: an array of texts."""
        return f"ARRAY[{', '.join(f'CAST({operand.sql} AS text)' for operand in self._operands)}]"

    @property
    def clause(self) -> str:
        """For `ORDER BY`."""
        return ", ".join(
            f"{operand.sql} DESC" if descending else operand.sql
            for operand, descending in zip(self._operands, self._descending, strict=True)
        )

    def after(self, position: Sequence[Any], arguments: Arguments) -> str:
        """The rows that come after that one.

        Raises:
            PageTokenError: a position of another order.
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
        """All one way and never NULL: then one comparison of rows does, and an index serves it."""
        nullable = any(operand.is_nullable for operand in self._operands)
        return not nullable and len(set(self._descending)) == 1

    def _after_at(self, index: int, values: Sequence[str | None]) -> str:
        """Equal in every field before `index`, and beyond in that one."""
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
    """PostgreSQL's text form of an array."""
    return "{" + ",".join('"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"' for key in keys) + "}"
