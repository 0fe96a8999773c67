"""What an operation makes of a document: decided in memory, then written if the document is still the same."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, assert_never

from hybridkit.codec import now
from hybridkit.dataservice._mongo._collection import HIDDEN, ResourceCollection, bookkeeping, version_of
from hybridkit.dataservice._mongo._driver._database import StoredDocument, is_live
from hybridkit.dataservice._mongo._values import to_bson
from hybridkit.dataservice._store._increments import incremented
from hybridkit.dataservice._store._merging import merged
from hybridkit.dataservice._store._operations import (
    Assert,
    Create,
    Delete,
    Operation,
    Result,
    Undelete,
    Update,
    Upsert,
)
from hybridkit.dataservice._store._refusals import (
    hidden,
    not_found,
    stale_version,
    unique_violation,
    validated,
)
from hybridkit.resources import Filter

__all__ = ["GONE", "Change", "change_for"]

GONE: Final = "gone"
"""In the hidden member of a tombstone: of the record nothing is left but this, its keys and its events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A document as it shall be.

    Attributes:
        operation: that wants it so.
        document: all of it, without its idempotency keys and events.
        before: the ETag of the record as it was read; None where there was none.
        require: must hold for the document that is replaced.
        only_looks: the document is as it was.
    """

    operation: Operation
    document: StoredDocument
    before: str | None = None
    require: Filter | None = None
    only_looks: bool = False

    def result(self, collection: ResourceCollection) -> Result:
        """What it comes to, for the caller."""
        if isinstance(self.operation, Delete | Assert):
            return Result()
        return Result(collection.document(self.document), created=self.before is None)


def change_for(operation: Operation, collection: ResourceCollection, stored: StoredDocument | None) -> Change:
    """What the operation makes of that document.

    Args:
        operation: what is asked for.
        collection: of its resource.
        stored: the document, which may be hidden or a tombstone; None where there is none.

    Raises:
        NotFoundError: the record is not there.
        StaleVersionError: it is in another state.
        UniqueViolationError: it is there already, perhaps hidden.
        InvalidRequestError: a value that the record can't have.
    """
    there = None if stored is None or bookkeeping(stored).get(GONE) else stored
    live = there if is_live(there) else None
    before = None if live is None else collection.tag(live)
    match operation:
        case Assert():
            found = _existing(operation, live, before)
            return Change(operation=operation, document=_same(found), before=before, only_looks=True)
        case Create():
            if there is not None:
                raise unique_violation(operation, ["id"], "a record has this id")
            return Change(operation=operation, document=_new(operation, collection))
        case Upsert():
            if live is None and there is not None and operation.only != "present":
                raise hidden(operation)
            return _upserted(operation, collection, live, before)
        case Update():
            found = _existing(operation, live, before)
            changes = _changes(operation, collection, found)
            return Change(
                operation=operation,
                document=_versioned(found, _stored(operation, collection, changes), changes),
                before=before,
                require=operation.require,
            )
        case Undelete():
            return _undeleted(operation, collection, there)
        case Delete():
            found = _existing(operation, live, before)
            gone = _hidden_away(found) if operation.resource.soft_delete else _tombstone(found)
            return Change(operation=operation, document=gone, before=before)
        case _:
            assert_never(operation)


def _existing(
    operation: Assert | Update | Delete | Undelete, live: StoredDocument | None, before: str | None
) -> StoredDocument:
    if live is None:
        raise not_found(operation)
    if operation.if_match not in (None, before):
        raise stale_version(operation, before)
    return live


def _upserted(
    operation: Upsert, collection: ResourceCollection, live: StoredDocument | None, before: str | None
) -> Change:
    if live is None:
        if operation.only == "present":
            raise stale_version(operation, None)
        return Change(operation=operation, document=_new(operation, collection))
    if operation.only == "absent" or operation.if_match not in (None, before):
        raise stale_version(operation, before)
    document = _versioned(live, _stored(operation, collection, operation.values), operation.values)
    return Change(operation=operation, document=document, before=before)


def _new(operation: Create | Upsert, collection: ResourceCollection) -> StoredDocument:
    moment = now()
    return {
        **_stored(operation, collection, {**collection.defaults(), **operation.values}),
        "_id": to_bson(operation.id),
        "version": 1,
        "created_at": moment,
        "updated_at": moment,
        HIDDEN: {"incarnation": secrets.randbits(62)},
    }


def _stored(
    operation: Create | Upsert | Update, collection: ResourceCollection, values: Mapping[str, Any]
) -> StoredDocument:
    """The values as members of a document.

    Raises:
        InvalidRequestError: no value for a field that every record has one for.
    """
    for name, value in values.items():
        if value is None and not collection.is_nullable(name):
            validated(operation, name, None)
    return collection.stored(values)


def _versioned(stored: StoredDocument, members: StoredDocument, changed: Iterable[str]) -> StoredDocument:
    """The document with these members instead of those that have changed."""
    replaced = set(changed)
    return {
        **{name: value for name, value in stored.items() if name not in replaced},
        **members,
        "version": version_of(stored) + 1,
        "updated_at": now(),
        HIDDEN: {"incarnation": bookkeeping(stored).get("incarnation", 0)},
    }


def _undeleted(operation: Undelete, collection: ResourceCollection, there: StoredDocument | None) -> Change:
    """A hidden record shown again; one that is not hidden stays as it is."""
    before = None if there is None else collection.tag(there)
    found = _existing(operation, there, before)
    document = _same(found) if is_live(found) else _versioned(found, {}, ())
    return Change(operation=operation, document=document, before=before)


def _same(stored: StoredDocument) -> StoredDocument:
    return {**stored, HIDDEN: {"incarnation": bookkeeping(stored).get("incarnation", 0)}}


def _hidden_away(stored: StoredDocument) -> StoredDocument:
    hidden = {"incarnation": bookkeeping(stored).get("incarnation", 0), "deleted_at": now()}
    return {**stored, "version": version_of(stored) + 1, HIDDEN: hidden}


def _tombstone(stored: StoredDocument) -> StoredDocument:
    return {
        "_id": stored["_id"],
        "version": version_of(stored) + 1,
        HIDDEN: {"incarnation": bookkeeping(stored).get("incarnation", 0), "deleted_at": now(), GONE: True},
    }


def _changes(operation: Update, collection: ResourceCollection, stored: StoredDocument) -> dict[str, Any]:
    documents = {
        name: merged(operation, name, collection.mergeable(stored, name)) for name in operation.merges
    }
    added = {
        name: incremented(operation, name, collection.value(stored, name)) for name in operation.increment
    }
    return {**operation.changes, **documents, **added}
