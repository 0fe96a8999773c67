"""Entries of the audit trail: written with their change, and moved to a collection of their own afterwards.

Without transactions only one document changes at a time, so the entry of a change waits in the document itself, and is
there exactly when the change is. It is put into the trail first and only then taken out, so that after a crash in
between it is put there again, and found by its number. A document has one entry at most: the next change moves it
first.

In a transaction the entry is written to the trail at once.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from hybridkit._tasks import TaskSet
from hybridkit.codec import now
from hybridkit.dataservice._mongo._collection import (
    HIDDEN,
    DocumentCollection,
    ResourceCollection,
    bookkeeping,
    version_of,
)
from hybridkit.dataservice._mongo._document_events import SequenceNumbers
from hybridkit.dataservice._mongo._driver._database import StoredDocument, bounded, is_live, meaning
from hybridkit.dataservice._mongo._driver._errors import is_duplicate, read_error
from hybridkit.dataservice._mongo._replacements import GONE, Replacement
from hybridkit.dataservice._mongo._values import from_bson, to_bson
from hybridkit.dataservice._store._audit import author_of, blanked, changes_of
from hybridkit.dataservice._store._operations import Write
from hybridkit.errors import HybridkitError
from hybridkit.resources import AUDIT, AuditOperation
from hybridkit.resources._audit import audited_fields
from hybridkit.resources._resource import AnyResource

AUDIT_COLLECTION: Final = "hk_audit"
ENTRIES: Final = "audit"
"""The part of a document's hidden member with the entry that is not in the trail yet."""
AUDITED_AT: Final = "audited_at"
"""The part with the time of that entry. An index finds documents by it."""
MOVE_DOCUMENTS: Final = 100
CLEAN_ENTRIES: Final = 1000

_ENTRIES: Final = f"{HIDDEN}.{ENTRIES}"
_AUDITED_AT: Final = f"{HIDDEN}.{AUDITED_AT}"


class AuditCollection(ResourceCollection):
    """The trail as a resource's collection, which is read like any other."""

    def __init__(self) -> None:
        super().__init__(AUDIT, DocumentCollection())
        self.name = AUDIT_COLLECTION


