"""Map a resource to its table: fields to columns, values to the columns' types, and rows to records."""

from collections.abc import Sequence
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import ARRAY, ColumnElement, Enum, Row, Text, inspect, true, type_coerce
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import DOMAIN

from hybridkit._personal import personal_fields
from hybridkit.dataservice._postgres._columns import RecordColumns
from hybridkit.dataservice._postgres._types._column_fit import unfit_reason
from hybridkit.dataservice._postgres._types._parameters import (
    DIALECT,
    array_depth,
    is_document,
    is_perilous,
)
from hybridkit.dataservice._postgres._types._values import (
    check_limits,
    fitted,
    is_kept,
    python_type,
    shown_by,
)
from hybridkit.dataservice._store._etags import State
from hybridkit.dataservice._store._operations import Document
from hybridkit.errors import DeclarationError, FieldProblem, InvalidRequestError
from hybridkit.resources._resource import SYSTEM_FIELDS, AnyResource

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

_NUMBERS: Final = (int, float, Decimal)


class ResourceTable:
    """A resource and its table.

    Args:
        resource: the resource's declaration.
        mapped: a declarative class with `RecordColumns`; its attributes are the record's fields.

    Raises:
        DeclarationError: a field of the record has no column, or its column can't hold it.
    """

    def __init__(self, resource: AnyResource, mapped: type[RecordColumns]) -> None:
        self.resource = resource
        mapper = inspect(mapped)
        self.table = mapper.local_table
        own: dict[str, Any] = dict(mapper.columns.items())
        # An expression, or a column of another table, can't be written.
        self._columns = {name: held for name, held in own.items() if self.table.c.contains_column(held)}
        self.fields = tuple(name for name in resource.record.model_fields if name != "etag")
        missing = [name for name in (*self.fields, "incarnation") if name not in self._columns]
        if missing:
            raise DeclarationError(
                f"{mapped.__name__} has no column for {', '.join(missing)} of {resource.record.__name__};"
                " a table of a data service inherits RecordColumns and has the record's fields"
            )
        reasons = [unfit_reason(resource.record, name, self[name].type) for name in self.fields]
        if unfit := [each for each in reasons if each is not None]:
            raise DeclarationError(f"{mapped.__name__} for {resource.record.__name__}: {'; '.join(unfit)}")
        for field in personal_fields(resource.record):
            if field.blank is None and not self[field.name].nullable:
                raise DeclarationError(
                    f"{mapped.__name__}.{field.name} is NOT NULL, and becomes null when its person is forgotten; make"
                    " it nullable, or give the field a default to be erased to"
                )
        if resource.soft_delete and "deleted_at" not in self._columns:
            raise DeclarationError(
                f"{mapped.__name__} has no column deleted_at; where {resource.name} is declared with soft_delete,"
                " its table inherits SoftDeleteColumns too"
            )

    def __repr__(self) -> str:
        return f"ResourceTable({self.resource!r}, {self.table.name!r})"

    def __getitem__(self, name: str) -> Any:
        """Return the column of that field."""
        return self._columns[name]

    @cached_property
    def source(self) -> str:
        """The table's name in SQL."""
        return str(DIALECT.identifier_preparer.format_table(self.table))

    def own(self, word: str) -> str:
        """Return a name to use in a statement beside this table, which is never called so itself."""
        return f"hk_{word}_" if self.table.name == f"hk_{word}" else f"hk_{word}"

    def sql(self, name: str) -> str:
        """Return the SQL for the column of that field, with its table."""
        return f"{self.source}.{DIALECT.identifier_preparer.format_column(self[name])}"

    def read_sql(self, name: str) -> str:
        """Return as `sql`, but cast if the driver can't read the column's own type."""
        return f"CAST({self.sql(name)} AS text[])" if is_perilous(self[name].type) else self.sql(name)

    @cached_property
    def live_sql(self) -> str:
        """The SQL of `live`."""
        return f"{self.sql('deleted_at')} IS NULL" if self.resource.soft_delete else "true"

    @cached_property
    def live(self) -> ColumnElement[bool]:
        """The condition for records that are not hidden by a soft delete."""
        return self["deleted_at"].is_(None) if self.resource.soft_delete else true()

    def python_type(self, name: str) -> type[Any] | None:
        """Return the Python type of the column's values; None if SQLAlchemy doesn't say."""
        return python_type(self[name].type)

    def holds_document(self, name: str) -> bool:
        """Return whether the column is JSON."""
        return is_document(self[name].type)

    def is_number(self, name: str) -> bool:
        """Return whether the field can be incremented."""
        return self.python_type(name) in _NUMBERS

    # ── read ──────────────────────────────────────────────────────────────────────────────────────

    def view(self, fields: Sequence[str] = ()) -> "View":
        """Return the columns to read for some fields of the record, or for all of them."""
        return View(self, fields)

    @cached_property
    def whole(self) -> "View":
        """All fields of the record."""
        return View(self, ())

    @property
    def all(self) -> Sequence[ColumnElement[Any]]:
        """Every column of a record, for `SELECT` and `RETURNING`."""
        return self.whole.columns

    def document(self, row: Row[*tuple[Any, ...]]) -> Document:
        """Return the record in a row of `all`."""
        return self.whole.document(row)

    def tag(self, row: Row[*tuple[Any, ...]]) -> str:
        """Return the ETag of the record in a row of `all`."""
        return str(self.document(row)["etag"])

    # ── write ─────────────────────────────────────────────────────────────────────────────────────

    def bind(self, name: str, value: Any, *, at: str = "") -> Any:
        """Convert a value to what the column takes.

        Args:
            name: the field's name.
            value: the value, in Python or as JSON.
            at: the JSON pointer to the fields in the request, for the error.

        Raises:
            InvalidRequestError: the column can't hold the value.
        """
        kind = self[name].type
        if value is None or is_kept(kind, value):
            return value
        code = "wrong_type"
        try:
            found = fitted(kind, value)
            code = "out_of_range" if isinstance(found, int | Decimal) else "invalid_value"
            check_limits(kind, found)
        except ValueError as error:
            problem = FieldProblem(f"{at}/{name}", code, str(error))
            raise InvalidRequestError("the table can't hold a value", errors=[problem]) from None
        return found

    @cached_property
    def _defaulted(self) -> Sequence[str]:
        """The fields that no create names, with a default in the record but none in the table."""
        record, create = self.resource.record.model_fields, self.resource.create.model_fields
        return tuple(
            name
            for name in self.fields
            if name not in SYSTEM_FIELDS
            and name not in create
            and not record[name].is_required()
            and self[name].default is None
            and self[name].server_default is None
        )

    def defaults(self) -> dict[str, Any]:
        """Return the defaults of fields that no create names, if only the record's model has them."""
        fields = self.resource.record.model_fields
        return {
            name: fields[name].get_default(call_default_factory=True, validated_data={})
            for name in self._defaulted
        }


