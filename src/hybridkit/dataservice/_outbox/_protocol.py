"""The protocol between the relay and a database: waiting events, leases of partitions, and marks of what was published.

Ordering keys hash into partitions, and each partition has one owner among the replicas, by a lease. A replica sends a
heartbeat every second (`renew_leases`), and takes up to its fair share: partitions divided by live replicas, rounded
up. Partitions beyond its share it gives back if another replica lacks them, once it has finished there; those of a dead
replica are free when their leases run out.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final, Protocol
from uuid import UUID

from hybridkit.codec import encode_json, format_timestamp
from hybridkit.contract import Emission
from hybridkit.contract._operations import StreamEmission

PARTITIONS: Final = 16
"""The number of partitions, and so of replicas that can publish at a time; a power of two."""
LEASE_SECONDS: Final = 10.0
"""How long a lease lasts after its renewal; then its partition is free."""
HEARTBEAT_TTL_SECONDS: Final = 3.5
"""How long after its last heartbeat, one a second, a replica counts among those that share the partitions."""
UNCLAIMED_SECONDS: Final = 5.0
"""How long a partition is free before a replica may take it beyond its share."""
SAFETY_SECONDS: Final = 1.0
"""How long before others may take over a partition its owner stops publishing."""


def partition_of(ordering_key: str) -> int:
    """Return the partition of an ordering key, 0 to `PARTITIONS` - 1, for a database that doesn't compute it."""
    return blake2b(ordering_key.encode(), digest_size=1).digest()[0] % PARTITIONS


def fair_share(replicas: int) -> int:
    """Return how many partitions each of so many live replicas may have."""
    return -(-PARTITIONS // max(replicas, 1))


def kept_share(mine: int, others: Collection[int], *, free: int) -> int:
    """Return how many of its partitions a replica may keep: beyond its share it gives back only what another one lacks.

    Args:
        mine: how many partitions the replica has.
        others: how many partitions each of the other live replicas has.
        free: how many partitions no replica has; a replica that lacks some takes these first.
    """
    share = fair_share(1 + len(others))
    lacking = sum(max(share - theirs, 0) for theirs in others)
    return max(share, mine - max(lacking - free, 0))


def envelope_of(emission: Emission, *, service: str) -> bytes:
    """Encode the envelope to publish as `EventEnvelope.encode` does; a data service doesn't know the event types.

    Args:
        emission: the event or command.
        service: the service that emits it.
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
    if emission.causation_id is not None:
        wire["causation_id"] = emission.causation_id
    if emission.reply_to is not None:
        wire["reply_to"] = emission.reply_to.model_dump()
    if isinstance(emission, StreamEmission):
        wire["stream_version"] = emission.stream_version
    return encode_json(wire)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingRow:
    """A row of the outbox that has not been published, and whose time has come.

    Attributes:
        sequence: the row's number; rows with one ordering key are published in the order of these.
        partition: the partition whose owner publishes the row.
        ordering_key: the event's key, or its id if it has none. Rows with one ordering key are in one partition.
        event_id: the event's identity.
        event_type: the routing key.
        queue: the queue of a command; None for an event.
        request_id: the request that caused the event.
        user_id: the user on whose behalf the request was made, if there is one.
        traceparent: the trace of that request, by W3C Trace Context.
        tracestate: what the vendors of that trace add to it.
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
        row: the row.
        reason: the reason, for people who look at it.
    """

    row: WaitingRow
    reason: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to publish one partition's rows, for a while.

    Attributes:
        partition: the partition, 0 to `PARTITIONS` - 1.
        fence: a number that grows with each new owner; marks of a former owner are ignored.
        valid_until: the `time.monotonic()` instant at which to stop: `SAFETY_SECONDS` before another may take over.
    """

    partition: int
    fence: int
    valid_until: float


@dataclass(frozen=True, slots=True)
class AcquiredLeases:
    """The leases of a replica after their renewal.

    Attributes:
        leases: all leases of the replica, also those that it has to give back.
        share: how many of them it may keep; it gives back the others by `release_leases`.
    """

    leases: Sequence[Lease]
    share: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The number of rows in some partitions, and the age of the oldest one.

    Attributes:
        waiting: the number of rows that have not been published, also of those whose time has not come; of these
            PostgreSQL counts 10,000 at most.
        parked: the number of rows that can't be published.
        lag_seconds: for how long the oldest row could have been published; 0 if no row waits.
    """

    waiting: int
    parked: int
    lag_seconds: float


class Outbox(Protocol):
    """An outbox as the relay sees it. Nothing in the database stays locked between two calls."""

    async def renew_leases(self, owner: str) -> AcquiredLeases:
        """Send a heartbeat, renew the leases of this replica, and take free partitions up to its share.

        Args:
            owner: the replica.
        """
        ...

    async def release_leases(self, owner: str, partitions: Collection[int] | None = None) -> None:
        """Give partitions back, so that another replica needn't wait until the leases run out.

        Args:
            owner: the replica.
            partitions: the partitions; None for all of them, when the replica ends: it no longer counts as alive.
        """
        ...

    async def waiting(
        self, partitions: Collection[int], *, without: Collection[str], limit: int
    ) -> Sequence[WaitingRow]:
        """Return the oldest rows of these partitions whose time has come, by sequence.

        Of each ordering key the first rows are returned, with none left out between them. A row with a `not_before` is
        in no order with the others of its key: it comes when its time has come.

        Args:
            partitions: the partitions to look into.
            without: ordering keys to leave out.
            limit: the largest number of rows.
        """
        ...

    async def mark(
        self, leases: Sequence[Lease], *, published: Sequence[WaitingRow], parked: Sequence[ParkedRow]
    ) -> Collection[int]:
        """Record what became of rows.

        Args:
            leases: the leases of all partitions of these rows.
            published: rows that the broker has confirmed.
            parked: rows that can't be published.

        Returns:
            The partitions that another replica has by now; nothing is recorded of their rows.
        """
        ...

    async def backlog(self, partitions: Collection[int]) -> Backlog:
        """Return the backlog of these partitions."""
        ...

    async def changed(self, *, timeout_seconds: float) -> None:
        """Wait until rows may have been added, at most for that time."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxEntry:
    """A row of the outbox, for people to look at.

    Attributes:
        sequence: the row's number; events with one key are published in the order of these.
        event_id: the event's identity.
        event_type: the event's name, such as `user.created`.
        key: the key by which events are in order; None for an event that is in order with no other.
        queue: the queue of a command; None for an event.
        request_id: the request that caused the event.
        created_at: when the row was stored.
        not_before: when the event may be published; None for at once.
        parked_at: when the row was parked because it can't be published; None for a row that waits.
        reason: why it can't be published; None for a row that waits.
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
    """An outbox as people see it: to look at its rows, and to have parked ones tried again."""

    async def entries(
        self, *, parked: bool, event_type: str | None = None, event_ids: Collection[UUID] = (), limit: int
    ) -> Sequence[OutboxEntry]:
        """Return parked rows, or waiting ones, by sequence.

        Args:
            parked: whether to return parked rows instead of waiting ones.
            event_type: the type of the events to return; None for all types.
            event_ids: the ids of the events to return; empty for all.
            limit: the largest number of rows.
        """
        ...

    async def retry(self, *, event_type: str | None = None, event_ids: Collection[UUID] = ()) -> int:
        """Let parked rows wait again, in their old order, and return their number; filters are those of `entries`."""
        ...
