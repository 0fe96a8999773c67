"""The contract's store on MongoDB, without transactions over several documents.

A write reads its document, decides, and replaces it where it is still as it was read; otherwise it starts again. The
idempotency key stands in the document, so effect and key become true together. A deleted document leaves a tombstone
with its keys, so that a late retry can't bring it back.
"""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeGuard, cast

import pymongo
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from hybridkit.aggregations import Aggregation
from hybridkit.codec import encode_json, now
from hybridkit.context import RequestContext, bind, current
from hybridkit.dataservice._keys import DERIVED_RETENTION, check_repeated, count
from hybridkit.dataservice._mongo_changes import Change, change_for
from hybridkit.dataservice._mongo_collection import HIDDEN, ResourceCollection
from hybridkit.dataservice._mongo_errors import MONGO_FAILURES, is_duplicate, read_error, write_error
from hybridkit.dataservice._mongo_filters import Ordering, condition
from hybridkit.dataservice._mongo_keys import (
    EMBEDDED_KEYS,
    KEYS_COLLECTION,
    Keys,
    Recorded,
    embedded,
    entry_for,
)
from hybridkit.dataservice._mongo_values import to_bson
from hybridkit.dataservice._operations import AnyResource, CallWork, Operation, Outcome, Result, Write
from hybridkit.dataservice._store import Encoded, Found, Lines
from hybridkit.errors import (
    ConflictError,
    HybridkitError,
    NotSupportedError,
    RejectedError,
    StaleVersionError,
)
from hybridkit.filters import Filter
from hybridkit.queries import Query

__all__ = ["MongoStore", "open_mongo_store"]

DEFAULT_SECONDS: Final = 10.0
"""How long work may take for a caller that sets no deadline."""
CONNECT_SECONDS: Final = 3.0
CHECK_SECONDS: Final = 0.9
POOL_SIZE: Final = 50
CONFLICT_SECONDS: Final = 2.0
"""How long a write tries to win against others on its document."""
CONFLICT_PAUSE_SECONDS: Final = 0.02
CLEAN_DOCUMENTS: Final = 1000

type StoredDocument = dict[str, Any]

_LIVE: Final = {f"{HIDDEN}.deleted_at": None}


