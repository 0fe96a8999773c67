"""Reads from MongoDB: records as JSON, pages by keyset, counts, exports, aggregations."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

import pymongo
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.command_cursor import AsyncCommandCursor
from pymongo.asynchronous.cursor import AsyncCursor
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import PyMongoError

from hybridkit.codec import encode_json
from hybridkit.context import current
from hybridkit.dataservice._mongo._aggregations import Aggregated
from hybridkit.dataservice._mongo._collection import HIDDEN, ResourceCollection
from hybridkit.dataservice._mongo._driver._database import (
    DEFAULT_SECONDS,
    LIVE,
    StoredDocument,
    bounded,
    meaning,
)
from hybridkit.dataservice._mongo._driver._errors import pipeline_error, read_error
from hybridkit.dataservice._mongo._filters import condition
from hybridkit.dataservice._mongo._ordering import Ordering
from hybridkit.dataservice._mongo._pipeline import MAX_DOCUMENTS, MAX_RESULT_BYTES, checked_pipeline
from hybridkit.dataservice._mongo._values import from_bson, to_bson
from hybridkit.dataservice._store._operations import CallWork
from hybridkit.dataservice._store._protocol import (
    AnswerSpace,
    EncodedPage,
    EncodedRecord,
    ExportChunk,
    answer_too_large,
    encoded_list,
)
from hybridkit.errors import InvalidQueryError
from hybridkit.resources import Aggregation, Filter, Query
from hybridkit.resources._resource import AnyResource

PIECE_RECORDS: Final = 500
"""The most records in a chunk of an export."""
PIECE_BYTES: Final = 256 * 1024
"""The size at which a chunk ends; it may be longer by one record."""
_WITHOUT_KEYS: Final[StoredDocument] = {f"{HIDDEN}.keys": 0, f"{HIDDEN}.audit": 0}
"""The projection of reads: the outcomes under a document's keys can be twenty times as large as its record."""
CLOSE_SECONDS: Final = 1.0


