"""The store on MongoDB: reads, and writes that happen once per idempotency key."""

import secrets
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

from pymongo import ASCENDING, IndexModel
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from hybridkit.codec import now
from hybridkit.context import RequestContext, bind
from hybridkit.dataservice._mongo._audit._entries import (
    AUDITED_AT,
    ENTRIES,
    AuditCollection,
    MongoAudit,
)
from hybridkit.dataservice._mongo._collection import HIDDEN, ResourceCollection
from hybridkit.dataservice._mongo._document_events import EVENTS, SequenceNumbers
from hybridkit.dataservice._mongo._driver._capabilities import Capabilities, probe
from hybridkit.dataservice._mongo._driver._database import StoredDocument, bounded, meaning, open_database
from hybridkit.dataservice._mongo._driver._errors import is_duplicate, read_error, write_error
from hybridkit.dataservice._mongo._erasure import erase_records, erase_sagas
from hybridkit.dataservice._mongo._keys import KEYS_COLLECTION, Keys
from hybridkit.dataservice._mongo._outbox import MongoOutbox
from hybridkit.dataservice._mongo._reader import MongoReader
from hybridkit.dataservice._mongo._replacements import GONE
from hybridkit.dataservice._mongo._transaction_writer import ORDERING_KEYS_COLLECTION
from hybridkit.dataservice._mongo._writer import MongoWriter
from hybridkit.dataservice._store._audit import AUDIT_DAYS
from hybridkit.dataservice._store._erasure import Erased, ErasureStep, RecordStep, SagaStep
from hybridkit.dataservice._store._keys import DERIVED_RETENTION
from hybridkit.dataservice._store._operations import Outcome, Write
from hybridkit.dataservice._store._protocol import EncodedPage, ExportChunk
from hybridkit.errors import NotSupportedError
from hybridkit.observability import get_logger
from hybridkit.resources import AUDIT, Filter, Query
from hybridkit.resources._resource import AnyResource
from hybridkit.sagas import SAGAS

CHECK_SECONDS: Final = 0.9
CLEAN_DOCUMENTS: Final = 1000

_log = get_logger("hybridkit.dataservice")


