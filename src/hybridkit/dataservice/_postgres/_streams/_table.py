"""The table of a kind of stream, checked against what appends and reads need of it."""

from typing import TYPE_CHECKING, Final, cast

from hybridkit.dataservice._postgres._json_printing import quoted
from hybridkit.dataservice._postgres._streams._columns import StreamColumns
from hybridkit.errors import DeclarationError
from hybridkit.streams._stream import AnyStream

if TYPE_CHECKING:
    from sqlalchemy import Table

_LOG: Final = ("epoch", "xid", "position")


class StreamTable:
    """The place of a kind of stream in the database.

    Args:
        stream: the declaration.
        mapped: the declarative class.

    Raises:
        DeclarationError: the class is no table with `StreamColumns`, or its index of the log is missing.

    Attributes:
        stream: the declaration.
        table: the table.
        source: the table's name in SQL.
        primary_key: the name of its primary key, which two appends to one version violate.
    """

    def __init__(self, stream: AnyStream, mapped: type[StreamColumns]) -> None:
        given = cast("object", mapped)
        table: Table | None = getattr(given, "__table__", None)
        if table is None or not (isinstance(given, type) and issubclass(given, StreamColumns)):
            raise DeclarationError(f"{stream.name}: {mapped!r} is no declarative class with StreamColumns")
        if not any(tuple(index.columns.keys()) == _LOG for index in table.indexes):
            raise DeclarationError(
                f"{stream.name}: {mapped.__name__} has no index on (epoch, xid, position), which readers of the log"
                " follow; keep *super().__table_args__ in its __table_args__"
            )
        self.primary_key = str(table.primary_key.name or f"{table.name}_pkey")
        self.stream = stream
        self.table = table
        self.source = ".".join(quoted(part) for part in (table.schema, table.name) if part is not None)

    def __repr__(self) -> str:
        return f"StreamTable({self.stream!r}, {self.source})"
