"""What a run of a handler needs to know of its message, and the ways in which it can end for now."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from hybridkit.codec import canonical_json
from hybridkit.context import RequestContext, is_context_id
from hybridkit.events import EventEnvelope
from hybridkit.idempotency import Outcome, claim_key
from hybridkit.messaging._consuming._delivery import Delivery, Done, Verdict
from hybridkit.messaging._consuming._handlers import Handler
from hybridkit.observability import get_logger, is_tracing, metrics, span

__all__ = [
    "Again",
    "Hold",
    "Meters",
    "Work",
    "claim_prefix",
    "consumer_span",
    "context_of",
    "outcome_of",
    "payload_of",
]

_NO_SPAN: Final[AbstractContextManager[object]] = nullcontext()

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Again:
    """Once more after that time, for an error or for another holder; `failures` so far."""

    seconds: float
    error: BaseException | None
    failures: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Once more when the dependency is back; nothing has failed."""

    error: BaseException


@dataclass(slots=True, eq=False)
class Work:
    """A delivery that could be read and has a handler."""

    delivery: Delivery
    envelope: EventEnvelope[Any]
    handler: Handler
    key: str
    context: RequestContext
    meters: "Meters"
    failures: int

    @property
    def claim(self) -> str:
        """The guard's key: a redriven event runs again."""
        return f"{self.key}:{self.delivery.generation}"


class Meters:
    """The metrics of one type of event, looked up once."""

    __slots__ = ("done", "duration")

    def __init__(self, queue: str, event_type: str) -> None:
        self.done = metrics.events_consumed.labels(queue, event_type, "done")
        self.duration = metrics.handler_duration.labels(queue, event_type)


def consumer_span(delivery: Delivery, event_id: str | None = None) -> AbstractContextManager[object]:
    """The consumer's span, linked to the producer's; of the headers nothing is read where nothing records.

    Args:
        delivery: the message.
        event_id: None for one that can't be read.
    """
    if not is_tracing():
        return _NO_SPAN
    attributes: dict[str, str | int] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": delivery.destination,
        "messaging.rabbitmq.destination.routing_key": delivery.routing_key,
        "messaging.message.body.size": len(delivery.body),
        **({"messaging.message.id": event_id} if event_id else {}),
    }
    # A trace of its own: the task was started in whatever span the consumer was started in.
    return span(
        f"process {delivery.destination}",
        kind="consumer",
        parent={},
        linked=_texts(delivery.headers),
        attributes=attributes,
    )


@lru_cache(1024)
def claim_prefix(queue: str, service: str) -> str:
    """What all claims for events of that service begin with; the event's id follows, which needs no encoding."""
    return claim_key(queue, service, "0")[:-1]


def outcome_of(verdict: Verdict | Again | Hold) -> Outcome:
    """What the guard is told about a run."""
    match verdict:
        case Done("done"):
            return Outcome.COMPLETED
        case Done("dead_lettered"):
            return Outcome.FAILED
        case _:
            return Outcome.RELEASED


def context_of(envelope: EventEnvelope[Any]) -> RequestContext:
    """Who asked, as the envelope says; the event's own id stands in for a request id that could forge a line."""
    request_id = envelope.request_id
    if not is_context_id(request_id):
        request_id = str(envelope.event_id)
        _log.info("request id replaced, as it is no text of one line", event_id=request_id)
    return RequestContext(request_id=request_id, user_id=envelope.user_id)


def payload_of(delivery: Delivery) -> bytes:
    """What makes it the same event: as it was sent, because upcasters change with the next deployment."""
    wire = delivery.wire()
    # The canonical form that the guard would make of the list itself, without reading and writing it twice for that.
    return canonical_json([wire["event_type"], wire.get("version", 1), wire.get("data")])


def _texts(headers: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if isinstance(value, str)}