class MongoStore:
    """One MongoDB database behind the contract.

    Args:
        database: of a client that `open_mongo_store` made.
        collections: by the resource's name.
    """

    outbox = None

    def __init__(
        self, database: AsyncDatabase[StoredDocument], collections: Mapping[str, ResourceCollection]
    ) -> None:
        self._database = database
        self._collections = collections
        self._keys = Keys(database[KEYS_COLLECTION])
        self._signing_key: bytes | None = None

    def __repr__(self) -> str:
        return f"MongoStore({sorted(self._collections)})"

    async def prepare(self) -> None:
        """Create what indexes are missing."""
        with _bounded(), _meaning(read_error):
            await self._keys.prepare()
            for collection in self._collections.values():
                if models := [index.model() for index in collection.indexes]:
                    await self._database[collection.name].create_indexes(models)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    async def get(self, resource: AnyResource, record_id: Any) -> Encoded | None:
        """The record with that id, if there is one."""
        collection = self._collections[resource.name]
        with _bounded(), _meaning(read_error):
            stored = await self._database[collection.name].find_one({"_id": to_bson(record_id), **_LIVE})
        if stored is None:
            return None
        document = collection.document(stored)
        return Encoded(encode_json(document), document["etag"])

    async def get_many(self, resource: AnyResource, record_ids: Sequence[Any]) -> bytes:
        """A JSON array of the records with those ids, in their order, null for what is not there."""
        collection = self._collections[resource.name]
        wanted = {"_id": {"$in": to_bson(list(record_ids))}, **_LIVE}
        with _bounded(), _meaning(read_error):
            stored = await self._database[collection.name].find(wanted).to_list()
        found = {document["id"]: document for document in map(collection.document, stored)}
        return encode_json([found.get(to_bson(record_id)) for record_id in record_ids])

    async def find(self, resource: AnyResource, query: Query, *, after: Sequence[Any] | None) -> Found:
        """One page of a query, by keyset: no record is skipped or seen twice, whatever is inserted meanwhile."""
        collection = self._collections[resource.name]
        ordering = Ordering(collection, query)
        wanted: list[StoredDocument] = [dict(_LIVE)]
        if query.where is not None:
            wanted.append(condition(query.where))
        if after is not None:
            wanted.append(ordering.after(after))
        stages = [{"$match": {"$and": wanted}}, *ordering.stages(), {"$limit": query.page_size + 1}]
        with _bounded(), _meaning(read_error):
            cursor = await self._database[collection.name].aggregate(stages)
            found = await cursor.to_list()
        page, more = found[: query.page_size], len(found) > query.page_size
        position = [_at(page[-1], collection, name) for name in ordering.names] if more else None
        return Found(encode_json([collection.document(stored, query.select) for stored in page]), position)

    async def count(self, resource: AnyResource, where: Filter | None, *, exact: bool) -> int:
        """How many records fit."""
        collection = self._collections[resource.name]
        wanted = _LIVE if where is None else {"$and": [_LIVE, condition(where)]}
        with _bounded(), _meaning(read_error):
            return await self._database[collection.name].count_documents(wanted)

    def export(self, resource: AnyResource, query: Query) -> AsyncGenerator[Lines]:
        """Every record of a query, from a cursor on the server."""
        raise NotSupportedError("exports are not there yet")

    async def aggregate(self, resource: AnyResource, aggregation: Aggregation) -> bytes:
        """A JSON array of rows, with a member for each group field and function."""
        raise NotSupportedError("aggregations are not there yet")

    async def run_pipeline(self, resource: AnyResource, pipeline: Sequence[Any]) -> bytes:
        """A JSON array of what a pipeline comes to."""
        raise NotSupportedError("pipelines are not there yet")

    async def ask(self, work: CallWork) -> bytes:
        """Run a service's own call that changes nothing; what it answers."""
        raise NotSupportedError("calls are not there yet")

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    async def write(self, write: Write) -> Outcome:
        """Do it, once per caller and key; again, for a while, where another write of the same document won."""
        operation = _only_operation(write)
        collection = self._collections[operation.resource.name]
        with _bounded(), _meaning(write_error):
            known = await self._keys.claim(write)
            try:
                return await self._write_patiently(write, operation, collection, known)
            except RejectedError:
                await self._keys.forget(write)
                raise

    async def _write_patiently(
        self, write: Write, operation: Operation, collection: ResourceCollection, known: Recorded | None
    ) -> Outcome:
        give_up_at = time.monotonic() + CONFLICT_SECONDS
        while True:
            outcome = await self._write_once(write, operation, collection, known)
            if outcome is not None:
                return outcome
            if time.monotonic() >= give_up_at:
                raise ConflictError("other writes of this record won each time", retry_after_seconds=0.1)
            known = await self._keys.recorded(write)
            await asyncio.sleep(CONFLICT_PAUSE_SECONDS * random.random())  # noqa: S311 # nosec B311 - spreads load

    async def _write_once(
        self, write: Write, operation: Operation, collection: ResourceCollection, known: Recorded | None
    ) -> Outcome | None:
        """The outcome; None where another write came between reading and writing."""
        documents = self._database[collection.name]
        stored = await documents.find_one({"_id": to_bson(operation.id)})
        known = (embedded(stored[HIDDEN], write) if stored else None) or known
        if known is not None:
            check_repeated(write, known.fingerprint)
            if known.done:
                return _replayed(known, collection, stored)
        change = change_for(operation, collection, stored if _is_live(stored) else None)
        if change is None:
            count("acquired")
            return Outcome((Result(),))
        result = change.result(collection)
        document = await self._with_keys(change.document, stored, entry_for(write, result))
        if not await _put(documents, stored, document, change):
            return None
        count("acquired")
        return Outcome((result,))

    async def _with_keys(
        self, document: StoredDocument, stored: StoredDocument | None, entry: StoredDocument
    ) -> StoredDocument:
        """The new document with the keys of the old one and this one's; the oldest move to the claims first."""
        entries: list[StoredDocument] = [*(stored[HIDDEN].get("keys", ()) if stored else ()), entry]
        leaving, staying = entries[:-EMBEDDED_KEYS], entries[-EMBEDDED_KEYS:]
        await self._keys.take_over(leaving)
        return {**document, HIDDEN: {**document[HIDDEN], "keys": staying}}

    # ── keeping ──────────────────────────────────────────────────────────────────────────────────

    async def signing_key(self) -> bytes:
        """The secret that page tokens are signed with; whichever replica came first made it."""
        if self._signing_key is None:
            made = self._database["hk_secrets"]
            with _bounded(), _meaning(read_error):
                try:
                    await made.insert_one({"_id": "page_token", "value": secrets.token_hex(32)})
                except OperationFailure as error:
                    if not is_duplicate(error):
                        raise
                found = await made.find_one({"_id": "page_token"})
            self._signing_key = bytes.fromhex(found["value"]) if found else b""
        return self._signing_key

    async def check(self) -> None:
        """Answer within a second.

        Raises:
            UnavailableError: MongoDB doesn't.
        """
        with bind(RequestContext().within(CHECK_SECONDS)), _bounded(), _meaning(read_error):
            await self._database.command("ping")

    async def clean(self) -> int:
        """Delete tombstones that no retry can come back to, a batch of each collection's."""
        deleted = 0
        old = {f"{HIDDEN}.deleted_at": {"$lt": now() - DERIVED_RETENTION}}
        with _bounded(), _meaning(read_error):
            for collection in self._collections.values():
                documents = self._database[collection.name]
                found = await documents.find(old, {"_id": 1}).limit(CLEAN_DOCUMENTS).to_list()
                ids = [tombstone["_id"] for tombstone in found]
                if ids:
                    deleted += (await documents.delete_many({"_id": {"$in": ids}, **old})).deleted_count
        return deleted


