"""The outbox in MongoDB, which moves events out of the documents that they are about, and its leases.

A move puts events into the outbox first and only then takes them out of their document, so that a crash in between
moves them again, and finds them there by their identity. Whoever moves them: they come in their document's order, each
after the one before is there.

A lease is one document per partition, taken by `find_one_and_update`, which is atomic. A mark looks at the lease first
and is not one step with it. What it records stays true if the lease is lost in between: that the broker has confirmed.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from pymongo import ASCENDING, IndexModel, ReturnDocument, UpdateOne
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from hybridkit.codec import now
from hybridkit.dataservice._mongo._collection import HIDDEN
from hybridkit.dataservice._mongo._document_events import EMITTED_AT, EVENTS, OUTBOX_COLLECTION
from hybridkit.dataservice._mongo._driver._database import StoredDocument, bounded, meaning
from hybridkit.dataservice._mongo._driver._errors import is_duplicate, read_error
from hybridkit.dataservice._outbox._protocol import (
    LEASE_SECONDS,
    PARTITIONS,
    SAFETY_SECONDS,
    AcquiredLeases,
    Backlog,
    Lease,
    OutboxEntry,
    ParkedRow,
    WaitingRow,
    fair_share,
)
from hybridkit.dataservice._store._keys import RETENTION

LEASES_COLLECTION: Final = "hk_leases"
PATIENCE_SECONDS: Final = 3.0
"""The longest wait of the relay for the database; well within its leases."""
MOVE_DOCUMENTS: Final = 50
"""The most documents of a collection whose events are moved in one turn."""
MAX_REASON_LENGTH: Final = 500
CLEAN_EVENTS: Final = 1000

_EVENTS: Final = f"{HIDDEN}.{EVENTS}"
_EMITTED_AT: Final = f"{HIDDEN}.{EMITTED_AT}"
_HOLDS_EVENTS: Final[StoredDocument] = {_EMITTED_AT: {"$exists": True}}
_WAITING: Final[StoredDocument] = {"state": "waiting"}
_PARKED: Final[StoredDocument] = {"state": "parked"}


class MongoOutbox:
    """The outbox as a relay uses it.

    Args:
        database: of the data service.
        sources: the names of the collections whose documents may hold events.
    """

    def __init__(self, database: AsyncDatabase[StoredDocument], sources: Iterable[str]) -> None:
        self._database = database
        self._events = database[OUTBOX_COLLECTION]
        self._leases = database[LEASES_COLLECTION]
        self._sources = [database[name] for name in sorted(set(sources))]
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"MongoOutbox({self._events.full_name!r})"

    async def prepare(self) -> None:
        """Create indexes, and a free lease for each partition: creating them later would be a race."""
        await self._events.create_indexes(
            [
                IndexModel(
                    [("state", ASCENDING), ("partition", ASCENDING), ("sequence", ASCENDING)], name="waiting"
                ),
                IndexModel([("published_at", ASCENDING)], name="published_at", sparse=True),
            ]
        )
        for source in self._sources:
            await source.create_indexes(
                [IndexModel([(_EMITTED_AT, ASCENDING)], name="hk_emitted_at", sparse=True)]
            )
        there = {lease["_id"] for lease in await self._leases.find({}, {"_id": 1}).to_list()}
        for partition in range(PARTITIONS):
            if (name := f"partition.{partition:02}") not in there:
                await _insert(
                    self._leases,
                    {"_id": name, "partition": partition, "owner": None, "fence": 0, "expires_at": now()},
                )

    # ── leases ───────────────────────────────────────────────────────────────────────────────────

    async def renew_leases(self, owner: str) -> AcquiredLeases:
        """Report this replica as alive, renew its leases, and take free partitions up to its share."""
        asked = time.monotonic()
        valid_until = asked + LEASE_SECONDS - SAFETY_SECONDS
        with bounded(PATIENCE_SECONDS), meaning(read_error):
            moment = await self._server_time()
            end = moment + timedelta(seconds=LEASE_SECONDS)
            share = fair_share(await self._live_replicas(owner, moment, end))
            held = await self._renewed(owner, end)
            while len(held) < share:
                taken = await self._leases.find_one_and_update(
                    {"partition": {"$gte": 0}, "expires_at": {"$lte": moment}},
                    {"$set": {"owner": owner, "expires_at": end}, "$inc": {"fence": 1}},
                    sort=[("expires_at", ASCENDING)],
                    return_document=ReturnDocument.AFTER,
                )
                if taken is None:
                    break
                held.append(taken)
        leases = [Lease(lease["partition"], lease["fence"], valid_until) for lease in held]
        return AcquiredLeases(leases, share)

    async def _renewed(self, owner: str, end: datetime) -> list[StoredDocument]:
        mine = {"owner": owner, "partition": {"$gte": 0}}
        renewed = await self._leases.update_many(mine, {"$set": {"expires_at": end}})
        return await self._leases.find(mine).to_list() if renewed.matched_count else []

    async def _live_replicas(self, owner: str, moment: datetime, end: datetime) -> int:
        me = f"replica.{owner}"
        renewed = await self._leases.update_one({"_id": me}, {"$set": {"expires_at": end}})
        if not renewed.matched_count:
            await _insert(self._leases, {"_id": me, "replica": owner, "expires_at": end})
        return await self._leases.count_documents(
            {"replica": {"$exists": True}, "expires_at": {"$gt": moment}}
        )

    async def _server_time(self) -> datetime:
        """Return the time by the server's clock: those of the replicas may differ."""
        about = await self._database.command("hello")
        moment: datetime = about["localTime"]
        return moment.replace(tzinfo=UTC)

    async def release_leases(self, owner: str, partitions: Collection[int] | None = None) -> None:
        """Release partitions, so that no other replica has to wait; None: all of them, and report the replica's end."""
        mine: StoredDocument = {"owner": owner, "partition": {"$gte": 0}}
        if partitions is not None:
            mine["partition"] = {"$in": sorted(partitions)}
        with bounded(PATIENCE_SECONDS), meaning(read_error):
            moment = await self._server_time()
            await self._leases.update_many(mine, {"$set": {"owner": None, "expires_at": moment}})
            if partitions is None:
                await self._leases.delete_one({"_id": f"replica.{owner}"})

    # ── publishing ───────────────────────────────────────────────────────────────────────────────

    async def waiting(
        self, partitions: Collection[int], *, without: Collection[str], limit: int
    ) -> Sequence[WaitingRow]:
        """Move events out of documents, and return the oldest rows of the partitions whose time has come."""
        with bounded(PATIENCE_SECONDS), meaning(read_error):
            for source in self._sources:
                await self.move(source)
            wanted = _due(partitions)
            if without:
                wanted["lane"] = {"$nin": sorted(without)}
            found = await self._events.find(wanted).sort("sequence", ASCENDING).limit(limit).to_list()
        return [_waiting(row) for row in found]

    async def move(self, source: AsyncCollection[StoredDocument]) -> None:
        """Put the events that documents of the collection hold into the outbox, and then take them out there."""
        pending = source.find(_HOLDS_EVENTS, {_EVENTS: 1})
        for document in await pending.sort(_EMITTED_AT, ASCENDING).limit(MOVE_DOCUMENTS).to_list():
            rows: list[StoredDocument] = document[HIDDEN].get(EVENTS, [])
            for row in rows:
                await _insert(self._events, row)
            await self._take_out(source, document["_id"], [row["_id"] for row in rows])

    async def _take_out(
        self, source: AsyncCollection[StoredDocument], document_id: Any, event_ids: Sequence[str]
    ) -> None:
        target = {"_id": document_id}
        await source.update_one(target, {"$pull": {_EVENTS: {"_id": {"$in": event_ids}}}})
        # What has come meanwhile stays, and so does the mark by which it is found.
        await source.update_one(
            {**target, _EVENTS: []},
            {"$unset": {_EVENTS: "", _EMITTED_AT: ""}},
        )

    async def mark(
        self, leases: Sequence[Lease], *, published: Sequence[WaitingRow], parked: Sequence[ParkedRow]
    ) -> Collection[int]:
        """Record rows as published or parked; return the partitions of other replicas, whose rows stay as they are."""
        with bounded(PATIENCE_SECONDS), meaning(read_error):
            found = await self._leases.find({"partition": {"$gte": 0}}).to_list()
            fences = {lease["partition"]: lease["fence"] for lease in found}
            held = {lease.partition for lease in leases if fences.get(lease.partition) == lease.fence}
            moment = now()
            done = [row.sequence for row in published if row.partition in held]
            if done:
                await self._events.update_many(
                    {"sequence": {"$in": done}, **_of(held), **_WAITING},
                    {"$set": {"state": "published", "published_at": moment}},
                )
            aside = [
                UpdateOne(
                    {"_id": str(entry.row.event_id), **_WAITING},
                    {
                        "$set": {
                            "state": "parked",
                            "parked_at": moment,
                            "reason": entry.reason[:MAX_REASON_LENGTH],
                        }
                    },
                )
                for entry in parked
                if entry.row.partition in held
            ]
            if aside:
                await self._events.bulk_write(aside)
        return {lease.partition for lease in leases} - held

    async def backlog(self, partitions: Collection[int]) -> Backlog:
        """Return the backlog of the partitions; events that documents still hold count as the first partition's."""
        of = _of(partitions)
        with bounded(PATIENCE_SECONDS), meaning(read_error):
            waiting = await self._events.count_documents({**_WAITING, **of})
            parked = await self._events.count_documents({**_PARKED, **of})
            due = self._events.find(_due(partitions), {"created_at": 1, "not_before": 1})
            first = await due.sort("sequence", ASCENDING).limit(1).to_list()
            since = [row["not_before"] or row["created_at"] for row in first]
            for source in self._sources if 0 in partitions else ():
                held = source.find(_HOLDS_EVENTS, {_EMITTED_AT: 1, _EVENTS: 1}).sort(_EMITTED_AT, ASCENDING)
                documents = await held.limit(MOVE_DOCUMENTS).to_list()
                waiting += sum(len(document[HIDDEN].get(EVENTS, ())) for document in documents)
                since += [document[HIDDEN][EMITTED_AT] for document in documents[:1]]
            moment = await self._server_time()
        age = moment - min(since, default=moment)
        return Backlog(waiting=waiting, parked=parked, lag_seconds=max(age.total_seconds(), 0.0))

    async def changed(self, *, timeout_seconds: float) -> None:
        """Wait until this process has added events, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()
        self._changed.clear()

    def wake(self) -> None:
        """Wake `changed`: this process has added events."""
        self._changed.set()

    # ── for people ───────────────────────────────────────────────────────────────────────────────

    async def entries(
        self, *, parked: bool, event_type: str | None = None, event_ids: Collection[UUID] = (), limit: int
    ) -> Sequence[OutboxEntry]:
        """Return rows that are parked, or those that wait, by sequence."""
        wanted = {**(_PARKED if parked else _WAITING), **_chosen(event_type, event_ids)}
        with bounded(), meaning(read_error):
            found = await self._events.find(wanted).sort("sequence", ASCENDING).limit(limit).to_list()
        return [_entry(row) for row in found]

    async def retry(self, *, event_type: str | None = None, event_ids: Collection[UUID] = ()) -> int:
        """Let parked rows wait again, with their old sequence, and return their number."""
        back = {"$set": {"state": "waiting"}, "$unset": {"parked_at": "", "reason": ""}}
        with bounded(), meaning(read_error):
            changed = await self._events.update_many({**_PARKED, **_chosen(event_type, event_ids)}, back)
        self.wake()
        return changed.modified_count

    async def clean(self) -> int:
        """Delete events published before the retention and replicas dead as long; return the number of events."""
        old = {"published_at": {"$lt": now() - RETENTION}}
        await self._leases.delete_many(
            {"replica": {"$exists": True}, "expires_at": {"$lt": now() - RETENTION}}
        )
        found = await self._events.find(old, {"_id": 1}).limit(CLEAN_EVENTS).to_list()
        if not found:
            return 0
        ids = [row["_id"] for row in found]
        return (await self._events.delete_many({"_id": {"$in": ids}})).deleted_count


def _due(partitions: Collection[int]) -> StoredDocument:
    """Return the filter for waiting rows whose time has come."""
    return {**_WAITING, **_of(partitions), "$or": [{"not_before": None}, {"not_before": {"$lte": now()}}]}


def _of(partitions: Collection[int]) -> StoredDocument:
    return {"partition": {"$in": sorted(partitions)}}


def _chosen(event_type: str | None, event_ids: Collection[UUID]) -> StoredDocument:
    chosen: StoredDocument = {} if event_type is None else {"event_type": event_type}
    return chosen | ({"_id": {"$in": [str(event_id) for event_id in event_ids]}} if event_ids else {})


def _waiting(row: Mapping[str, Any]) -> WaitingRow:
    return WaitingRow(
        event_id=UUID(row["_id"]),
        ordering_key=row["lane"],
        **{
            name: row[name]
            for name in (
                "sequence",
                "partition",
                "event_type",
                "queue",
                "request_id",
                "user_id",
                "traceparent",
                "tracestate",
                "body",
            )
        },
    )


def _entry(row: Mapping[str, Any]) -> OutboxEntry:
    names = ("sequence", "event_type", "key", "queue", "request_id", "created_at", "not_before")
    return OutboxEntry(
        event_id=UUID(row["_id"]),
        parked_at=row.get("parked_at"),
        reason=row.get("reason"),
        **{name: row[name] for name in names},
    )


async def _insert(documents: AsyncCollection[StoredDocument], document: StoredDocument) -> None:
    """Insert the document unless it is there."""
    try:
        await documents.insert_one(document)
    except OperationFailure as error:
        if not is_duplicate(error):
            raise