class MongoReader:
    """Reads of one MongoDB database.

    Args:
        database: for requests.
        collections: by the resource's name.
    """

    def __init__(
        self, database: AsyncDatabase[StoredDocument], collections: Mapping[str, ResourceCollection]
    ) -> None:
        self._database = database
        self._collections = collections

    def __repr__(self) -> str:
        return f"{type(self).__name__}({sorted(self._collections)})"

    async def get(self, resource: AnyResource, record_id: Any) -> EncodedRecord | None:
        """Return the record with that id, or None."""
        collection = self._collections[resource.name]
        with bounded(), meaning(read_error):
            wanted = {"_id": to_bson(record_id), **LIVE}
            stored = await self._documents(collection).find_one(wanted, _WITHOUT_KEYS)
        if stored is None:
            return None
        document = collection.document(stored)
        return EncodedRecord(encode_json(document), document["etag"])

    async def get_many(self, resource: AnyResource, record_ids: Sequence[Any]) -> bytes:
        """Return a JSON array of the records with those ids, in their order, with null for one that is not there."""
        collection = self._collections[resource.name]
        with bounded(), meaning(read_error):
            ids = to_bson(list(record_ids))
            cursor = self._documents(collection).find({"_id": {"$in": ids}, **LIVE}, _WITHOUT_KEYS)
            space, found = AnswerSpace(), dict[Any, bytes]()
            try:
                async for stored in cursor:
                    found[stored["_id"]] = record = encode_json(collection.document(stored))
                    if not space.takes(record):
                        raise answer_too_large()
            finally:
                await _close(cursor)
        return encoded_list(map(found.get, ids))

    async def find(self, resource: AnyResource, query: Query, *, after: Sequence[Any] | None) -> EncodedPage:
        """Return one page of a query, by keyset: no record is skipped or seen twice, whatever is inserted meanwhile."""
        collection = self._collections[resource.name]
        with bounded(), meaning(read_error):
            ordering = Ordering(collection, query)
            stages = [*_stages(ordering, query, after=after), {"$limit": query.page_size + 1}]
            cursor = await self._documents(collection).aggregate(stages)
            space, page, last, more = AnswerSpace(), list[bytes](), dict[str, Any](), False
            no_place = False
            try:
                async for stored in cursor:
                    no_place = no_place or ordering.has_no_place(stored)
                    record = encode_json(collection.document(stored, query.select))
                    more = len(page) == query.page_size or not space.takes(record)
                    if more:
                        break
                    page.append(record)
                    last = stored
            finally:
                await _close(cursor)
        if no_place and (more or after is not None):
            raise InvalidQueryError(
                "a record has a list where this order needs one value; its pages can't be told",
                pointer="/order",
            )
        position = ordering.position(last) if more else None
        return EncodedPage(b"[%b]" % b",".join(page), position)

    async def count(self, resource: AnyResource, where: Filter | None, *, exact: bool) -> int:
        """Count the records for which the filter holds; an estimate without a filter is the server's own."""
        documents = self._documents(self._collections[resource.name])
        with bounded(), meaning(read_error):
            if where is None and not exact:
                deleted = await documents.count_documents({f"{HIDDEN}.deleted_at": {"$exists": True}})
                return max(await documents.estimated_document_count() - deleted, 0)
            wanted = LIVE if where is None else {"$and": [LIVE, condition(where)]}
            return await documents.count_documents(wanted)

    async def export(self, resource: AnyResource, query: Query) -> AsyncGenerator[ExportChunk]:
        """Yield every record of a query from a cursor on the server, which is closed with the generator.

        A record that is there from the beginning to the end is in it once. Writes meanwhile may be seen or not, as the
        server has snapshots for transactions only.
        """
        collection = self._collections[resource.name]
        seconds = current().remaining_seconds()
        seconds = DEFAULT_SECONDS if seconds is None else seconds
        with bounded(seconds), meaning(read_error):
            stages = _stages(Ordering(collection, query), query, after=None)
            cursor = await self._documents(collection).aggregate(
                stages, batchSize=PIECE_RECORDS, allowDiskUse=True
            )
        try:
            while True:
                with bounded(seconds), meaning(read_error):
                    lines = await _lines(cursor, collection, query.select)
                if not lines:
                    return
                yield ExportChunk(b"".join(lines), len(lines))
        finally:
            await _close(cursor)

    async def aggregate(self, resource: AnyResource, aggregation: Aggregation) -> bytes:
        """Return a JSON array of rows, each with a member for each group field and function."""
        collection = self._collections[resource.name]
        with bounded(), meaning(read_error):
            wanted = Aggregated(collection, aggregation)
            cursor = await self._documents(collection).aggregate(wanted.stages(), allowDiskUse=True)
            return encode_json(wanted.rows(await cursor.to_list()))

    async def run_pipeline(self, resource: AnyResource, pipeline: Sequence[Any]) -> bytes:
        """Return a JSON array of the results of a pipeline of allowed stages: at most 1,000 documents and 4 MiB."""
        collection = self._collections[resource.name]
        with bounded(), meaning(pipeline_error):
            stages = checked_pipeline(collection, pipeline)
            cursor = await self._documents(collection).aggregate(
                [{"$match": LIVE}, *stages, {"$limit": MAX_DOCUMENTS + 1}], allowDiskUse=True
            )
            found, size_bytes = list[bytes](), 0
            try:
                async for result in cursor:
                    found.append(encode_json(from_bson(result)))
                    size_bytes += len(found[-1]) + 1
                    if len(found) > MAX_DOCUMENTS or size_bytes > MAX_RESULT_BYTES:
                        raise InvalidQueryError(
                            f"the pipeline comes to more than {MAX_DOCUMENTS} documents or {MAX_RESULT_BYTES} bytes;"
                            " end it with $limit",
                            pointer="/pipeline",
                        )
            finally:
                await _close(cursor)
        return b"[%b]" % b",".join(found)

    async def ask(self, work: CallWork) -> bytes:
        """Run a service's own call that changes nothing; it gets PyMongo's `AsyncDatabase`."""
        with bounded(), meaning(read_error):
            return (await work(self._database)).body

    def _documents(self, collection: ResourceCollection) -> AsyncCollection[StoredDocument]:
        return self._database[collection.name]


def _stages(ordering: Ordering, query: Query, *, after: Sequence[Any] | None) -> list[StoredDocument]:
    wanted: list[StoredDocument] = [LIVE]
    if query.where is not None:
        wanted.append(condition(query.where))
    if after is not None:
        wanted.append(ordering.after(after))
    # After the order: a projection before a `$sort` keeps it from using an index.
    return [{"$match": {"$and": wanted}}, *ordering.stages(), {"$project": _WITHOUT_KEYS}]


async def _lines(
    cursor: AsyncCommandCursor[StoredDocument], collection: ResourceCollection, select: Sequence[str]
) -> list[bytes]:
    """Return the next records as lines of JSON, up to `PIECE_RECORDS` of them or about `PIECE_BYTES`."""
    lines: list[bytes] = []
    size_bytes = 0
    while len(lines) < PIECE_RECORDS and size_bytes < PIECE_BYTES:
        stored = await anext(cursor, None)
        if stored is None:
            break
        lines.append(encode_json(collection.document(stored, select)) + b"\n")
        size_bytes += len(lines[-1])
    return lines


async def _close(cursor: AsyncCommandCursor[StoredDocument] | AsyncCursor[StoredDocument]) -> None:
    """Close a cursor; a server that can't be reached closes it by itself, after ten minutes."""
    try:
        with pymongo.timeout(CLOSE_SECONDS):
            await cursor.close()
    except PyMongoError:
        pass
