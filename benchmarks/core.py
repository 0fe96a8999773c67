"""What the core costs: importing it, and turning events into bytes and back.

The peer of an envelope is a plain pydantic model with the same fields, read and written by pydantic alone: no registry,
no versions, no checks.
"""

import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

from pydantic import BaseModel

from benchmarks._report import Result, cpu_microseconds, main
from hybridkit.events import Event, EventEnvelope, decode_envelope
from hybridkit.ids import new_id

IMPORT_LIMIT_MILLISECONDS = 25.0
IMPORT_RUNS = 21


class UserCreated(Event, type="user.created", version=1, key="user_id"):
    """The event of the measurement."""

    user_id: UUID
    email: str
    registration_source: str


class PlainData(BaseModel):
    """The same data without being an event."""

    user_id: UUID
    email: str
    registration_source: str


class PlainEnvelope(BaseModel):
    """The same members, read and written by pydantic alone."""

    event_type: str
    event_id: UUID
    timestamp: datetime
    service: str
    request_id: str
    user_id: str | None
    data: PlainData
    version: int = 1
    causation_id: UUID | None = None


def measure() -> Iterator[Result]:
    """All results, one after the other."""
    yield import_time()
    yield from envelopes()


def import_time() -> Result:
    """`import hybridkit` in a new interpreter over the bare interpreter, user and system CPU time."""
    bare: list[float] = []
    ours: list[float] = []
    for _ in range(IMPORT_RUNS):
        bare.append(_child_milliseconds("pass"))
        ours.append(_child_milliseconds("import hybridkit"))
    added = max(statistics.median(ours) - statistics.median(bare), 0.001)
    return Result(
        name="import hybridkit",
        ours=added,
        peer=IMPORT_LIMIT_MILLISECONDS,
        peer_name="limit over bare python",
        unit="ms",
        goal=1.0,
    )


def _child_milliseconds(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-I", "-c", code], check=True)  # noqa: S603 - our own interpreter
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) * 1000


def envelopes() -> Iterator[Result]:
    """One event of 300 bytes, written and read, against `model_dump_json` and `model_validate_json`."""
    event = UserCreated(user_id=new_id(), email="user@example.com", registration_source="web")
    ours = EventEnvelope.wrap(event, service="api_service")
    plain = PlainEnvelope(
        event_type="user.created",
        event_id=new_id(),
        timestamp=datetime.now(UTC),
        service="api_service",
        request_id=ours.request_id,
        user_id=None,
        data=PlainData(user_id=new_id(), email="user@example.com", registration_source="web"),
    )
    body = ours.encode()
    encode, plain_encode, decode, plain_decode = cpu_microseconds(
        ours.encode,
        lambda: plain.model_dump_json().encode(),
        lambda: decode_envelope(body),
        lambda: PlainEnvelope.model_validate_json(body),
    )
    goal = 1 / 1.5
    yield Result(
        name="envelope encode",
        ours=encode,
        peer=plain_encode,
        peer_name="model_dump_json",
        unit="us",
        goal=goal,
    )
    yield Result(
        name="envelope decode",
        ours=decode,
        peer=plain_decode,
        peer_name="model_validate_json",
        unit="us",
        goal=goal,
    )


if __name__ == "__main__":
    main(__doc__ or "", measure)
