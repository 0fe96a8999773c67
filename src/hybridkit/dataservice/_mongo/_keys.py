"""Idempotency keys on MongoDB, also without transactions over several documents.

A single document is all that changes at once. So the outcome of a write stands in the document that it wrote, under the
key, and becomes true with it. A collection of claims says, before anything is written, which request a key belongs to;
outcomes move there when a document has collected many of them, and only then leave the document. What has no document
of its own (a call, or events alone) has its outcome, and its events, in its claim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pymongo import ASCENDING, IndexModel
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from hybridkit.codec import now
from hybridkit.dataservice._mongo._collection import HIDDEN, ResourceCollection
from hybridkit.dataservice._mongo._document_events import EVENTS, with_events
from hybridkit.dataservice._mongo._driver._database import LIVE, StoredDocument
from hybridkit.dataservice._mongo._driver._errors import is_duplicate
from hybridkit.dataservice._mongo._values import to_bson
from hybridkit.dataservice._store._kept_outcomes import decode_outcome, encode_outcome, result_of
from hybridkit.dataservice._store._keys import check_repeated, count, is_derived, retention_of
from hybridkit.dataservice._store._operations import Outcome, Result, Write

KEYS_COLLECTION: Final = "hk_keys"
EMBEDDED_KEYS: Final = 20
"""The most outcomes that stay in a document; older ones move to the claims."""
CLEAN_KEYS: Final = 1000

type Stored = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class KnownKey:
    """The request that a key belongs to, and its outcome.

    Attributes:
        fingerprint: of the request.
        kept: the outcome, encoded; None where nothing was done yet.
    """

    fingerprint: bytes
    kept: bytes | None

    def check(self, write: Write) -> None:
        """Refuse another request; a derived key is its request's only when something was done under it.

        Raises:
            KeyReusedError: `check_repeated` raised it.
        """
        if self.kept is not None or not is_derived(write.key):
            check_repeated(write, self.fingerprint)


class Keys:
    """The claims of one database.

    Args:
        collection: of the claims.
    """

    def __init__(self, collection: AsyncCollection[StoredDocument]) -> None:
        self._collection = collection

    def __repr__(self) -> str:
        return f"Keys({self._collection.full_name!r})"

    async def prepare(self) -> None:
        """Create the index by which expired claims are found."""
        await self._collection.create_indexes([IndexModel([("expires_at", ASCENDING)], name="expiring")])

    async def claim(self, write: Write) -> KnownKey | None:
        """Record that the key belongs to this request; return what is known of a key that was claimed before."""
        try:
            await self._collection.insert_one(_claim(write))
        except OperationFailure as error:
            if not is_duplicate(error):
                raise
            return await self.look_up(write)
        return None

    async def look_up(self, write: Write, session: AsyncClientSession | None = None) -> KnownKey | None:
        """Return what the claims know of the key."""
        found = await self._collection.find_one({"_id": key_id(write)}, session=session)
        return None if found is None else _known_key(found)

    async def forget(self, write: Write) -> None:
        """Give up a claim under which nothing was done: only what was done is remembered."""
        await self._collection.delete_one(
            {"_id": key_id(write), "fingerprint": write.fingerprint.hex(), "outcome": None}
        )

    async def finish(self, write: Write, outcome: Outcome, events: Sequence[StoredDocument]) -> bool:
        """Record the outcome and its events in the claim, and return whether it had no outcome before."""
        hidden = {HIDDEN: with_events({}, (), events)} if events else {}
        finished = await self._collection.update_one(
            {"_id": key_id(write), "outcome": None},
            {
                "$set": {
                    "fingerprint": write.fingerprint.hex(),
                    "outcome": encode_outcome(write, outcome),
                    **hidden,
                }
            },
        )
        return bool(finished.matched_count)

    async def record(self, write: Write, outcome: Outcome, session: AsyncClientSession) -> None:
        """Record the outcome in the session's transaction, which fails if another one with this key commits first."""
        done = {**_claim(write), "outcome": encode_outcome(write, outcome)}
        replaced = await self._collection.replace_one({"_id": done["_id"]}, done, session=session)
        if not replaced.matched_count:
            await self._collection.insert_one(done, session=session)

    async def take_over(self, entries: Sequence[Stored]) -> None:
        """Record outcomes that are about to leave their document."""
        for entry in entries:
            known = {name: entry[name] for name in ("fingerprint", "expires_at", "outcome")}
            there = await self._collection.update_one({"_id": entry["key"]}, {"$set": known})
            if not there.matched_count:  # not by an upsert: not every server survives a race of two
                await self._insert({"_id": entry["key"], **known})

    async def clean(self) -> int:
        """Delete expired claims, except those with events that no relay has moved, and return their number."""
        old = {"expires_at": {"$lt": now()}, f"{HIDDEN}.{EVENTS}": None}
        found = await self._collection.find(old, {"_id": 1}).limit(CLEAN_KEYS).to_list()
        if not found:
            return 0
        ids = [claim["_id"] for claim in found]
        return (await self._collection.delete_many({"_id": {"$in": ids}, **old})).deleted_count

    async def _insert(self, claim: StoredDocument) -> None:
        try:
            await self._collection.insert_one(claim)
        except OperationFailure as error:
            if not is_duplicate(error):
                raise


def key_id(write: Write) -> str:
    """Return the key in the form in which it is stored; a caller's name has no space in it."""
    return f"{write.caller} {write.key}"


def embedded(hidden: Stored, write: Write) -> KnownKey | None:
    """Return what the document itself knows of the key."""
    wanted = key_id(write)
    return next((_known_key(entry) for entry in hidden.get("keys", ()) if entry["key"] == wanted), None)


def entry_for(write: Write, result: Result) -> StoredDocument:
    """Return the entry with the outcome for the document that it is about."""
    return {
        "key": key_id(write),
        "fingerprint": write.fingerprint.hex(),
        "expires_at": _expires_at(write),
        "outcome": encode_outcome(write, Outcome((result,))),
    }


async def replay(
    write: Write,
    kept: bytes,
    database: AsyncDatabase[StoredDocument],
    collections: Mapping[str, ResourceCollection],
    session: AsyncClientSession | None = None,
) -> Outcome:
    """Return what was done under a key; the records of a large outcome are read again.

    Args:
        write: the repeated write.
        kept: by the key.
        database: with the records.
        collections: by the resource's name.
        session: of the transaction that asks.
    """
    count("replayed")
    outcome = decode_outcome(kept, write)
    if isinstance(outcome, Outcome):
        return outcome
    results: list[Result] = []
    for reference in outcome:
        record = None
        if reference is not None:
            collection = collections[reference.resource]
            record_id = to_bson(collection.resource.kept_id(reference.id))
            stored = await database[collection.name].find_one({"_id": record_id, **LIVE}, session=session)
            record = None if stored is None else collection.document(stored)
        results.append(result_of(reference, record))
    return Outcome(tuple(results), replayed=True, reread=True)


def _claim(write: Write) -> StoredDocument:
    return {
        "_id": key_id(write),
        "fingerprint": write.fingerprint.hex(),
        "expires_at": _expires_at(write),
    }


def _expires_at(write: Write) -> datetime:
    return now() + retention_of(write.key)


def _known_key(entry: Stored) -> KnownKey:
    return KnownKey(bytes.fromhex(entry["fingerprint"]), entry.get("outcome"))
