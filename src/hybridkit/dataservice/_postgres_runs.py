"""Neighbouring operations of one kind as one statement, their values its rows.

The rows are a table that the statement joins. It is one array per column, so the statement is the same however many
rows there are, and has no limit on their number.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Enum,
    FromClause,
    String,
    Text,
    TypeDecorator,
    column,
    func,
    literal,
    values,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import JSON as PG_JSON
from sqlalchemy.sql.elements import Null
from sqlalchemy.types import ARRAY as ANY_ARRAY
from sqlalchemy.types import TypeEngine

from hybridkit.dataservice._operations import Create, Operation, Update, Upsert
from hybridkit.dataservice._postgres_table import ResourceTable

__all__ = ["Rows", "chunks", "column_type", "runs"]

MAX_PARAMETERS: Final = 32_000
"""PostgreSQL's protocol counts the parameters of a statement in 16 bits."""


def runs(operations: Iterable[Operation]) -> list[list[Operation]]:
    """The operations in their order, cut where the next one can't share a statement with those before it.

    It can't where it is of another kind, names other fields, or names a record again.
    """
    found: list[list[Operation]] = []
    shape: object = None
    ids: set[Any] = set()
    for operation in operations:
        if (own := _shape(operation)) != shape or operation.id in ids:
            shape = own
            ids = set()
            found.append([])
        ids.add(operation.id)
        found[-1].append(operation)
    return found


def chunks[T: Operation](table: ResourceTable, run: Sequence[T]) -> list[Sequence[T]]:
    """The run in pieces that fit into a statement: one, for a table of ordinary columns."""
    size, columns = len(run), tuple(table.table.columns)
    if not all(_is_plain(held.type) for held in columns):
        size = MAX_PARAMETERS // (
            2 * len(columns) + 3
        )  # a change sets fields, adds to fields, and names a state
    if any(held.default is not None and held.default.is_callable for held in columns):
        size = 1  # SQLAlchemy calls it once per statement
    return [run[start : start + size] for start in range(0, len(run), size)]


class Rows:
    """The values of a run, to be joined; each row has its `position` in the run.

    Args:
        kinds: the type of each column, by name.
        rows: the values, in the order of the kinds.
    """

    def __init__(self, kinds: Mapping[str, TypeEngine[Any]], rows: Sequence[Sequence[Any]]) -> None:
        types = [column_type(kind) for kind in kinds.values()]
        cleaned = [[None if isinstance(value, Null) else value for value in row] for row in rows]
        # What a column is called must not matter, a reserved word for one.
        names = [f"c{number}" for number in range(len(types))]
        table: FromClause
        if all(map(_is_plain, types)):
            arrays = [
                literal([row[number] for row in cleaned], ARRAY(kind)) for number, kind in enumerate(types)
            ]
            shown = [column(name, kind) for name, kind in zip(names, types, strict=True)]
            table = (
                func.unnest(*arrays)
                .table_valued(*shown, with_ordinality="position")
                .render_derived(name="given")
            )
        else:
            shown = [column(name, kind) for name, kind in zip(names, types, strict=True)]
            numbered = [(*row, number) for number, row in enumerate(cleaned, 1)]
            table = values(*shown, column("position", BigInteger), name="given").data(numbered)
        self.position: ColumnElement[int] = table.c["position"]
        self._columns = {name: table.c[own] for name, own in zip(kinds, names, strict=True)}

    def __repr__(self) -> str:
        return f"Rows({list(self._columns)})"

    def __getitem__(self, name: str) -> ColumnElement[Any]:
        """The column of that name."""
        return self._columns[name]


def _shape(operation: Operation) -> object:
    match operation:
        case Update():
            named: object = (
                tuple(operation.changes),
                tuple(operation.merges),
                tuple(operation.increment),
                operation.require,
                operation.if_match is None,
            )
        case Upsert():
            named = (tuple(operation.values), operation.only, operation.if_match is None)
        case Create():
            named = tuple(operation.values)
        case _:
            named = operation.if_match is None
    return (type(operation), operation.resource, named)


def _is_plain(kind: TypeEngine[Any]) -> bool:
    """Whether an array of it is one value per row: arrays of arrays are flattened, and who knows what others do."""
    return not isinstance(kind, ANY_ARRAY | TypeDecorator)


def column_type(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """The type for a parameter of that column: no text is cut to the column's length unseen, no value is NULL."""
    if isinstance(kind, JSON):
        return JSONB(none_as_null=True) if isinstance(kind, JSONB) else PG_JSON(none_as_null=True)
    if isinstance(kind, String) and not isinstance(kind, Enum):
        return Text()
    return kind