class MongoStore(MongoReader):
    """One MongoDB database as a store.

    Args:
        database: of a client that `open_database` made.
        collections: by the resource's name.
        capabilities: of its server.
        outbox: the outbox in the same database.
        audit_days: for how many days the entries of the audit trail are kept.

    Attributes:
        capabilities: of its server.
        outbox: the outbox in the same database.
    """

    streams = None

    def __init__(
        self,
        database: AsyncDatabase[StoredDocument],
        collections: Mapping[str, ResourceCollection],
        *,
        capabilities: Capabilities,
        outbox: MongoOutbox,
        audit_days: int = AUDIT_DAYS,
    ) -> None:
        is_audited = any(each.resource.audited for each in collections.values())
        trail = {AUDIT.name: AuditCollection()} if is_audited else {}
        super().__init__(database, {**collections, **trail})
        self._audit = MongoAudit(database, collections)
        self._audit_days = audit_days
        self.capabilities = capabilities
        self.outbox = outbox
        self._keys = Keys(database[KEYS_COLLECTION])
        self._writer = MongoWriter(
            database, collections, capabilities=capabilities, audit=self._audit, emitted=outbox.wake
        )
        self._signing_key: bytes | None = None

    async def write(self, write: Write) -> Outcome:
        """Do all operations of the write or none, once per caller and key."""
        return await self._writer.write(write)

    async def erase(self, step: ErasureStep, person: str, *, after: str, dry_run: bool) -> Erased:
        """Erase the personal data of a person in one batch of a step."""
        with bounded(), meaning(read_error):
            match step:
                case RecordStep():
                    collection = self._collections[step.resource.name]
                    documents = self._documents(collection)
                    return await erase_records(
                        documents, collection, step, person, after=after, dry_run=dry_run
                    )
                case SagaStep():
                    collection = self._collections[SAGAS.name]
                    documents = self._documents(collection)
                    return await erase_sagas(
                        documents, collection, step, person, after=after, dry_run=dry_run
                    )
                case _:  # of a stream
                    raise NotSupportedError("MongoDB keeps no streams")

    async def close(self) -> None:
        """Wait until no transaction is left open on the server."""
        await self._audit.close()
        await self._writer.close()

    # ── the audit trail ──────────────────────────────────────────────────────────────────────────

    async def find(self, resource: AnyResource, query: Query, *, after: Sequence[Any] | None) -> EncodedPage:
        """Return one page of a query; of the audit trail with the entries that documents still have."""
        await self._gather(resource)
        return await super().find(resource, query, after=after)

    async def count(self, resource: AnyResource, where: Filter | None, *, exact: bool) -> int:
        """Count the records for which the filter holds."""
        await self._gather(resource)
        return await super().count(resource, where, exact=exact)

    async def export(self, resource: AnyResource, query: Query) -> AsyncGenerator[ExportChunk]:
        """Yield every record of a query."""
        await self._gather(resource)
        async with aclosing(super().export(resource, query)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _gather(self, resource: AnyResource) -> None:
        if resource is AUDIT:
            with bounded(), meaning(read_error):
                await self._audit.move()

    async def blank_audit(
        self, resource: AnyResource, fields: Collection[str], record_ids: Collection[Any]
    ) -> int:
        """Blank the values of fields in the audit entries of records, and return the number of entries changed."""
        with bounded(), meaning(write_error):
            return await self._audit.blank(resource, fields, [str(each) for each in record_ids])

    async def deleted_ids(self, resource: AnyResource, field: str, value: Any) -> Sequence[str]:
        """Return the ids of removed records that had a value in a field when they were removed."""
        with bounded(), meaning(read_error):
            return await self._audit.deleted_ids(resource, field, value)

    # ── keeping ──────────────────────────────────────────────────────────────────────────────────

    async def signing_key(self) -> bytes:
        """Return the secret that page tokens are signed with; the first replica to ask has made it."""
        if self._signing_key is None:
            made = self._database["hk_secrets"]
            with bounded(), meaning(read_error):
                try:
                    await made.insert_one({"_id": "page_token", "value": secrets.token_hex(32)})
                except OperationFailure as error:
                    if not is_duplicate(error):
                        raise
                found = await made.find_one({"_id": "page_token"})
            self._signing_key = bytes.fromhex(found["value"]) if found else b""
        return self._signing_key

    async def check(self) -> None:
        """Check that MongoDB answers within a second.

        Raises:
            UnavailableError: MongoDB does not answer.
        """
        with bind(RequestContext().within(CHECK_SECONDS)), bounded(), meaning(read_error):
            await self._database.command("ping")

    async def clean(self) -> int:
        """Delete tombstones that no retry can refer to, expired keys, old events and audit entries, a batch of each."""
        deleted = 0
        old = {
            f"{HIDDEN}.deleted_at": {"$lt": now() - DERIVED_RETENTION},
            f"{HIDDEN}.{GONE}": True,
            f"{HIDDEN}.{EVENTS}": None,
            f"{HIDDEN}.{ENTRIES}": None,
        }
        with bounded(), meaning(read_error):
            deleted += await self._audit.clean(self._audit_days)
            for collection in self._collections.values():
                if collection.resource is AUDIT:
                    continue
                documents = self._documents(collection)
                found = await documents.find(old, {"_id": 1}).limit(CLEAN_DOCUMENTS).to_list()
                ids = [tombstone["_id"] for tombstone in found]
                if ids:
                    deleted += (await documents.delete_many({"_id": {"$in": ids}, **old})).deleted_count
            await self._database[ORDERING_KEYS_COLLECTION].delete_many({"expires_at": {"$lt": now()}})
            return deleted + await self._keys.clean() + await self.outbox.clean()


async def _prepare(
    database: AsyncDatabase[StoredDocument],
    collections: Mapping[str, ResourceCollection],
    outbox: MongoOutbox,
) -> Capabilities:
    """Create missing indexes, and return the server's capabilities."""
    with bounded(), meaning(read_error):
        await Keys(database[KEYS_COLLECTION]).prepare()
        for collection in collections.values():
            await database[collection.name].create_indexes(_indexes_of(collection))
        await database[ORDERING_KEYS_COLLECTION].create_indexes(
            [IndexModel([("expires_at", ASCENDING)], name="expiring")]
        )
        await SequenceNumbers(database).prepare()
        await MongoAudit(database, collections).prepare()
        await outbox.prepare()
        return await probe(database, KEYS_COLLECTION)


def _indexes_of(collection: ResourceCollection) -> list[IndexModel]:
    deleted = IndexModel([(f"{HIDDEN}.deleted_at", ASCENDING)], name="hk_deleted_at", sparse=True)
    audited = [IndexModel([(f"{HIDDEN}.{AUDITED_AT}", ASCENDING)], name="hk_audited_at", sparse=True)]
    kept = audited if collection.resource.audited else []
    return [deleted, *kept, *(index.model() for index in collection.indexes)]


async def missing_indexes(
    url: str, collections: Mapping[str, ResourceCollection]
) -> Sequence[tuple[str, str]]:
    """Return the indexes of the resources that `open_mongo_store` would create, as collection and name.

    Raises:
        UnavailableError: MongoDB does not answer.
    """
    missing: list[tuple[str, str]] = []
    async with open_database(url, name="hybridkit_migrate") as database:
        with bounded(), meaning(read_error):
            for collection in collections.values():
                there = await database[collection.name].index_information()
                names = [str(index.document["name"]) for index in _indexes_of(collection)]
                missing += [(collection.name, name) for name in names if name not in there]
    return missing


@asynccontextmanager
async def open_mongo_store(
    url: str,
    collections: Mapping[str, ResourceCollection],
    *,
    name: str,
    audit_days: int = AUDIT_DAYS,
) -> AsyncGenerator[MongoStore]:
    """Open the store: connect, create indexes, and probe the server's capabilities.

    Args:
        url: `mongodb://user:password@host:27017/name`.
        collections: by the resource's name.
        name: of the service, for the server's log.
        audit_days: for how many days the entries of the audit trail are kept.

    Raises:
        UnavailableError: MongoDB does not answer.
    """
    async with open_database(url, name=name) as database:
        sources = [KEYS_COLLECTION, *(collection.name for collection in collections.values())]
        outbox = MongoOutbox(database, sources)
        capabilities = await _prepare(database, collections, outbox)
        _log.info(
            "the database tells what it can do",
            server=capabilities.server,
            transactions=capabilities.transactions,
        )
        store = MongoStore(
            database, collections, capabilities=capabilities, outbox=outbox, audit_days=audit_days
        )
        try:
            yield store
        finally:
            await store.close()
