"""Export a whole query piece by piece, from a cursor on the server and in one consistent view."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Final

from hybridkit.codec import encode_json
from hybridkit.context import current
from hybridkit.dataservice._postgres._driver._errors import OutdatedError, query_error
from hybridkit.dataservice._postgres._driver._pool import DEFAULT_SECONDS, Pool, Session
from hybridkit.dataservice._postgres._filters import Arguments
from hybridkit.dataservice._postgres._json_printing import Projection, projection
from hybridkit.dataservice._postgres._read_statements import line_statement, row_statement
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._store._documents import canonical
from hybridkit.dataservice._store._protocol import ExportChunk
from hybridkit.resources import Query

PIECE_BYTES: Final = 256 * 1024
"""The size of a piece, about: its number of rows is chosen by the size of the rows before."""
FIRST_ROWS: Final = 50
MAX_ROWS: Final = 2000


async def export_lines(pool: Pool, table: ResourceTable, query: Query) -> AsyncGenerator[ExportChunk]:
    """Yield every record of a query as lines of JSON.

    The time until the deadline of the bound context is the time for each piece, not for all of them. A reader who takes
    no piece for a minute loses the connection. A piece is read once the one before is taken.
    """
    left = current().remaining_seconds()
    seconds = DEFAULT_SECONDS if left is None else left
    shown = projection(table, query.select)
    wanted = FIRST_ROWS
    async with AsyncExitStack() as stack:
        try:
            session, source = await _opened(stack, pool, table, shown, query)
        except OutdatedError:
            session, source = await _opened(stack, pool, table, shown, query)
        while True:
            lines = await source.read(session, wanted)
            if lines.records == 0:
                return
            session.pause()
            try:
                yield lines
            finally:
                session.resume(seconds)
            wanted = min(max(PIECE_BYTES * lines.records // len(lines.body), 1), MAX_ROWS)


async def _opened(
    stack: AsyncExitStack, pool: Pool, table: ResourceTable, shown: Projection, query: Query
) -> tuple[Session, "_Printed | _Rows"]:
    """Open a cursor in a transaction that the stack ends."""
    source = _Printed() if shown.is_printed else _Rows()
    async with AsyncExitStack() as opening:
        begun = pool.session(isolation="repeatable_read", read_only=True)
        session = await opening.enter_async_context(begun)
        await source.open(session, table, shown, query)
        stack.push_async_exit(opening.pop_all())
    return session, source


class _Printed:
    """A cursor over lines that PostgreSQL prints."""

    async def open(self, session: Session, table: ResourceTable, shown: Projection, query: Query) -> None:
        arguments = Arguments()
        sql = line_statement(table, shown, query, arguments)
        self._cursor = await session.cursor(sql, *arguments.values, translate=query_error)
        self._shown = shown

    async def read(self, session: Session, rows: int) -> ExportChunk:
        records = await session.read(self._cursor, rows, translate=query_error)
        if self._shown.has_documents:
            return ExportChunk(b"".join(canonical(record[0]) + b"\n" for record in records), len(records))
        return ExportChunk("".join(f"{record[0]}\n" for record in records).encode(), len(records))


class _Rows:
    """A cursor over rows that Python prints."""

    async def open(self, session: Session, table: ResourceTable, shown: Projection, query: Query) -> None:
        arguments = Arguments(for_clause=True)
        sql = row_statement(table, shown, query, arguments)
        statement = arguments.clause(sql).columns(*shown.view.columns)
        self._result = await session.run(
            lambda connection: connection.stream(statement), translate=query_error
        )
        self._shown = shown

    async def read(self, session: Session, rows: int) -> ExportChunk:
        records = await session.run(lambda _: self._result.fetchmany(rows), translate=query_error)
        documents = map(self._shown.view.document, records)
        return ExportChunk(b"".join(encode_json(document) + b"\n" for document in documents), len(records))
