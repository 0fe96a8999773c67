"""Reading from PostgreSQL: records as the JSON that goes out, pages by keyset, counts, exports, aggregations."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from sqlalchemy import func, select

from hybridkit.aggregations import Aggregation
from hybridkit.codec import encode_json
from hybridkit.dataservice._operations import AnyResource, CallWork
from hybridkit.dataservice._postgres_database import Database
from hybridkit.dataservice._postgres_errors import query_error
from hybridkit.dataservice._postgres_filters import Ordering, condition
from hybridkit.dataservice._postgres_table import ResourceTable
from hybridkit.dataservice._store import Encoded, Found, Lines
from hybridkit.errors import NotSupportedError
from hybridkit.filters import Filter
from hybridkit.queries import Query

__all__ = ["PostgresReader"]


class PostgresReader:
    """What can be asked of one PostgreSQL database.

    Args:
        database: for requests.
        tables: by the resource's name.
    """

    def __init__(self, database: Database, tables: Mapping[str, ResourceTable]) -> None:
        self._database = database
        self._tables = tables

    def __repr__(self) -> str:
        return f"{type(self).__name__}({sorted(self._tables)})"

    async def get(self, resource: AnyResource, record_id: Any) -> Encoded | None:
        """The record with that id, if there is one."""
        table = self._tables[resource.name]
        async with self._database.session() as session:
            rows = await session.execute(
                select(*table.all).where(table["id"] == record_id), meaning=query_error
            )
        if not rows:
            return None
        document = table.document(rows[0])
        return Encoded(encode_json(document), document["etag"])

    async def get_many(self, resource: AnyResource, record_ids: Sequence[Any]) -> bytes:
        """A JSON array of the records with those ids, in their order, null for what is not there."""
        table = self._tables[resource.name]
        async with self._database.session() as session:
            rows = await session.execute(
                select(*table.all).where(table["id"].in_(record_ids)), meaning=query_error
            )
        found = {document["id"]: document for document in map(table.document, rows)}
        return encode_json([found.get(record_id) for record_id in record_ids])

    async def find(self, resource: AnyResource, query: Query, *, after: Sequence[Any] | None) -> Found:
        """One page of a query, by keyset: no row is skipped or seen twice, whatever is inserted meanwhile."""
        table = self._tables[resource.name]
        ordering = Ordering(table, query)
        view = table.view(query.select)
        statement = select(*view.columns, *ordering.columns).order_by(*ordering.clauses)
        if query.where is not None:
            statement = statement.where(condition(table, query.where))
        if after is not None:
            statement = statement.where(ordering.after(after))
        async with self._database.session() as session:
            rows = await session.execute(statement.limit(query.page_size + 1), meaning=query_error)
        page, more = rows[: query.page_size], len(rows) > query.page_size
        position = list(page[-1][len(view.columns) :]) if more else None
        return Found(encode_json([view.document(row) for row in page]), position)

    async def count(self, resource: AnyResource, where: Filter | None, *, exact: bool) -> int:
        """How many records fit."""
        table = self._tables[resource.name]
        statement = select(func.count()).select_from(table.table)
        if where is not None:
            statement = statement.where(condition(table, where))
        async with self._database.session() as session:
            [[number]] = await session.execute(statement, meaning=query_error)
        return int(number)

    def export(self, resource: AnyResource, query: Query) -> AsyncGenerator[Lines]:
        """Every record of a query, from a cursor on the server."""
        raise NotSupportedError("exports are not there yet")

    async def aggregate(self, resource: AnyResource, aggregation: Aggregation) -> bytes:
        """A JSON array of rows, with a member for each group field and function."""
        raise NotSupportedError("aggregations are not there yet")

    async def run_pipeline(self, resource: AnyResource, pipeline: Sequence[Any]) -> bytes:
        """Not here."""
        raise NotSupportedError("PostgreSQL runs no MongoDB pipelines; send group_by and functions")

    async def ask(self, work: CallWork) -> bytes:
        """Run a service's own call that changes nothing; what it answers."""
        raise NotSupportedError("calls are not there yet")