class View:
    """Some fields of a record, and the columns to read for them.

    Args:
        table: the record's table.
        fields: the names of the fields; empty for all.

    Attributes:
        stored: the fields whose columns are read.
        columns: the columns of these fields.
    """

    def __init__(self, table: ResourceTable, fields: Sequence[str]) -> None:
        self._is_whole = not fields
        self._fields = tuple(fields) or tuple(table.resource.record.model_fields)
        stored = dict.fromkeys((*self._fields, "version", "incarnation"))
        self.stored = tuple(name for name in stored if name != "etag")
        self.columns: Sequence[ColumnElement[Any]] = tuple(as_read(table[name]) for name in self.stored)
        shown = {name: shown_by(table[name].type) for name in self.stored}
        self._shown = {name: show for name, show in shown.items() if show is not None}

    def __repr__(self) -> str:
        return f"View({self._fields})"

    def document(self, row: Row[*tuple[Any, ...]]) -> Document:
        """Return the fields in a row that begins with the columns; the ETag of a part of the record is weak."""
        values = dict(zip(self.stored, row, strict=False))
        for name, show in self._shown.items():
            values[name] = show(values[name])
        tag = State(values["version"], values["incarnation"]).tag
        if self._is_whole:
            values["etag"] = tag
            return {name: values[name] for name in self._fields}
        return {**{name: values[name] for name in self._fields if name != "etag"}, "etag": f"W/{tag}"}


def as_read(column: Any) -> ColumnElement[Any]:
    """Return the column with the type by which it is read: an enumeration as labels, an array of JSON as documents.

    A label may be one that the code doesn't have, and SQLAlchemy would take documents that are lists for dimensions of
    an array that declares none.
    """
    kind = _read_by(column.type)
    if is_perilous(column.type):
        return type_coerce(sql_cast(column, ARRAY(Text)), kind or column.type).label(column.key)
    return cast("ColumnElement[Any]", column) if kind is None else type_coerce(column, kind).label(column.key)


def _read_by(kind: "TypeEngine[Any]") -> "TypeEngine[Any] | None":
    """Return the type by which a column is read; None for its own type."""
    match kind:
        case DOMAIN():
            return _read_by(kind.data_type) or kind.data_type
        case Enum():
            return Text()
        case ARRAY(item_type=Enum()) as labels:
            return ARRAY(Text, dimensions=labels.dimensions)
        case ARRAY(dimensions=None) as array if depth := array_depth(array):
            return ARRAY(array.item_type, as_tuple=array.as_tuple, dimensions=depth)
        case _:
            return None
