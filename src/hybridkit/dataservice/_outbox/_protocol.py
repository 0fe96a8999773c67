"""The seam between the relay and a database: events that wait, who publishes which, and what became of them.

Keys hash into partitions, and each partition has one owner among the replicas, by a lease. A replica says every second
that it is alive (`acquire`), and takes up to its fair share: partitions divided by live replicas, rounded up. What it
has beyond that it gives back where another one lacks it, once it has finished there; what a dead one had is free when
its lease runs out.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final, Protocol
from uuid import UUID

from hybridkit.codec import encode_json, format_timestamp
from hybridkit.contract import Emission

PARTITIONS: Final = 16
"""How many there are, and so how many replicas can publish at a time; a power of two."""
LEASE_SECONDS: Final = 10.0
"""After that without a sign of life what a replica had is free."""
ALIVE_SECONDS: Final = 3.5
"""For so long after its last sign of life a replica counts among those that share; they give one every second."""
PATIENT_SECONDS: Final = 5.0
"""A partition that nobody has taken for so long is for anybody, whatever its share."""
SAFETY_SECONDS: Final = 1.0
"""How long before others may take over that an owner stops publishing."""


def partition_of(ordering_key: str) -> int:
    """Where a lane's rows belong, 0 to `PARTITIONS` - 1; for a database that doesn't compute it by itself."""
    return blake2b(ordering_key.encode(), digest_size=1).digest()[0] % PARTITIONS


def fair_share(replicas: int) -> int:
    """How many partitions one of so many live replicas may have."""
    return -(-PARTITIONS // max(replicas, 1))


def kept_of(mine: int, others: Collection[int], *, free: int) -> int:
    """How many of its partitions a replica may keep: beyond its share it gives back only what another one lacks.

    Args:
        mine: how many it has.
        others: how many each of the other live replicas has.
        free: how many nobody has; whoever lacks some takes these first.
    """
    share = fair_share(1 + len(others))
    lacking = sum(max(share - theirs, 0) for theirs in others)
    return max(share, mine - max(lacking - free, 0))


def envelope_of(emission: Emission, *, service: str) -> bytes:
    """The bytes that are published, as `EventEnvelope.encode` writes them; this service doesn't know the types.

    Args:
        emission: the event or command.
        service: whose it is.
    """
    wire: dict[str, Any] = {
        "event_type": emission.event_type,
        "event_id": emission.event_id,
        "timestamp": format_timestamp(emission.timestamp),
        "service": service,
        "request_id": emission.request_id,
        "user_id": emission.user_id,
        "data": emission.data,
    }
    if emission.version != 1:
        wire["version"] = emission.version
    return encode_json(wire)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRow:
    """A row of the outbox that has not been published, and whose time has come.

    Attributes:
        sequence: its place; rows of one lane are published in this order.
        partition: whose owner publishes it.
        lane: what keeps rows in order: the event's key, or its id where it has none. All of one lane are in one
            partition.
        event_id: the event's identity.
        event_type: the routing key.
        queue: for a command, where it goes; None for an event.
        request_id: of the request that caused it.
        user_id: on whose behalf.
        traceparent: the trace of that request.
        tracestate: the same, in its vendors' words.
        body: the envelope, encoded.
    """

    sequence: int
    partition: int
    ordering_key: str
    event_id: UUID
    event_type: str
    queue: str | None
    request_id: str
    user_id: str | None
    traceparent: str | None = None
    tracestate: str | None = None
    body: bytes


@dataclass(frozen=True, slots=True)
class ParkedRow:
    """A row that can't be published.

    Attributes:
        row: which one.
        reason: why, for whoever looks at it.
    """

    row: WaitingRow
    reason: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to publish one partition's rows, for a while.

    Attributes:
        partition: which one.
        fence: grows with each new owner; a former owner's marks are ignored.
        valid_until: the `time.monotonic()` instant at which to stop: `SAFETY_SECONDS` before another may take over.
    """

    partition: int
    fence: int
    valid_until: float


@dataclass(frozen=True, slots=True)
class AcquiredLeases:
    """What a replica has after a sign of life.

    Attributes:
        leases: all of its own, each renewed; those that it has to give back too.
        share: how many of them it may keep; what is beyond goes back by `release`.
    """

    leases: Sequence[Lease]
    share: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What is in some partitions.

    Attributes:
        waiting: rows that have not been published, also those whose time has not come.
        parked: rows that can't be.
        lag_seconds: for how long the oldest row could have been published; 0 where there is none.
    """

    waiting: int
    parked: int
    lag_seconds: float


class Outbox(Protocol):
    """What a relay needs of a database. Nothing in it stays locked between two calls."""

    async def renew_leases(self, owner: str) -> AcquiredLeases:
        """Give a sign of life, renew what this replica has, and take free partitions up to its share."""
        ...

    async def release_leases(self, owner: str, partitions: Collection[int] | None = None) -> None:
        """Give partitions back, so that another replica needn't wait; None: all of them, and stop being alive."""
        ...

    async def waiting(
        self, partitions: Collection[int], *, without: Collection[str], limit: int
    ) -> Sequence[WaitingRow]:
        """The oldest rows of these partitions whose time has come, by sequence, without those of some lanes.

        Of each lane it has the first rows, with none left out between them. One with a `not_before` is not in order
        with the others of its lane: it comes when its time has come.
        """
        ...

    async def mark(
        self, leases: Sequence[Lease], *, published: Sequence[WaitingRow], parked: Sequence[ParkedRow]
    ) -> Collection[int]:
        """Record what became of rows.

        Args:
            leases: of all their partitions.
            published: rows that the broker has confirmed.
            parked: rows that can't be published.

        Returns:
            The partitions that somebody else has by now; nothing is recorded of their rows.
        """
        ...

    async def backlog(self, partitions: Collection[int]) -> Backlog:
        """How much there is in these partitions; over all of them it is the whole."""
        ...

    async def changed(self, *, timeout_seconds: float) -> None:
        """Return when rows may have come, at the latest after that time."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxEntry:
    """A row of the outbox, for people.

    Attributes:
        sequence: its place.
        event_id: the event's identity.
        event_type: what it is.
        key: what it is in order with, if anything.
        queue: for a command, where it goes.
        request_id: of the request that caused it.
        created_at: when it was stored.
        not_before: when it may be published; None for at once.
        parked_at: when it was found that it can't be; None for a row that waits.
        reason: why it can't be.
    """

    sequence: int
    event_id: UUID
    event_type: str
    key: str | None
    queue: str | None
    request_id: str
    created_at: datetime
    not_before: datetime | None = None
    parked_at: datetime | None = None
    reason: str | None = None


class OutboxEntries(Protocol):
    """What people need of an outbox: to see what is in it, and to have parked rows tried again."""

    async def entries(
        self, *, parked: bool, event_type: str | None = None, event_ids: Collection[UUID] = (), limit: int
    ) -> Sequence[OutboxEntry]:
        """Rows that are parked, or those that wait, by sequence.

        Args:
            parked: which of the two.
            event_type: only these; None for all.
            event_ids: only these; empty for all.
            limit: at most so many.
        """
        ...

    async def retry(self, *, event_type: str | None = None, event_ids: Collection[UUID] = ()) -> int:
        """Let parked rows wait again, in their old places; how many there were. Filters as for `entries`."""
        ...