@asynccontextmanager
async def open_mongo_store(
    url: str, collections: Mapping[str, ResourceCollection], *, name: str
) -> AsyncGenerator[MongoStore]:
    """The store, its indexes created.

    Args:
        url: `mongodb://user:password@host:27017/name`.
        collections: by the resource's name.
        name: of the service, for the server's log.

    Raises:
        UnavailableError: MongoDB does not answer.
    """
    client: AsyncMongoClient[StoredDocument] = AsyncMongoClient(
        url,
        appname=name,
        connectTimeoutMS=int(CONNECT_SECONDS * 1000),
        serverSelectionTimeoutMS=int(CONNECT_SECONDS * 1000),
        timeoutMS=int(DEFAULT_SECONDS * 1000),
        maxPoolSize=POOL_SIZE,
        waitQueueTimeoutMS=1000,
        retryWrites=False,  # our keys make a repeated write safe, on servers that can't do that by themselves too
        tz_aware=True,
    )
    options: CodecOptions[StoredDocument] = CodecOptions(
        tz_aware=True, uuid_representation=UuidRepresentation.STANDARD
    )
    async with client:
        store = MongoStore(client.get_default_database("app", codec_options=options), collections)
        await store.prepare()
        yield store


def _replayed(known: Recorded, collection: ResourceCollection, stored: StoredDocument | None) -> Outcome:
    count("replayed")
    if known.outcome is not None:
        return known.outcome
    record = collection.document(stored) if _is_live(stored) else None
    return Outcome((Result(record),), replayed=True)


async def _put(
    documents: AsyncCollection[StoredDocument],
    stored: StoredDocument | None,
    document: StoredDocument,
    change: Change,
) -> bool:
    """Write it where the document is still as it was read; whether it was.

    Raises:
        UniqueViolationError: another record has a value that only one may have.
        StaleVersionError: the document is as it was read, but not as the change requires.
    """
    target = {"_id": document["_id"]}
    if stored is None:
        try:
            await documents.insert_one(document)
        except OperationFailure as error:
            if not is_duplicate(error) or await documents.find_one(target, {"_id": 1}) is None:
                raise
            return False
        return True
    unchanged = {
        **target,
        "version": stored["version"],
        f"{HIDDEN}.incarnation": stored[HIDDEN]["incarnation"],
    }
    required = {} if change.require is None else {"$and": [condition(change.require)]}
    replaced = await documents.replace_one({**unchanged, **required}, document)
    if replaced.matched_count:
        return True
    if required and await documents.find_one(unchanged, {"_id": 1}) is not None:
        raise StaleVersionError(change.operation.says("the requirement does not hold"), current=change.before)
    return False


def _only_operation(write: Write) -> Operation:
    if len(write.operations) != 1 or write.emit:
        raise NotSupportedError("this MongoDB data service writes one record at a time, without events")
    return write.operations[0]


def _at(stored: StoredDocument, collection: ResourceCollection, name: str) -> Any:
    """Where a document stands in an order by that field."""
    head, *path = name.split(".")
    value: Any = collection.value(stored, head)
    for part in path:
        value = cast("dict[str, Any]", value).get(part) if isinstance(value, dict) else None
    return value


@contextmanager
def _bounded() -> Generator[None]:
    """The driver's own time limit for everything inside: what the caller has left."""
    context = current()
    context.check_deadline()
    remaining = context.remaining_seconds()
    with pymongo.timeout(DEFAULT_SECONDS if remaining is None else remaining):
        yield


@contextmanager
def _meaning(of: Callable[[Exception], HybridkitError | None]) -> Generator[None]:
    """Raise what the driver's failures mean."""
    try:
        yield
    except MONGO_FAILURES as error:
        found = of(error)
        if found is None:
            raise
        raise found from error


def _is_live(stored: StoredDocument | None) -> TypeGuard[StoredDocument]:
    return stored is not None and stored[HIDDEN].get("deleted_at") is None
