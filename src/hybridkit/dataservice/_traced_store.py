"""Spans around a store, by OpenTelemetry's stable names; a data service without tracing has its store as it is.

https://opentelemetry.io/docs/specs/semconv/database/database-spans/
"""

from collections.abc import AsyncGenerator, Awaitable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.util.types import AttributeValue

from hybridkit.dataservice._outbox._protocol import Outbox
from hybridkit.dataservice._store._erasure import Erased, ErasureStep
from hybridkit.dataservice._store._operations import (
    Assert,
    CallWork,
    Create,
    Delete,
    Operation,
    Outcome,
    Undelete,
    Update,
    Upsert,
    Write,
)
from hybridkit.dataservice._store._protocol import EncodedPage, EncodedRecord, ExportChunk, Store
from hybridkit.dataservice._store._streams import Streams
from hybridkit.errors import RejectedError
from hybridkit.observability import span
from hybridkit.resources import AUDIT, Aggregation, Filter, Query
from hybridkit.resources._resource import AnyResource

MAX_SUMMARY_CHARS: Final = 255

_SQL: Final = {
    Assert: "SELECT",
    Create: "INSERT",
    Update: "UPDATE",
    Upsert: "INSERT",
    Delete: "DELETE",
    Undelete: "UPDATE",
    Query: "SELECT",
    Aggregation: "SELECT",
}
_MONGO: Final = {
    Assert: "find",
    Create: "insert",
    Update: "update",
    Upsert: "update",
    Delete: "delete",
    Undelete: "update",
    Query: "find",
    Aggregation: "aggregate",
}


