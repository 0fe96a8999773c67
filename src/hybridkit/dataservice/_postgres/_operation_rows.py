"""Combine neighbouring operations of one kind into one statement whose rows are their values.

The rows are a table that the statement joins. It is made of one array per column, so the statement is the same for any
number of rows, and has no limit on it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    values,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine

from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._postgres._types._parameters import (
    MAX_PARAMETERS,
    document_depth,
    is_document,
    is_scalar,
    parameter_type,
)
from hybridkit.dataservice._postgres._types._values import in_texts
from hybridkit.dataservice._store._operations import Create, Operation, Update, Upsert


def runs(operations: Iterable[Operation]) -> list[list[Operation]]:
    """Split the operations where the next one can't share a statement with those before it.

    That is so if it is of another kind, names other fields, or names a record again.
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
    """Split a run into pieces that fit into a statement each; a table of ordinary columns needs only one."""
    size, columns = len(run), tuple(table.table.columns)
    if not all(_is_element(held.type) for held in columns):
        # At most: a value and an increment for each column, the id, and the two parts of a tag.
        size = MAX_PARAMETERS // (2 * len(columns) + 3)
    if any(held.default is not None and held.default.is_callable for held in columns):
        size = 1  # SQLAlchemy calls it once per statement
    return [run[start : start + size] for start in range(0, len(run), size)]


class Rows:
    """The values of a run as a table to join; each row has its `position` in the run.

    Args:
        name: the table's name in the statement, where no other table is called so.
        kinds: the type of each column, by name.
        rows: the values, in the order of the kinds.
    """

    def __init__(
        self, name: str, kinds: Mapping[str, TypeEngine[Any]], rows: Sequence[Sequence[Any]]
    ) -> None:
        types = list(kinds.values())
        # Numbered, as a column may be called anything, such as a reserved word.
        names = [f"c{number}" for number in range(len(types))]
        table = (_unnested if all(map(_is_element, types)) else _listed)(name, names, types, rows)
        self.position: ColumnElement[int] = table.c["position"]
        self._columns = {
            field: table.c[own] if document_depth(kind) is None else cast(table.c[own], parameter_type(kind))
            for (field, kind), own in zip(kinds.items(), names, strict=True)
        }

    def __repr__(self) -> str:
        return f"Rows({list(self._columns)})"

    def __getitem__(self, name: str) -> ColumnElement[Any]:
        """Return the column of that name."""
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
            added = tuple(operation.increment.items())
            named = (tuple(operation.values), added, operation.only, operation.if_match is None)
        case Create():
            named = tuple(operation.values)
        case _:
            named = operation.if_match is None
    return (type(operation), operation.resource, named)


def _unnested(
    name: str, names: Sequence[str], types: Sequence[TypeEngine[Any]], rows: Sequence[Sequence[Any]]
) -> FromClause:
    """Write the rows as one array per column."""
    kinds = [_element_type(kind) for kind in types]
    arrays = [
        literal([in_texts(kind, row[number]) for row in rows], ARRAY(kinds[number]))
        for number, kind in enumerate(types)
    ]
    shown = [column(own, kind) for own, kind in zip(names, kinds, strict=True)]
    found: FromClause = (
        func.unnest(*arrays).table_valued(*shown, with_ordinality="position").render_derived(name=name)
    )
    return found


def _listed(
    name: str, names: Sequence[str], types: Sequence[TypeEngine[Any]], rows: Sequence[Sequence[Any]]
) -> FromClause:
    """Write the rows as one parameter per value.

    The first row is cast: without that, a column of nothing but NULLs would be one of texts.
    """
    kinds = [_element_type(kind) for kind in types]
    listed = [
        [
            bindparam(None, in_texts(kind, value), own)
            for kind, own, value in zip(types, kinds, row, strict=True)
        ]
        for row in rows
    ]
    first: list[Any] = [cast(value, kind) for value, kind in zip(listed[0], kinds, strict=True)]
    numbered = [(*row, number) for number, row in enumerate([first, *listed[1:]], 1)]
    shown = [column(own, kind) for own, kind in zip(names, kinds, strict=True)]
    return values(*shown, column("position", BigInteger), name=name).data(numbered)


def _is_element(kind: TypeEngine[Any]) -> bool:
    return is_scalar(kind) or is_document(kind)


def _element_type(kind: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type for an array's elements; documents go as texts, as lists would be dimensions of the array."""
    match document_depth(kind):
        case None:
            return parameter_type(kind)
        case 0:
            return Text()
        case depth:
            return ARRAY(Text, dimensions=depth)
