"""Writes of several documents in one transaction, for servers that have them (a replica set or a sharded cluster).

The records, the key with its outcome, and the rows of the outbox become true with one commit. Every transaction reads
one snapshot, and the server refuses a write of what another has changed since: that attempt starts again.

Events with one key stay in commit order, as a transaction first changes a document that stands for the key: no other
gets past that before the commit, so the numbers that are taken after it are in the order of commits.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from bson import ObjectId
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError
from pymongo.write_concern import WriteConcern

from hybridkit.codec import now
from hybridkit.dataservice._mongo._audit._entries import ENTRIES, MongoAudit, with_entry
from hybridkit.dataservice._mongo._collection import HIDDEN, ResourceCollection, bookkeeping
from hybridkit.dataservice._mongo._document_events import (
    EVENTS,
    OUTBOX_COLLECTION,
    SequenceNumbers,
    cancel_rows,
    event_rows,
    with_events,
)
from hybridkit.dataservice._mongo._document_writer import unchanged
from hybridkit.dataservice._mongo._driver._database import StoredDocument
from hybridkit.dataservice._mongo._driver._errors import explained_duplicates
from hybridkit.dataservice._mongo._driver._sessions import LostRaceError, Transactions
from hybridkit.dataservice._mongo._filters import condition
from hybridkit.dataservice._mongo._keys import KEYS_COLLECTION, Keys, embedded, replay
from hybridkit.dataservice._mongo._replacements import Replacement, check_requirement, replacement_for
from hybridkit.dataservice._mongo._values import to_bson
from hybridkit.dataservice._store._keys import count
from hybridkit.dataservice._store._operations import (
    CallAnswer,
    CallWork,
    Operation,
    Outcome,
    Result,
    Write,
)
from hybridkit.dataservice._store._refusals import requirement_not_met
from hybridkit.errors import InvalidRequestError

ORDERING_KEYS_COLLECTION: Final = "hk_lanes"
ORDERING_KEYS_EXPIRE: Final = timedelta(days=1)


class _DoneWithoutError(Exception):
    """The write was done without a transaction by another replica, whose key is in the document; this one ends."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__("done without a transaction")
        self.outcome = outcome


class TransactionWriter:
    """A writer of any number of records, events and calls, in transactions.

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
        self._transactions = Transactions(database.client)
        self._collections = collections
        self._keys = Keys(database[KEYS_COLLECTION])
        self._numbers = SequenceNumbers(database)
        self._emitted = emitted

    def __repr__(self) -> str:
        return f"TransactionWriter({sorted(self._collections)})"

    async def write(self, write: Write) -> Outcome:
        """Do all of it, once per caller and key, or nothing; take it back at the end if it is a dry run."""
        try:
            outcome = await self._transactions.run(
                lambda session: self.attempt(session, write), keep=not write.dry_run
            )
        except _DoneWithoutError as done:
            outcome = done.outcome
        if not outcome.replayed:
            count("acquired")
            if write.emit or write.call is not None:
                self._emitted()
        return outcome

    async def close(self) -> None:
        """Wait until no transaction is open."""
        await self._transactions.close()

    async def attempt(self, session: AsyncClientSession, write: Write) -> Outcome:
        """Do the write inside of the session's transaction, once."""
        known = None if write.dry_run else await self._keys.look_up(write, session)
        if known is not None:
            known.check(write)
            if known.kept is not None:
                return await replay(write, known.kept, self._database, self._collections, session)
        results = tuple([await self._apply(session, operation, write) for operation in write.operations])
        answer = None if write.call is None else await self._called(session, write.call)
        await self._emit(session, write, answer)
        await cancel_rows(self._database[OUTBOX_COLLECTION], write, session)
        outcome = Outcome(results, answer=b"" if answer is None else answer.body)
        if not write.dry_run:
            try:
                await self._keys.record(write, outcome, session)
            except DuplicateKeyError:
                raise LostRaceError from None
        return outcome

    # ── records ──────────────────────────────────────────────────────────────────────────────────

    async def _apply(self, session: AsyncClientSession, operation: Operation, write: Write) -> Result:
        collection = self._collections[operation.resource.name]
        documents = self._database[collection.name]
        stored = await documents.find_one({"_id": to_bson(operation.id)}, session=session)
        if stored is not None and not write.dry_run and (known := embedded(bookkeeping(stored), write)):
            known.check(write)
            if known.kept is not None:
                outcome = await replay(write, known.kept, self._database, self._collections, session)
                raise _DoneWithoutError(outcome)
        try:
            replacement = replacement_for(operation, collection, stored)
        except InvalidRequestError:
            await check_requirement(operation, stored, documents, session)
            raise
        if replacement.only_looks and stored is not None:
            # A write, so that no other transaction can write the document before this one commits.
            await documents.update_one(
                {"_id": stored["_id"]}, {"$set": {f"{HIDDEN}.asserted": ObjectId()}}, session=session
            )
            return replacement.result(collection)
        with explained_duplicates(operation):
            if stored is None:
                await documents.insert_one(replacement.document, session=session)
            else:
                await self._replace(session, collection, stored, replacement)
        entry = await self._audit.entry_of(write, collection, stored, replacement)
        if entry is not None:
            await self._audit.add(entry, session)
        return replacement.result(collection)

    async def _replace(
        self,
        session: AsyncClientSession,
        collection: ResourceCollection,
        stored: StoredDocument,
        replacement: Replacement,
    ) -> None:
        before = bookkeeping(stored)
        hidden = with_events(replacement.document[HIDDEN], before.get(EVENTS, ()), ())
        hidden = with_entry(hidden, before.get(ENTRIES, ()))
        document = {**replacement.document, HIDDEN: {**hidden, "keys": before.get("keys", [])}}
        required = {} if replacement.require is None else {"$and": [condition(replacement.require)]}
        replaced = await self._database[collection.name].replace_one(
            {**unchanged(stored), **required}, document, session=session
        )
        if replaced.matched_count:
            return
        if not required:
            raise LostRaceError
        raise requirement_not_met(replacement.operation, replacement.before)

    # ── calls and events ─────────────────────────────────────────────────────────────────────────

    async def _called(self, session: AsyncClientSession, work: CallWork) -> CallAnswer:
        """Run a service's own call; what it does with the database belongs to the transaction by itself."""
        # The driver adds the session when it sends a command, and has taken the collection's write concern before:
        # only the commit may have one.
        database = self._database.with_options(write_concern=WriteConcern())
        async with session.bind(end_session=False):
            return await work(database)

    async def _emit(self, session: AsyncClientSession, write: Write, answer: CallAnswer | None) -> None:
        emissions = (*write.emit, *(answer.emit if answer else ()))
        if not emissions:
            return
        ordering_keys = self._database[ORDERING_KEYS_COLLECTION]
        # In one order, so that two transactions with the same keys don't wait for each other.
        for key in sorted({emission.key for emission in emissions if emission.key is not None}):
            counted = {"$set": {"expires_at": now() + ORDERING_KEYS_EXPIRE}, "$inc": {"events": 1}}
            await ordering_keys.update_one({"_id": key}, counted, upsert=True, session=session)
        rows = event_rows(emissions, service=write.caller, first=await self._numbers.take(len(emissions)))
        outbox = self._database[OUTBOX_COLLECTION]
        there = await outbox.find(
            {"_id": {"$in": [row["_id"] for row in rows]}}, {"_id": 1}, session=session
        ).to_list()
        known = {row["_id"] for row in there}
        if new := [row for row in rows if row["_id"] not in known]:
            await outbox.insert_many(new, session=session)
