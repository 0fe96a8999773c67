"""Decisions as documents: each replaces the document that was read."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection

from hybridkit.codec import now
from hybridkit.dataservice._mongo._collection import (
    HIDDEN,
    ResourceCollection,
    bookkeeping,
    tag_of,
    version_of,
)
from hybridkit.dataservice._mongo._driver._database import StoredDocument, is_live
from hybridkit.dataservice._mongo._filters import condition
from hybridkit.dataservice._mongo._values import to_bson
from hybridkit.dataservice._store._decisions import Removed, Unchanged, Written, decide
from hybridkit.dataservice._store._operations import Assert, Delete, Operation, Result, Update
from hybridkit.dataservice._store._refusals import invalid_value, requirement_not_met, validated
from hybridkit.errors import FieldProblem
from hybridkit.resources import Filter

_MAX_INTEGER: Final = 2**63
GONE: Final = "gone"
"""The member of a tombstone's hidden member: of the record only its keys and its events are left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A document that takes the place of the one that was read.

    Attributes:
        operation: the reason.
        document: all of it, without its idempotency keys and events.
        before: the ETag of the record as it was read; None where there was none.
    """

    operation: Operation
    document: StoredDocument
    before: str | None = None

    @property
    def require(self) -> Filter | None:
        """The filter that must hold for the document that is replaced."""
        return self.operation.require if isinstance(self.operation, Update) else None

    @property
    def only_looks(self) -> bool:
        """Whether the operation only looks at the record, so that there is nothing to write."""
        return isinstance(self.operation, Assert)

    def result(self, collection: ResourceCollection) -> Result:
        """Return what the operation answers."""
        if isinstance(self.operation, Delete | Assert):
            return Result()
        return Result(collection.document(self.document), created=self.before is None)


def replacement_for(
    operation: Operation, collection: ResourceCollection, stored: StoredDocument | None
) -> Replacement:
    """Return the document that the operation makes of the stored one.

    Args:
        operation: what is asked for.
        collection: of its resource.
        stored: the document, which may be hidden or a tombstone; None where there is none.

    Raises:
        NotFoundError: the record is not there.
        StaleVersionError: the record is in another state.
        UniqueViolationError: the record is there already, perhaps hidden.
        InvalidRequestError: the record can't have a value.
    """
    there = None if stored is None or bookkeeping(stored).get(GONE) else stored
    record = None if there is None else _Record(collection, there)
    decision = decide(operation, record, moment=now())
    match decision:
        case Written():
            new = _written(operation, collection, there, decision)
        case Removed():
            new = _removed(cast("StoredDocument", there), decision)
        case Unchanged():
            new = {**cast("StoredDocument", there), HIDDEN: _incarnation(there)}
    return Replacement(operation=operation, document=new, before=None if record is None else record.tag)


async def check_requirement(
    operation: Operation,
    stored: StoredDocument | None,
    documents: AsyncCollection[StoredDocument],
    session: AsyncClientSession | None = None,
) -> None:
    """Ask the server about the requirement of an operation whose values don't fit: it comes before them.

    Raises:
        RequirementNotMetError: the requirement does not hold.
    """
    if stored is None or not isinstance(operation, Update) or operation.require is None:
        return
    met = {"$and": [{"_id": stored["_id"]}, condition(operation.require)]}
    if await documents.find_one(met, {"_id": 1}, session=session) is None:
        raise requirement_not_met(operation, tag_of(stored)) from None


class _Record:
    """The record that a document holds, as `decide` looks at it."""

    def __init__(self, collection: ResourceCollection, stored: StoredDocument) -> None:
        self._collection = collection
        self._stored = stored
        self.version = version_of(stored)
        self.tag = tag_of(stored)

    @property
    def is_hidden(self) -> bool:
        return not is_live(self._stored)

    def value(self, name: str) -> Any:
        return self._collection.value(self._stored, name)

    def mergeable(self, name: str) -> Any:
        return self._collection.mergeable(self._stored, name)

    def meets(self, require: Filter) -> bool:  # noqa: ARG002 - the filter is a part of the statement that replaces
        return True


def _written(
    operation: Operation,
    collection: ResourceCollection,
    stored: StoredDocument | None,
    decision: Written,
) -> StoredDocument:
    """Return a new document, or the stored one with the members that the decision replaces.

    Raises:
        InvalidRequestError: a field that every record has a value for gets none.
    """
    values = {**decision.given, **decision.computed}
    for name, value in decision.given.items():
        if value is None and not collection.is_nullable(name):
            validated(operation, name, None)
        if isinstance(value, int) and not -_MAX_INTEGER <= value < _MAX_INTEGER:
            problem = FieldProblem("", "out_of_range", "an integer in a document has 64 bits")
            raise invalid_value(operation, name, [problem])
    members = collection.stored(values)
    if stored is None:
        del members["id"]
        return {**members, "_id": to_bson(operation.id), HIDDEN: {"incarnation": secrets.randbits(62)}}
    others = {name: value for name, value in stored.items() if name not in values}
    return {**others, **members, HIDDEN: _incarnation(stored)}


def _removed(stored: StoredDocument, decision: Removed) -> StoredDocument:
    hidden = {**_incarnation(stored), "deleted_at": now()}
    if decision.is_soft:
        return {**stored, "version": decision.version, HIDDEN: hidden}
    return {"_id": stored["_id"], "version": decision.version, HIDDEN: {**hidden, GONE: True}}


def _incarnation(stored: Mapping[str, Any] | None) -> StoredDocument:
    return {"incarnation": bookkeeping(stored or {}).get("incarnation", 0)}
