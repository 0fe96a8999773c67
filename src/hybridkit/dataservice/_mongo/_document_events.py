"""Events as rows of the outbox, and in the documents that they are about until a relay moves them there.

Without transactions only one document changes at a time. So events wait inside of the document whose change they tell
of, in its hidden member, and are there exactly when the change is. A relay moves them on to the outbox.

Each has a number of one counter. It is taken after the document was read and before it is written, and the document is
only written if it is still as it was read: later events of a document have higher numbers, whoever writes them.
"""

from collections.abc import Sequence
from typing import Any, Final

from pymongo import ReturnDocument
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from hybridkit.codec import decode_object, now
from hybridkit.contract import Emission
from hybridkit.dataservice._mongo._driver._errors import is_duplicate
from hybridkit.dataservice._outbox._protocol import envelope_of, partition_of
from hybridkit.dataservice._store._operations import Write

OUTBOX_COLLECTION: Final = "hk_outbox"
COUNTERS_COLLECTION: Final = "hk_counters"
EVENTS: Final = "events"
"""The part of a document's hidden member with the events that no relay has moved yet, in their order."""
EMITTED_AT: Final = "emitted_at"
"""The part with the time of the first of those events. An index finds documents by it."""

type StoredDocument = dict[str, Any]


class SequenceNumbers:
    """A counter whose numbers are given once each, later ones higher.

    Args:
        database: the database that keeps the counter.
    """

    def __init__(self, database: AsyncDatabase[StoredDocument]) -> None:
        self._counters = database[COUNTERS_COLLECTION]

    def __repr__(self) -> str:
        return f"SequenceNumbers({self._counters.full_name!r})"

    async def prepare(self) -> None:
        """Create the counter before there can be a race for it, which not every server survives."""
        if await self._counters.find_one({"_id": "outbox"}) is None:
            try:
                await self._counters.insert_one({"_id": "outbox", "last": 0})
            except OperationFailure as error:
                if not is_duplicate(error):
                    raise

    async def take(self, count: int) -> int:
        """Take that many numbers in a row, and return the first."""
        found: StoredDocument | None = None
        while found is None:
            found = await self._counters.find_one_and_update(
                {"_id": "outbox"}, {"$inc": {"last": count}}, return_document=ReturnDocument.AFTER
            )
            if found is None:  # the collection was emptied
                await self.prepare()
        return int(found["last"]) - count + 1


def event_rows(emissions: Sequence[Emission], *, service: str, first: int) -> list[StoredDocument]:
    """Return events and commands as rows of the outbox, numbered from `first` on."""
    moment = now()
    rows: list[StoredDocument] = []
    for sequence, emission in enumerate(emissions, start=first):
        ordering_key = str(emission.event_id) if emission.key is None else emission.key
        rows.append(
            {
                "_id": str(emission.event_id),
                "sequence": sequence,
                "lane": ordering_key,
                "partition": partition_of(ordering_key),
                "key": emission.key,
                "event_type": emission.event_type,
                "queue": emission.queue,
                "request_id": emission.request_id,
                "user_id": emission.user_id,
                "traceparent": emission.traceparent,
                "tracestate": emission.tracestate,
                "body": envelope_of(emission, service=service),
                "created_at": moment,
                "not_before": emission.not_before,
                "state": "waiting",
            }
        )
    return rows


def without_cancelled(rows: Sequence[StoredDocument], write: Write) -> list[StoredDocument]:
    """Return the rows without those that the write cancels."""
    return [row for row in rows if row["_id"] not in cancelled_ids(rows, write)] if write.cancel else [*rows]


def cancelled_ids(rows: Sequence[StoredDocument], write: Write) -> list[str]:
    """Return the ids of the rows that the write cancels: its caller's own, whose time has not come."""
    wanted, moment = {str(event_id) for event_id in write.cancel}, now()
    return [
        row["_id"]
        for row in rows
        if row["_id"] in wanted
        and row["not_before"] is not None
        and row["not_before"] > moment
        and decode_object(bytes(row["body"]))["service"] == write.caller
    ]


async def cancel_rows(
    outbox: AsyncCollection[StoredDocument], write: Write, session: AsyncClientSession | None = None
) -> None:
    """Delete the rows of the outbox that the write cancels."""
    if not write.cancel:
        return
    waiting = {"_id": {"$in": [str(event_id) for event_id in write.cancel]}, "state": "waiting"}
    rows = await outbox.find(waiting, session=session).to_list()
    if ids := cancelled_ids(rows, write):
        await outbox.delete_many({"_id": {"$in": ids}, "state": "waiting"}, session=session)


def with_events(
    hidden: StoredDocument, before: Sequence[StoredDocument], rows: Sequence[StoredDocument]
) -> StoredDocument:
    """Return the hidden member of a document with its events and new ones after them."""
    events = [*before, *rows]
    if not events:
        return hidden
    return {**hidden, EVENTS: events, EMITTED_AT: events[0]["created_at"]}
