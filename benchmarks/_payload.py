"""The event that every side of the messaging benchmarks publishes and consumes: about 512 bytes with its envelope.

Ours is an `Event`; the peers get a pydantic model with the same members, as a service without hybridkit would write it.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from pydantic import BaseModel

from hybridkit.events import Event, EventEnvelope
from hybridkit.ids import new_id

EXCHANGE: Final = "hk.events"
EVENT_TYPE: Final = "bench.user_created"
SERVICE: Final = "bench_service"
SINK: Final = "bench_sink"
"""The quorum queue that takes what is published."""
CONSUMER: Final = "bench_consumer"
"""The queue of our consumer."""
PEER_QUEUE: Final = "bench_peer"
"""The quorum queue of the peer's consumer."""
BIOGRAPHY: Final = "born where the river meets the sea, has since lived inland. " * 3


class UserCreated(Event, type=EVENT_TYPE, key="user_id"):
    """What is published."""

    user_id: UUID
    email: str
    registration_source: str
    biography: str


class PlainData(BaseModel):
    """The same data without being an event."""

    user_id: UUID
    email: str
    registration_source: str
    biography: str


class PlainEnvelope(BaseModel):
    """The same members, written and read by pydantic alone."""

    event_type: str
    event_id: UUID
    timestamp: datetime
    service: str
    request_id: str
    user_id: str | None
    data: PlainData


type PlainEvent = tuple[UUID, datetime, PlainData]
"""What an `Event` object has before it is published: its identity and its data."""


def make_event() -> UserCreated:
    """One event with its identity, which is made before any clock runs."""
    event = UserCreated(
        user_id=new_id(), email="user@example.com", registration_source="web", biography=BIOGRAPHY
    )
    event.identify_as(new_id(), datetime.now(UTC))
    return event


def make_plain_event() -> PlainEvent:
    """Make the same event for a peer."""
    data = PlainData(
        user_id=new_id(), email="user@example.com", registration_source="web", biography=BIOGRAPHY
    )
    return new_id(), datetime.now(UTC), data


def wrap_plain(event: PlainEvent, request_id: str) -> PlainEnvelope:
    """Make the peer's envelope."""
    event_id, timestamp, data = event
    return PlainEnvelope(
        event_type=EVENT_TYPE,
        event_id=event_id,
        timestamp=timestamp,
        service=SERVICE,
        request_id=request_id,
        user_id=None,
        data=data,
    )


def plain_headers(event: PlainEvent, request_id: str) -> dict[str, str]:
    """Return the headers that our messages have as well."""
    return {"hk_event_id": str(event[0]), "x-request-id": request_id}


def make_bodies(count: int) -> Sequence[bytes]:
    """Encode envelopes for a consumer to read."""
    return [EventEnvelope.wrap(make_event(), service=SERVICE).encode() for _ in range(count)]


class Stopwatch:
    """CPU and wall time of this process, per message."""

    def __init__(self) -> None:
        self._cpu = time.process_time()
        self._wall = time.perf_counter()

    def read(self, count: int) -> dict[str, float]:
        """Microseconds per message since it was made, for that many messages."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return {"cpu": cpu / count * 1e6, "wall": wall / count * 1e6}
