"""Erase a person's data in MongoDB: personal fields of records, and the rows of sagas; there are no streams."""

from collections.abc import Mapping
from typing import Any

from pymongo import ASCENDING
from pymongo.asynchronous.collection import AsyncCollection

from hybridkit.codec import now
from hybridkit.dataservice._mongo._collection import ResourceCollection, stored_name
from hybridkit.dataservice._mongo._driver._database import StoredDocument
from hybridkit.dataservice._mongo._values import from_bson, to_bson
from hybridkit.dataservice._store._erasure import BATCH_ROWS, Erased, RecordStep, SagaStep

SAGA_FIELDS = ("saga", "status", "user_id", "data", "sent", "undo", "notes")


async def erase_records(
    documents: AsyncCollection[StoredDocument],
    collection: ResourceCollection,
    step: RecordStep,
    person: str,
    *,
    after: str,
    dry_run: bool,
) -> Erased:
    """Erase the records of a batch, and return their ids, those included that had nothing left to erase."""
    key = step.key_of(person)
    if key is None:
        return Erased({collection.resource.name: 0})
    wanted: StoredDocument = {stored_name(step.marks.key): to_bson(key)}
    found = await _page(documents, collection, wanted, after, {"_id": 1})
    ids = [each["_id"] for each in found]
    blanks = {name: to_bson(blank) for name, blank in step.marks.blanks.items()}
    left = {"_id": {"$in": ids}, "$or": [_differs(name, blank) for name, blank in blanks.items()]}
    if dry_run:
        count = await documents.count_documents(left)
    else:
        count = (await documents.update_many(left, _change(blanks))).modified_count
    last = str(ids[-1]) if len(ids) == BATCH_ROWS else None
    return Erased({collection.resource.name: count}, last, ids)


async def erase_sagas(
    documents: AsyncCollection[StoredDocument],
    collection: ResourceCollection,
    step: SagaStep,
    person: str,
    *,
    after: str,
    dry_run: bool,
) -> Erased:
    """Erase the sagas of a batch; one that moves meanwhile is tried again with its new state."""
    paths = [f"{prefix}.{key}" for key in step.keys for prefix in ("data", "sent.data", "undo.command.data")]
    wanted: StoredDocument = {"$or": [{name: person} for name in ("user_id", *paths)]}
    found = await _page(documents, collection, wanted, after, None)
    count = 0
    for each in found:
        stored: Mapping[str, Any] | None = each
        while stored is not None:
            changes = step.erased({name: from_bson(stored.get(name)) for name in SAGA_FIELDS}, person)
            if not changes:
                break
            same = {"_id": stored["_id"], "version": stored.get("version")}
            blanks = {name: to_bson(value) for name, value in changes.items()}
            if dry_run or (await documents.update_one(same, _change(blanks))).matched_count:
                count += 1
                break
            stored = await documents.find_one({"_id": stored["_id"]})
    last = str(found[-1]["_id"]) if len(found) == BATCH_ROWS else None
    return Erased({collection.resource.name: count}, last)


async def _page(
    documents: AsyncCollection[StoredDocument],
    collection: ResourceCollection,
    wanted: StoredDocument,
    after: str,
    projection: StoredDocument | None,
) -> list[StoredDocument]:
    if after:
        wanted = {"$and": [wanted, {"_id": {"$gt": to_bson(collection.resource.kept_id(after))}}]}
    return await documents.find(wanted, projection).sort("_id", ASCENDING).limit(BATCH_ROWS).to_list()


def _differs(name: str, blank: Any) -> StoredDocument:
    return {name: {"$ne": blank}}  # null is also a field that is left out


def _change(blanks: Mapping[str, Any]) -> StoredDocument:
    kept = {name: blank for name, blank in blanks.items() if blank is not None}
    gone = {name: "" for name, blank in blanks.items() if blank is None}
    change: StoredDocument = {"$set": {**kept, "updated_at": to_bson(now())}, "$inc": {"version": 1}}
    return {**change, "$unset": gone} if gone else change
