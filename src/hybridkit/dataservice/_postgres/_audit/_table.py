"""The table of the audit trail, as a resource that is read like any other."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Index, Row, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from hybridkit.dataservice._postgres._audit._values import raw_changes, read_changes
from hybridkit.dataservice._postgres._columns import RecordColumns
from hybridkit.dataservice._postgres._table import ResourceTable, View
from hybridkit.dataservice._store._operations import Document
from hybridkit.resources import AUDIT


class _JsonText(UserDefinedType[str]):
    """JSON as PostgreSQL prints it, so that no digit of a number is lost."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name in SQL."""
        return "jsonb"


class _Base(DeclarativeBase):
    """A base of its own: `hybridkit revision` compares nothing of it."""


class AuditRows(RecordColumns, _Base):
    """The rows of `hk_audit`, which only its trigger writes."""

    __tablename__ = "hk_audit"
    __table_args__ = (
        Index("hk_audit_record", "resource", "record_id", "id"),
        Index("hk_audit_user", "user_id", "id", postgresql_where=text("user_id IS NOT NULL")),
    )
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True),
        primary_key=True,
        server_default=text("date_trunc('milliseconds', now())"),
    )
    incarnation: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    resource: Mapped[str] = mapped_column(Text)
    record_id: Mapped[str] = mapped_column(Text)
    record_version: Mapped[int] = mapped_column(BigInteger)
    operation: Mapped[str] = mapped_column(Text)
    caller: Mapped[str] = mapped_column(Text)
    user_id: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    changes: Mapped[str] = mapped_column(_JsonText())


class AuditTable(ResourceTable):
    """The audit trail as a resource's table.

    Args:
        tables: the tables of the service's resources, by which the values in the entries are read.
    """

    def __init__(self, tables: Mapping[str, ResourceTable]) -> None:
        super().__init__(AUDIT, AuditRows)
        self.tables = tables

    def read_sql(self, name: str) -> str:
        """Return the SQL of a field; of the changes their text, in which no number has lost a digit."""
        return f"CAST({self.sql(name)} AS text)" if name == "changes" else super().read_sql(name)

    def view(self, fields: Sequence[str] = ()) -> View:
        """Return the columns to read for some fields of an entry, or for all of them."""
        return _EntryView(self, fields) if not fields or "changes" in fields else super().view(fields)


class _EntryView(View):
    """An entry, or some fields with its changes, which are read by the table of its resource."""

    def __init__(self, table: AuditTable, fields: Sequence[str]) -> None:
        self._adds_resource = bool(fields) and "resource" not in fields
        super().__init__(table, (*fields, "resource") if self._adds_resource else fields)
        self._tables = table.tables

    def document(self, row: Row[*tuple[Any, ...]]) -> Document:
        """Return the fields in a row that begins with the columns, with the changes as records show them."""
        found = dict(super().document(row))
        table = self._tables.get(found["resource"])
        written: str = found["changes"]
        found["changes"] = raw_changes(written) if table is None else read_changes(table, written)
        if self._adds_resource:
            del found["resource"]
        return found
