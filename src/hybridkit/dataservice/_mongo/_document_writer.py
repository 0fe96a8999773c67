"""Writes of one document at a time, atomic and once per key, for servers without transactions.

A write reads its document, decides, and replaces it where it is still as it was read; otherwise it starts again. The
idempotency key and the events stand in the document, so effect, key and events become true together. A deleted document
leaves a tombstone with its keys and events, so that a late retry can't bring it back and no event gets lost.

A service's own call is not one document. Without transactions it runs at least once: its answer and its events become
true together, under its key, and a crash before that lets a retry run it again.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from typing import Final, cast

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from hybridkit.dataservice._mongo._audit._entries import ENTRIES, MongoAudit, with_entry
from hybridkit.dataservice._mongo._collection import HIDDEN, ResourceCollection, bookkeeping
from hybridkit.dataservice._mongo._document_events import (
    EVENTS,
    OUTBOX_COLLECTION,
    SequenceNumbers,
    cancel_rows,
    event_rows,
    with_events,
    without_cancelled,
)
from hybridkit.dataservice._mongo._driver._database import StoredDocument
from hybridkit.dataservice._mongo._driver._errors import explained_duplicates, is_duplicate
from hybridkit.dataservice._mongo._filters import condition
from hybridkit.dataservice._mongo._keys import (
    EMBEDDED_KEYS,
    KEYS_COLLECTION,
    Keys,
    KnownKey,
    embedded,
    entry_for,
    replay,
)
from hybridkit.dataservice._mongo._replacements import Replacement, check_requirement, replacement_for
from hybridkit.dataservice._mongo._values import to_bson
from hybridkit.dataservice._store._keys import count
from hybridkit.dataservice._store._operations import CallAnswer, Operation, Outcome, Result, Write
from hybridkit.dataservice._store._refusals import requirement_not_met
from hybridkit.errors import ConflictError, InvalidRequestError, RejectedError

CONFLICT_SECONDS: Final = 2.0
"""The time in which a write tries again when others write its document first."""
CONFLICT_PAUSE_SECONDS: Final = 0.02


class DocumentWriter:
    """A writer of one record, of events alone, and of calls, without transactions.

    Args:
        database: for requests.
        collections: by the resource's name.
        audit: the audit trail.
        emitted: called when a write has added events.
    """

    def __init__(
        self,
        database: AsyncDatabase[StoredDocument],
        collections: Mapping[str, ResourceCollection],
        *,
        audit: MongoAudit,
        emitted: Callable[[], None],
    ) -> None:
        self._audit = audit
        self._database = database
        self._collections = collections
        self._keys = Keys(database[KEYS_COLLECTION])
        self._numbers = SequenceNumbers(database)
        self._emitted = emitted

    def __repr__(self) -> str:
        return f"DocumentWriter({sorted(self._collections)})"

    async def write(self, write: Write) -> Outcome:
        """Do the write, once per caller and key; again, for two seconds, where another write of the document won."""
        # Before anything is written: after a crash a retry finds out which request the key belongs to.
        known = await self._keys.claim(write)
        try:
            if write.operations:
                outcome = await self._write_patiently(write, write.operations[0], known)
            else:
                outcome = await self._write_claim(write, known)
        except RejectedError:
            await self._keys.forget(write)
            raise
        # After the write: a crash in between leaves a message that comes late, and its consumer has to tell.
        await cancel_rows(self._database[OUTBOX_COLLECTION], write)
        if not outcome.replayed:
            count("acquired")
            if write.emit or write.call is not None:
                self._emitted()
        return outcome

    # ── a record ─────────────────────────────────────────────────────────────────────────────────

    async def _write_patiently(self, write: Write, operation: Operation, known: KnownKey | None) -> Outcome:
        give_up_at = time.monotonic() + CONFLICT_SECONDS
        while True:
            outcome = await self._write_once(write, operation, known)
            if outcome is not None:
                return outcome
            if time.monotonic() >= give_up_at:
                raise ConflictError("other writes of this record won each time", retry_after_seconds=0.1)
            # The write that won may have been one with this key, whose outcome has moved to the claims since.
            known = await self._keys.look_up(write)
            await asyncio.sleep(CONFLICT_PAUSE_SECONDS * random.random())  # noqa: S311 # nosec B311 - spreads load

    async def _write_once(self, write: Write, operation: Operation, known: KnownKey | None) -> Outcome | None:
        """Read, decide and write; return None where another write came between reading and writing."""
        collection = self._collections[operation.resource.name]
        documents = self._database[collection.name]
        stored = await documents.find_one({"_id": to_bson(operation.id)})
        known = (embedded(bookkeeping(stored), write) if stored else None) or known
        if known is not None:
            known.check(write)
            if known.kept is not None:
                return await replay(write, known.kept, self._database, self._collections)
        try:
            replacement = replacement_for(operation, collection, stored)
        except InvalidRequestError:
            await check_requirement(operation, stored, documents)
            raise
        result = replacement.result(collection)
        if replacement.only_looks and not write.emit:
            return Outcome((result,))
        entry = await self._audit.entry_of(write, collection, stored, replacement)
        document = await self._with_bookkeeping(write, replacement, stored, result, entry)
        with explained_duplicates(operation):
            if not await _put(documents, stored, document, replacement):
                return None
        if entry is not None:
            self._audit.wake()
        return Outcome((result,))

    async def _with_bookkeeping(
        self,
        write: Write,
        replacement: Replacement,
        stored: StoredDocument | None,
        result: Result,
        entry: StoredDocument | None,
    ) -> StoredDocument:
        """Return the document with the old keys and events and this write's, and its audit entry.

        The oldest keys move to the claims, and an entry before this one to the trail.
        """
        before: StoredDocument = bookkeeping(stored) if stored else {}
        entries: list[StoredDocument] = [*before.get("keys", ()), entry_for(write, result)]
        leaving, staying = entries[:-EMBEDDED_KEYS], entries[-EMBEDDED_KEYS:]
        # To the claims first: after a crash in between an outcome is there twice, and never lost.
        await self._keys.take_over(leaving)
        if (waiting := before.get(ENTRIES)) and entry is not None:
            await self._audit.take_over(waiting)
        earlier = without_cancelled(before.get(EVENTS, ()), write)
        hidden = with_events(replacement.document[HIDDEN], earlier, await self._events(write))
        hidden = with_entry(hidden, before.get(ENTRIES, ()) if entry is None else [entry])
        return {**replacement.document, HIDDEN: {**hidden, "keys": staying}}

    async def _events(self, write: Write, answer: CallAnswer | None = None) -> list[StoredDocument]:
        emissions = (*write.emit, *(answer.emit if answer else ()))
        if not emissions:
            return []
        first = await self._numbers.take(len(emissions))
        return event_rows(emissions, service=write.caller, first=first)

    # ── no record ────────────────────────────────────────────────────────────────────────────────

    async def _write_claim(self, write: Write, known: KnownKey | None) -> Outcome:
        """Do a call, or emit events alone; the outcome is recorded in the claim."""
        if known is not None:
            known.check(write)
            if known.kept is not None:
                return await replay(write, known.kept, self._database, self._collections)
        answer = None if write.call is None else await write.call(self._database)
        outcome = Outcome((), answer=b"" if answer is None else answer.body)
        if await self._keys.finish(write, outcome, await self._events(write, answer)):
            return outcome
        known = await self._keys.look_up(write)  # another process was quicker
        if known is None or known.kept is None:
            return outcome
        return await replay(write, known.kept, self._database, self._collections)


def unchanged(stored: StoredDocument) -> StoredDocument:
    """Return the filter for the document as it was read, also where something else has stored it."""
    hidden = stored.get(HIDDEN)
    incarnation = cast("StoredDocument", hidden).get("incarnation") if isinstance(hidden, dict) else None
    return {
        "_id": stored["_id"],
        "version": {"$eq": stored.get("version")},
        f"{HIDDEN}.incarnation": {"$eq": incarnation},
    }


async def _put(
    documents: AsyncCollection[StoredDocument],
    stored: StoredDocument | None,
    document: StoredDocument,
    replacement: Replacement,
) -> bool:
    """Write the document if it is still as it was read, and return whether it was.

    Raises:
        UniqueViolationError: another record has a value that only one may have.
        RequirementNotMetError: the document is as it was read, but not as the operation requires.
    """
    if stored is None:
        try:
            await documents.insert_one(document)
        except OperationFailure as error:
            there = {"_id": document["_id"]}
            if not is_duplicate(error) or await documents.find_one(there, {"_id": 1}) is None:
                raise
            return False
        return True
    target = unchanged(stored)
    required = {} if replacement.require is None else {"$and": [condition(replacement.require)]}
    replaced = await documents.replace_one({**target, **required}, document)
    if replaced.matched_count:
        return True
    if required and await documents.find_one(target, {"_id": 1}) is not None:
        raise requirement_not_met(replacement.operation, replacement.before)
    return False
