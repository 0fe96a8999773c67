"""The seam between the relay and a database: events that wait, and the lease on publishing them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

__all__ = ["Backlog", "Lease", "Outbox", "Parked", "Waiting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A row of the outbox that has not been published.

    Attributes:
        sequence: its place; rows of one lane are published in this order.
        lane: what keeps rows in order: the event's key, or its id where it has none.
        event_id: the event's identity.
        event_type: the routing key.
        queue: for a command, where it goes; None for an event.
        request_id: of the request that caused it.
        user_id: on whose behalf.
        body: the envelope, encoded.
    """

    sequence: int
    lane: str
    event_id: UUID
    event_type: str
    queue: str | None
    request_id: str
    user_id: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Parked:
    """A row that can't be published.

    Attributes:
        sequence: its place.
        reason: why, for whoever looks at it.
    """

    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to publish, for a while.

    Attributes:
        fence: grows with each new owner; a former owner's marks are ignored.
        valid_until: the `time.monotonic()` instant from which another replica may take over.
    """

    fence: int
    valid_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What is in an outbox.

    Attributes:
        waiting: rows that have not been published.
        parked: rows that can't be.
        lag_seconds: the age of the oldest waiting row; 0 where none waits.
    """

    waiting: int
    parked: int
    lag_seconds: float


class Outbox(Protocol):
    """What a relay needs of a database. Nothing in it stays locked between two calls."""

    async def acquire(self, owner: str) -> Lease | None:
        """Take the lease, or renew it; None while somebody else has it."""
        ...

    async def release(self, owner: str) -> None:
        """Give the lease back, so that another replica needn't wait until it runs out."""
        ...

    async def waiting(self, *, without: Collection[str], limit: int) -> Sequence[Waiting]:
        """The oldest waiting rows, by sequence, without those of some lanes."""
        ...

    async def backlog(self) -> Backlog:
        """How much there is."""
        ...

    async def changed(self, *, timeout_seconds: float) -> None:
        """Return when this process has added rows, and in any case after that time."""
        ...

    async def mark(self, lease: Lease, *, published: Sequence[int], parked: Sequence[Parked]) -> bool:
        """Record what became of rows; False, with nothing recorded, for a lease that somebody else has by now."""
        ...