class MongoAudit:
    """The trail of a service's audited resources.

    Args:
        database: for requests.
        collections: by the resource's name.
    """

    def __init__(
        self, database: AsyncDatabase[StoredDocument], collections: Mapping[str, ResourceCollection]
    ) -> None:
        audited = [each for each in collections.values() if each.resource.audited]
        self._trail = database[AUDIT_COLLECTION]
        self._sources = [database[name] for name in sorted({each.name for each in audited})]
        self._numbers = SequenceNumbers(database)
        self._moving = TaskSet()

    def __repr__(self) -> str:
        return f"MongoAudit({[source.name for source in self._sources]})"

    async def prepare(self) -> None:
        """Create the indexes of the trail, if there is one; those of documents are their collections'."""
        if not self._sources:
            return
        await self._trail.create_indexes(
            [
                IndexModel(
                    [("resource", ASCENDING), ("record_id", ASCENDING), ("_id", ASCENDING)], name="record"
                ),
                IndexModel([("user_id", ASCENDING), ("_id", ASCENDING)], name="user"),
                IndexModel([("created_at", DESCENDING)], name="created_at"),
            ]
        )

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    async def entry_of(
        self,
        write: Write,
        collection: ResourceCollection,
        stored: StoredDocument | None,
        replacement: Replacement,
    ) -> StoredDocument | None:
        """Return the entry of a change; None where nothing changes, or the resource isn't audited."""
        resource = collection.resource
        document = replacement.document
        before = stored if stored is not None and is_live(stored) else None
        after = document if is_live(document) else None
        if not resource.audited or replacement.only_looks or (before is None and after is None):
            return None
        if before is not None and after is not None and version_of(before) == version_of(after):
            return None  # what was to be brought back is there
        moment: datetime = document[HIDDEN]["deleted_at"] if after is None else after["updated_at"]
        entry = {
            "_id": await self._numbers.take(1),
            "version": 1,
            "created_at": moment,
            "updated_at": moment,
            "resource": resource.name,
            "record_id": str(from_bson(document["_id"])),
            "record_version": version_of(document),
            "operation": _operation(stored, before, after),
            **author_of(write),
            "changes": to_bson(changes_of(resource, _values(collection, before), _values(collection, after))),
        }
        return {name: value for name, value in entry.items() if value is not None}

    async def add(self, entry: StoredDocument, session: AsyncClientSession) -> None:
        """Write an entry in the transaction of its change."""
        await self._trail.insert_one(entry, session=session)

    async def take_over(self, entries: Iterable[StoredDocument]) -> None:
        """Put entries into the trail that documents have; those that are there already stay as they are."""
        for entry in entries:
            try:
                await self._trail.insert_one(entry)
            except OperationFailure as error:
                if not is_duplicate(error):
                    raise

    # ── moving ───────────────────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """Have entries moved in the background, unless that is under way."""
        if not self._moving:
            self._moving.start(self._move_quietly(), name="hybridkit audit")

    async def close(self) -> None:
        """Stop moving; what is left in documents is moved by whoever comes next."""
        await self._moving.cancel()

    async def _move_quietly(self) -> None:
        with suppress(HybridkitError), bounded(), meaning(read_error):
            await self.move()

    async def move(self) -> None:
        """Move every entry that a document has into the trail."""
        for source in self._sources:
            while await self._move_some(source) == MOVE_DOCUMENTS:
                pass

    async def _move_some(self, source: AsyncCollection[StoredDocument]) -> int:
        waiting = source.find({_AUDITED_AT: {"$exists": True}}, {_ENTRIES: 1}).sort(_AUDITED_AT, ASCENDING)
        documents = await waiting.limit(MOVE_DOCUMENTS).to_list()
        for document in documents:
            entries: list[StoredDocument] = bookkeeping(document).get(ENTRIES, [])
            await self.take_over(entries)
            numbers = [entry["_id"] for entry in entries]
            # A newer entry, which has come meanwhile, stays.
            held = {"_id": document["_id"], f"{_ENTRIES}._id": {"$in": numbers}} if numbers else {}
            await source.update_one(
                held or {"_id": document["_id"], _ENTRIES: {"$in": [None, []]}},
                {"$unset": {_ENTRIES: "", _AUDITED_AT: ""}},
            )
        return len(documents)

    # ── keeping ──────────────────────────────────────────────────────────────────────────────────

    async def blank(self, resource: AnyResource, fields: Collection[str], record_ids: Sequence[str]) -> int:
        """Blank the values of fields in the entries of records, and return the number of entries changed."""
        await self.move()
        wanted = {"resource": resource.name, "record_id": {"$in": list(record_ids)}}
        done = 0
        async for entry in self._trail.find(wanted):
            if (changes := blanked(entry["changes"], fields)) is not None:
                change = {"$set": {"changes": changes, "updated_at": now()}, "$inc": {"version": 1}}
                await self._trail.update_one({"_id": entry["_id"]}, change)
                done += 1
        return done

    async def deleted_ids(self, resource: AnyResource, field: str, value: Any) -> Sequence[str]:
        """Return the ids of removed records that had a value in a field when they were removed."""
        await self.move()
        wanted = {"resource": resource.name, "operation": "delete", f"changes.{field}.0": to_bson(value)}
        found: list[str] = await self._trail.distinct("record_id", wanted)
        return found

    async def clean(self, keep_days: int) -> int:
        """Move what is left in documents, delete a batch of entries past the retention, and return their number."""
        await self.move()
        old = {"created_at": {"$lt": now() - timedelta(days=keep_days)}}
        found = await self._trail.find(old, {"_id": 1}).limit(CLEAN_ENTRIES).to_list()
        if not found:
            return 0
        numbers = [entry["_id"] for entry in found]
        return (await self._trail.delete_many({"_id": {"$in": numbers}})).deleted_count


def with_entry(hidden: StoredDocument, entries: Sequence[StoredDocument]) -> StoredDocument:
    """Return the hidden member of a document with the entries that wait in it."""
    if not entries:
        return hidden
    return {**hidden, ENTRIES: list(entries), AUDITED_AT: entries[0]["created_at"]}


def _values(collection: ResourceCollection, document: StoredDocument | None) -> dict[str, Any] | None:
    if document is None:
        return None
    return {name: collection.value(document, name) for name in audited_fields(collection.resource)}


def _operation(
    stored: StoredDocument | None, before: StoredDocument | None, after: StoredDocument | None
) -> AuditOperation:
    if after is None:
        return "delete"
    if before is not None:
        return "update"
    return "create" if stored is None or bookkeeping(stored).get(GONE) else "undelete"