class TracedStore:
    """A store whose calls are spans of the request that makes them. They tell of collections, never of values.

    A refusal, such as that of a stale version, is no error of the database.

    Args:
        store: the store.
        database_url: names the system, the database, and the first host.
        collections: the names of tables or collections by that of their resource, where they differ.
    """

    def __init__(self, store: Store, database_url: str, collections: Mapping[str, str]) -> None:
        self._store = store
        self._collections = collections
        parts = urlsplit(database_url)
        is_mongo = parts.scheme.startswith("mongodb")
        self._operations: Mapping[type, str] = _MONGO if is_mongo else _SQL
        self._shared: dict[str, AttributeValue] = {
            "db.system.name": "mongodb" if is_mongo else "postgresql",
            "db.namespace": parts.path.strip("/"),
        }
        address, colon, port = parts.netloc.rpartition("@")[2].partition(",")[0].rpartition(":")
        self._shared["server.address"] = address if colon else port
        if colon and port.isdecimal():
            self._shared["server.port"] = int(port)

    def __repr__(self) -> str:
        return f"TracedStore({self._store!r})"

    @property
    def outbox(self) -> Outbox | None:
        """The outbox of the store; its relay has no spans of the database, as it asks all the time."""
        return self._store.outbox

    @property
    def streams(self) -> Streams | None:
        """The streams of the store; a read of them has the span of its request only."""
        return self._store.streams

    async def get(self, resource: AnyResource, record_id: Any) -> EncodedRecord | None:
        """Return what the store does."""
        return await self._read(Query, resource, self._store.get(resource, record_id))

    async def get_many(self, resource: AnyResource, record_ids: Sequence[Any]) -> bytes:
        """Return what the store does."""
        return await self._read(Query, resource, self._store.get_many(resource, record_ids))

    async def find(self, resource: AnyResource, query: Query, *, after: Sequence[Any] | None) -> EncodedPage:
        """Return what the store does."""
        return await self._read(Query, resource, self._store.find(resource, query, after=after))

    async def count(self, resource: AnyResource, where: Filter | None, *, exact: bool) -> int:
        """Return what the store does."""
        return await self._read(Aggregation, resource, self._store.count(resource, where, exact=exact))

    async def export(self, resource: AnyResource, query: Query) -> AsyncGenerator[ExportChunk]:
        """Yield what the store does; the span ends with the first lines."""
        chunks = self._store.export(resource, query)
        try:
            first = await self._read(Query, resource, anext(chunks, None))
            if first is not None:
                yield first
                async for chunk in chunks:
                    yield chunk
        finally:
            await chunks.aclose()

    async def aggregate(self, resource: AnyResource, aggregation: Aggregation) -> bytes:
        """Return what the store does."""
        return await self._read(Aggregation, resource, self._store.aggregate(resource, aggregation))

    async def run_pipeline(self, resource: AnyResource, pipeline: Sequence[Any]) -> bytes:
        """Return what the store does."""
        return await self._read(Aggregation, resource, self._store.run_pipeline(resource, pipeline))

    async def ask(self, work: CallWork) -> bytes:
        """Return what the store does."""
        with self._span("call", {}):
            return await self._store.ask(work)

    async def write(self, write: Write) -> Outcome:
        """Return what the store does; the span has the operations, without repetitions."""
        appends = [
            ("INSERT", self._collections.get(each.stream.name, each.stream.name)) for each in write.appends
        ]
        steps = list(dict.fromkeys([*appends, *(self._step(each) for each in write.operations)]))
        attributes: dict[str, AttributeValue] = {}
        if len(steps) == 1:
            attributes = {"db.operation.name": steps[0][0], "db.collection.name": steps[0][1]}
        if (size := len(write.operations) + len(write.appends)) > 1:
            attributes["db.operation.batch.size"] = size
        summary = " ".join(" ".join(step) for step in steps)[:MAX_SUMMARY_CHARS]
        return await self._answered(summary or "call", attributes, self._store.write(write))

    async def blank_audit(
        self, resource: AnyResource, fields: Collection[str], record_ids: Collection[Any]
    ) -> int:
        """Return what the store does."""
        return await self._read(Update, AUDIT, self._store.blank_audit(resource, fields, record_ids))

    async def deleted_ids(self, resource: AnyResource, field: str, value: Any) -> Sequence[str]:
        """Return what the store does."""
        return await self._read(Query, AUDIT, self._store.deleted_ids(resource, field, value))

    async def erase(self, step: ErasureStep, person: str, *, after: str, dry_run: bool) -> Erased:
        """Return what the store does."""
        attributes: dict[str, AttributeValue] = {"db.operation.name": "UPDATE"}
        erased = self._store.erase(step, person, after=after, dry_run=dry_run)
        return await self._answered("UPDATE", attributes, erased)

    async def signing_key(self) -> bytes:
        """Return what the store does, without a span."""
        return await self._store.signing_key()

    async def check(self) -> None:
        """Check the store, without a span."""
        await self._store.check()

    async def clean(self) -> int:
        """Clean the store, without a span."""
        return await self._store.clean()

    def _step(self, operation: Operation) -> tuple[str, str]:
        return self._operations[type(operation)], self._collection(operation.resource)

    def _collection(self, resource: AnyResource) -> str:
        return self._collections.get(resource.name, resource.name)

    async def _read[T](self, kind: type, resource: AnyResource, answer: Awaitable[T]) -> T:
        name, collection = self._operations[kind], self._collection(resource)
        attributes: dict[str, AttributeValue] = {
            "db.operation.name": name,
            "db.collection.name": collection,
        }
        return await self._answered(f"{name} {collection}", attributes, answer)

    async def _answered[T](
        self, summary: str, attributes: dict[str, AttributeValue], answer: Awaitable[T]
    ) -> T:
        with self._span(summary, attributes):
            try:
                return await answer
            except RejectedError as refused:
                refusal = refused
        raise refusal

    def _span(self, summary: str, attributes: dict[str, AttributeValue]) -> AbstractContextManager[object]:
        return span(
            summary,
            kind="client",
            attributes={**self._shared, "db.query.summary": summary, **attributes},
        )
