"""Tables in memory: records with their unique indexes and foreign keys, changed by one decision at a time."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from hybridkit.codec import now
from hybridkit.dataservice._memory._filters import fits, value_at
from hybridkit.dataservice._store._decisions import Removed, Unchanged, Written, decide
from hybridkit.dataservice._store._etags import State
from hybridkit.dataservice._store._operations import Assert, Document, Operation, Result
from hybridkit.dataservice._store._refusals import foreign_key_violation, unique_violation, validated
from hybridkit.errors import DeclarationError
from hybridkit.resources import Filter
from hybridkit.resources._resource import AnyResource


@dataclass(frozen=True, slots=True)
class Row:
    """A record in memory.

    Attributes:
        values: by field, without the ETag.
        incarnation: a random number that tells the record from an earlier one with the same id.
        deleted_at: the time when a soft delete hid the record; None for a live one.
    """

    values: Mapping[str, Any]
    incarnation: int
    deleted_at: datetime | None = None

    @property
    def version(self) -> int:
        """The version, from 1."""
        version: int = self.values["version"]
        return version

    @property
    def tag(self) -> str:
        """The ETag."""
        return State(self.version, self.incarnation).tag

    @property
    def is_hidden(self) -> bool:
        """Whether a soft delete has hidden the record."""
        return self.deleted_at is not None

    def value(self, name: str) -> Any:
        """Return the value of a field."""
        return self.values[name]

    mergeable = value

    def meets(self, require: Filter) -> bool:
        """Return whether the filter holds for the record."""
        return fits(require, self.values)

    def document(self, fields: Sequence[str] = ()) -> Document:
        """Return the record, or some fields of it with a weak ETag."""
        names = [name for name in fields or self.values if name != "etag"]
        return {
            **{name: self.values[name] for name in names},
            "etag": f"W/{self.tag}" if fields else self.tag,
        }


class UniqueWhere:
    """A unique index over some of the records: `UniqueWhere("email", where=USERS["is_active"] == True)`.

    Args:
        *fields: the fields whose values no two of the records may have in common.
        where: the filter for the records in the index; besides the record's fields it may name `deleted_at`, as in
            `Compare("deleted_at", "is", None)` for those that no soft delete has hidden.

    Attributes:
        fields: the fields whose values no two of the records may have in common.
    """

    def __init__(self, *fields: str, where: Filter | None) -> None:
        self.fields = fields
        self._where = where

    def __repr__(self) -> str:
        return f"UniqueWhere({', '.join(map(repr, self.fields))}, where={self._where!r})"

    def holds_for(self, row: Row) -> bool:
        """Return whether the record is in the index."""
        return fits(self._where, {**row.values, "deleted_at": row.deleted_at})


type Unique = str | Sequence[str] | UniqueWhere


class MemoryTable:
    """The records of one resource.

    Args:
        resource: the declaration.
        unique: fields, or tuples of fields, whose values only one record may have.

    Attributes:
        resource: the declaration.
        rows: by id.
    """

    def __init__(self, resource: AnyResource, unique: Iterable[Unique] = ()) -> None:
        self.resource = resource
        self.rows: dict[Any, Row] = {}
        self._unique = [_unique_index(resource, index) for index in unique]
        self._references: list[tuple[str, MemoryTable]] = []
        self._referring: list[tuple[str, MemoryTable]] = []

    def __repr__(self) -> str:
        return f"MemoryTable({self.resource.name!r}, {len(self.rows)} rows)"

    @property
    def live(self) -> list[Row]:
        """The records that no soft delete has hidden."""
        return [row for row in self.rows.values() if row.deleted_at is None]

    def refer(self, field: str, to: "MemoryTable") -> None:
        """Add a foreign key: the field, where it isn't null, is the id of a record of the other table.

        Raises:
            DeclarationError: the record has no such field.
        """
        _check_field(self.resource, field)
        self._references.append((field, to))
        to._referring.append((field, self))  # noqa: SLF001 - another table

    def find(self, record_id: Any) -> Row | None:
        """Return the live record with that id, or None."""
        row = self.rows.get(record_id)
        return row if row and row.deleted_at is None else None

    def apply(self, operation: Operation) -> Result:
        """Carry out an operation.

        Raises:
            NotFoundError: the record is not there.
            StaleVersionError: the record is in another state.
            RequirementNotMetError: the record is not as the operation requires.
            UniqueViolationError: another record has a value that only one may have.
            ForeignKeyError: the record would refer to one that is not there, or another one refers to it.
            InvalidRequestError: a field can't hold a value.
        """
        row = self.rows.get(operation.id)
        decision = decide(operation, row, moment=now())
        match decision:
            case Written():
                return self._put(operation, self._written(operation, row, decision))
            case Removed():
                self._remove(operation, decision)
                return Result()
            case Unchanged():
                return Result() if row is None or isinstance(operation, Assert) else Result(row.document())

    def _written(self, operation: Operation, row: Row | None, decision: Written) -> Row:
        # A database's columns say whether they can hold what they are given; here the record's fields do.
        given = {
            name: validated(operation, name, value, bounds=False) for name, value in decision.given.items()
        }
        values = {**given, **decision.computed}
        if row is None:
            names = [name for name in self.resource.record.model_fields if name != "etag"]
            return Row({name: values.get(name) for name in names}, secrets.randbits(62))
        return replace(row, values={**row.values, **values}, deleted_at=None)

    def _remove(self, operation: Operation, decision: Removed) -> None:
        if not decision.is_soft:
            self._check_not_referred_to(operation)
            del self.rows[operation.id]
            return
        row = self.rows[operation.id]
        values = {**row.values, "version": decision.version}
        self.rows[operation.id] = replace(row, values=values, deleted_at=now())

    def _put(self, operation: Operation, row: Row) -> Result:
        for index in self._unique:
            self._check_unique(operation, row, index)
        for field, table in self._references:
            wanted = row.values[field]
            is_itself = table is self and wanted == operation.id
            if wanted is not None and wanted not in table.rows and not is_itself:
                raise foreign_key_violation(operation, [field])
        created = operation.id not in self.rows
        self.rows[operation.id] = row
        return Result(row.document(), created)

    def _check_unique(self, operation: Operation, row: Row, index: UniqueWhere) -> None:
        wanted = [value_at(row.values, name) for name in index.fields]
        if None in wanted or not index.holds_for(row):
            return
        for record_id, other in self.rows.items():
            is_other = record_id != operation.id and index.holds_for(other)
            if is_other and wanted == [value_at(other.values, name) for name in index.fields]:
                raise unique_violation(operation, index.fields)

    def _check_not_referred_to(self, operation: Operation) -> None:
        for field, table in self._referring:
            for record_id, row in table.rows.items():
                is_itself = table is self and record_id == operation.id
                if row.values[field] == operation.id and not is_itself:
                    raise foreign_key_violation(operation)


def _unique_index(resource: AnyResource, declared: Unique) -> UniqueWhere:
    if isinstance(declared, UniqueWhere):
        index = declared
    else:
        names = (declared,) if isinstance(declared, str) else declared
        index = UniqueWhere(*names, where=None)
    for name in index.fields:
        _check_field(resource, name)
    return index


def _check_field(resource: AnyResource, path: str) -> None:
    if path.partition(".")[0] not in resource.record.model_fields:
        raise DeclarationError(f"{resource.name}: {resource.record.__name__} has no field {path!r}")
