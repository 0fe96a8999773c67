"""Read records from PostgreSQL: one statement and one round trip for each read, with JSON that PostgreSQL prints.

A table with a column that PostgreSQL can't print as `encode_json` does (`_types._json_printing`) is read by the same
statements, and printed in Python.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from itertools import takewhile
from typing import Any, Final

from sqlalchemy import Row

from hybridkit.codec import encode_json
from hybridkit.dataservice._postgres._aggregations import Aggregated
from hybridkit.dataservice._postgres._driver._errors import query_error
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._export import export_lines
from hybridkit.dataservice._postgres._filters import Arguments, operand
from hybridkit.dataservice._postgres._json_printing import Projection, projection
from hybridkit.dataservice._postgres._read_statements import (
    batch_statement,
    limited_statement,
    page_statement,
    record_statement,
    where_clause,
)
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._store._documents import canonical
from hybridkit.dataservice._store._operations import CallWork
from hybridkit.dataservice._store._protocol import (
    AnswerSpace,
    EncodedPage,
    EncodedRecord,
    ExportChunk,
    answer_too_large,
    encoded_list,
)
from hybridkit.errors import NotSupportedError, OverloadedError
from hybridkit.resources import Aggregation, Compare, Filter, Query
from hybridkit.resources._resource import AnyResource

EXPORT_SHARE: Final = 3
"""Of how many connections one may be busy with an export."""
_EXPECTED_ROWS: Final = re.compile(r"rows=([0-9]+)")


class PostgresReader:
    """The reads of the contract on one PostgreSQL database.

    Args:
        pool: the connections for requests.
        tables: the tables by their resource's name.
    """

    def __init__(self, pool: Pool, tables: Mapping[str, ResourceTable]) -> None:
        self._pool = pool
        self._tables = tables
        self._hot = {name: _HotStatements(table) for name, table in tables.items()}
        self._exports = asyncio.Semaphore(max(pool.pool_size // EXPORT_SHARE, 1))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({sorted(self._tables)})"

    async def get(self, resource: AnyResource, record_id: Any) -> EncodedRecord | None:
        """Return the record with that id, if there is one."""
        hot = self._hot[resource.name]
        if not hot.whole.is_printed:
            return await self._get_row(hot, record_id)
        rows = await self._pool.fetch(hot.record, hot.id(record_id), translate=query_error)
        if not rows:
            return None
        body, tag = rows[0]
        return EncodedRecord(canonical(body) if hot.whole.has_documents else body.encode(), tag)

    async def get_many(self, resource: AnyResource, record_ids: Sequence[Any]) -> bytes:
        """Return a JSON array of the records with those ids, in their order, with null for a missing one."""
        hot = self._hot[resource.name]
        if not hot.whole.is_printed:
            return await self._get_rows(hot, record_ids)
        ids = [hot.id(record_id) for record_id in record_ids]
        [[body]] = await self._pool.fetch(hot.batch, ids, translate=query_error)
        if body is None:
            raise answer_too_large()
        return canonical(body) if hot.whole.has_documents else body.encode()

    async def find(self, resource: AnyResource, query: Query, *, after: Sequence[Any] | None) -> EncodedPage:
        """Return one page of a query, by keyset: no row is skipped or seen twice, whatever is inserted meanwhile."""
        table = self._tables[resource.name]
        shown = projection(table, query.select)
        if not shown.is_printed:
            return await self._find_rows(table, shown, query, after)
        arguments = Arguments()
        sql = page_statement(table, shown, query, arguments, after=after)
        [[body, last, more]] = await self._pool.fetch(sql, *arguments.values, translate=query_error)
        items = canonical(body) if shown.has_documents else body.encode()
        return EncodedPage(items, last[0] if more else None)

    async def count(self, resource: AnyResource, where: Filter | None, *, exact: bool) -> int:
        """Return how many records match; if `exact` is false, the estimate of PostgreSQL's planner."""
        table, arguments = self._tables[resource.name], Arguments()
        tail = f"FROM {table.source}{where_clause(table, where, arguments)}"
        sql = f"SELECT count(*) {tail}" if exact else f"EXPLAIN SELECT 1 {tail}"
        rows = await self._pool.fetch(sql, *arguments.values, translate=query_error)
        if exact:
            return int(rows[0][0])
        expected = _EXPECTED_ROWS.search(rows[0][0])
        return int(expected[1]) if expected else 0

    async def export(self, resource: AnyResource, query: Query) -> AsyncGenerator[ExportChunk]:
        """Yield every record of a query in one consistent view, from a cursor on the server.

        Raises:
            OverloadedError: other exports use every connection that exports may use.
        """
        if self._exports.locked():
            raise OverloadedError("other exports are under way; try again later", retry_after_seconds=5.0)
        table = self._tables[resource.name]
        # Closed here: when a reader leaves, its connection is to be free before the next export may begin.
        async with self._exports, aclosing(export_lines(self._pool, table, query)) as pieces:
            async for lines in pieces:
                yield lines

    async def aggregate(self, resource: AnyResource, aggregation: Aggregation) -> bytes:
        """Return a JSON array of rows, with a member for each group field and function."""
        aggregated = Aggregated(self._tables[resource.name], aggregation)
        rows = await self._pool.fetch(aggregated.sql, *aggregated.arguments.values, translate=query_error)
        return aggregated.encoded(rows)

    async def run_pipeline(self, resource: AnyResource, pipeline: Sequence[Any]) -> bytes:  # noqa: ARG002 - MongoDB's
        """Refuse: only MongoDB has pipelines.

        Raises:
            NotSupportedError: always.
        """
        raise NotSupportedError("PostgreSQL runs no MongoDB pipelines; send group_by and functions")

    async def ask(self, work: CallWork) -> bytes:
        """Run a service's own call in a transaction that can't change anything, and return its encoded result."""
        async with self._pool.session(read_only=True) as session:
            return (await session.run(work)).body

    # ── printed by Python ─────────────────────────────────────────────────────────────────────────

    async def _get_row(self, hot: "_HotStatements", record_id: Any) -> EncodedRecord | None:
        rows = await self._rows(hot.table, hot.whole, Query(where=Compare("id", "eq", record_id)))
        if not rows:
            return None
        document = hot.whole.view.document(rows[0])
        return EncodedRecord(encode_json(document), document["etag"])

    async def _get_rows(self, hot: "_HotStatements", record_ids: Sequence[Any]) -> bytes:
        wanted = Query(where=Compare("id", "in", tuple(record_ids)))
        rows = await self._rows(hot.table, hot.whole, wanted)
        if rows and rows[-1][-2]:
            raise answer_too_large()
        documents = map(hot.whole.view.document, rows)
        found = {encode_json(document["id"]): encode_json(document) for document in documents}
        return encoded_list(found.get(encode_json(record_id)) for record_id in record_ids)

    async def _find_rows(
        self, table: ResourceTable, shown: Projection, query: Query, after: Sequence[Any] | None
    ) -> EncodedPage:
        rows = await self._rows(table, shown, query, after=after, limit=query.page_size + 1)
        space = AnswerSpace()
        lines = (encode_json(shown.view.document(row)) for row in rows[: query.page_size])
        page = list(takewhile(space.takes, lines))
        position = None
        if page:
            *_, is_followed, last = rows[len(page) - 1]
            position = list(last) if is_followed else None
        return EncodedPage(b"[%b]" % b",".join(page), position)

    async def _rows(
        self, table: ResourceTable, shown: Projection, query: Query, **options: Any
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """Return rows in SQLAlchemy's types; each ends with whether another one follows, and its position."""
        arguments = Arguments(for_clause=True)
        sql = limited_statement(table, shown, query, arguments, **options)
        statement = arguments.clause(sql).columns(*shown.view.columns)
        return await self._pool.execute(statement, translate=query_error)


class _HotStatements:
    """The statements for the most frequent reads of a table, written once."""

    def __init__(self, table: ResourceTable) -> None:
        self.table = table
        self.whole = projection(table)
        self._id = operand(table, "id")
        if self.whole.is_printed:
            self.record = record_statement(table, self.whole)
            self.batch = batch_statement(table, self.whole)

    def id(self, record_id: Any) -> Any:
        """Convert an id to the type that asyncpg takes."""
        return self._id.bound(record_id)
