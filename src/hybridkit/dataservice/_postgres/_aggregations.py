"""Translate aggregations to SQL: groups and functions of declared fields, printed as in every other response."""

# ruff: noqa: S608 - what is pasted comes from declarations, or is a whole number; values are arguments

from collections.abc import Sequence
from typing import Any, assert_never

from sqlalchemy import Boolean, Float, Integer, Numeric, Uuid
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from hybridkit.codec import encode_json
from hybridkit.dataservice._postgres._filters import Arguments, Operand, operand
from hybridkit.dataservice._postgres._json_printing import printed
from hybridkit.dataservice._postgres._read_statements import where_clause
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._postgres._types._parameters import bare
from hybridkit.dataservice._store._documents import read_document
from hybridkit.errors import InvalidQueryError
from hybridkit.resources import Aggregation, Function

type Value = tuple[str, TypeEngine[Any]]
"""An SQL expression, and the type by which it is printed."""


class Aggregated:
    """The statement for an aggregation. Its rows are JSON arrays: the group's fields, then the functions.

    Attributes:
        sql: the text.
        arguments: the values of its parameters.

    Raises:
        InvalidQueryError: a field's type doesn't have the function.
    """

    def __init__(self, table: ResourceTable, aggregation: Aggregation) -> None:
        self.arguments = Arguments()
        self._names = [*aggregation.group_by, *aggregation.functions]
        fields = [operand(table, field) for field in aggregation.group_by]
        groups = [(field.sql, _kind(field)) for field in fields]
        results = [_result(table, name, function) for name, function in aggregation.functions.items()]
        values = [*groups, *results]
        shown = [_printed(self._names[n], kind, f"v{n}") for n, (_, kind) in enumerate(values)]
        selected = ", ".join(f"{sql} AS v{n}" for n, (sql, _) in enumerate(values))
        grouped = f" GROUP BY {', '.join(sql for sql, _ in groups)}" if groups else ""
        self.sql = (
            f"SELECT CAST(json_build_array({', '.join(shown)}) AS text) FROM (SELECT {selected} FROM {table.source}"  # nosec B608
            f"{where_clause(table, aggregation.where, self.arguments)}{grouped}"
            f"{self._order(aggregation)} LIMIT {aggregation.limit:d}) found"
        )

    def __repr__(self) -> str:
        return f"Aggregated({self._names})"

    def encoded(self, rows: Sequence[Any]) -> bytes:
        """Encode the rows as a JSON array of objects."""
        return encode_json([dict(zip(self._names, read_document(row[0]), strict=True)) for row in rows])

    def _order(self, aggregation: Aggregation) -> str:
        """Write `ORDER BY`: the order asked for, then the group's fields, so that the order is always the same."""
        asked = dict(aggregation.order)
        pairs = [*asked.items(), *((name, "asc") for name in aggregation.group_by if name not in asked)]
        columns = [f"{self._names.index(name) + 1} {direction.upper()}" for name, direction in pairs]
        return f" ORDER BY {', '.join(columns)}" if columns else ""


def _kind(found: Operand) -> TypeEngine[Any]:
    """Return the type, also of a sum: integers add up to an integer of any size, numbers in documents stay numbers."""
    kind: TypeEngine[Any] = JSONB() if found.is_path else found.column.type
    return kind


def _result(table: ResourceTable, name: str, function: Function) -> Value:
    if function.field is None:
        return "count(*)", Integer()
    found = operand(table, function.field)
    match function.name:
        case "count" | "count_distinct":
            return f"count(DISTINCT {found.sql})", Integer()
        case "sum":
            return f"sum({_number(found, name)})", _kind(found)
        case "avg":
            return _average(found, name)
        case "min" | "max":
            return _extreme(found, largest=function.name == "max")
        case _:
            assert_never(function.name)


def _number(found: Operand, name: str) -> str:
    """Write SQL for a number to add up; anything else in a document counts as nothing."""
    if found.is_path:
        return f"CASE WHEN jsonb_typeof({found.sql}) = 'number' THEN CAST({found.sql} AS numeric) END"
    if not isinstance(bare(found.column.type), Integer | Numeric | Float):
        raise InvalidQueryError(f"{found.field} is no number", pointer=f"/functions/{name}")
    return found.sql


def _average(found: Operand, name: str) -> Value:
    """Write the average: exact for decimals, otherwise a float."""
    mean = f"avg({_number(found, name)})"
    kind: Any = None if found.is_path else bare(found.column.type)
    if isinstance(kind, Numeric) and not isinstance(kind, Float):
        return f"trim_scale({mean})", Numeric()
    return f"CAST({mean} AS float8)", Float()


def _extreme(found: Operand, *, largest: bool) -> Value:
    kind = _kind(found)
    if found.is_path or isinstance(bare(kind), Boolean | Uuid):
        # PostgreSQL orders values of these types, but has no `min` and `max` for them.
        direction = " DESC" if largest else ""
        ordered = (
            f"array_agg({found.sql} ORDER BY {found.sql}{direction}) FILTER (WHERE {found.sql} IS NOT NULL)"
        )
        return f"({ordered})[1]", kind
    return f"{'max' if largest else 'min'}({found.sql})", kind


def _printed(name: str, kind: TypeEngine[Any], value: str) -> str:
    shown = printed(kind, value)
    if shown is None:
        raise InvalidQueryError(f"{name} has values that can't be shown", pointer=f"/{name}")
    return shown
