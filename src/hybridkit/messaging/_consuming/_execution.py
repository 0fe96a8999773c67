"""The execution of one delivery by its handler: its parts, its context, its span and its metrics."""

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from hybridkit.context import RequestContext
from hybridkit.errors import InvalidRequestError
from hybridkit.events import EventEnvelope
from hybridkit.idempotency import claim_key
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.messaging._consuming._handlers import Handler
from hybridkit.messaging._consuming._verdict import Settled
from hybridkit.messaging._publishing._telemetry import process_span
from hybridkit.observability import get_logger, is_tracing, metrics

attempt_number: Final[ContextVar[int]] = ContextVar("hybridkit_attempt_number", default=1)
"""The number of the handler's run, from 1: the saga of a handler that fails for the last time says so in its row."""
_NO_SPAN: Final[AbstractContextManager[object]] = nullcontext()

_log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class Execution:
    """A delivery that could be read, and the handler for it.

    Attributes:
        delivery: the message.
        envelope: its content.
        handler: for its type.
        key: the claim's key without the generation; steps and ids derive from it, so a redriven event writes the same.
        context: of the event.
        meters: of its type.
        failures: the number of runs that failed so far.
    """

    delivery: Delivery
    envelope: EventEnvelope[Any]
    handler: Handler
    key: str
    context: RequestContext
    meters: "Meters"
    failures: int

    @property
    def claim(self) -> str:
        """The guard's key: it has the generation, so a redriven event runs again."""
        return f"{self.key}:{self.delivery.generation}"


class Meters:
    """The metrics of one type of event, looked up once."""

    __slots__ = ("done", "duration")

    def __init__(self, queue: str, event_type: str) -> None:
        self.done = metrics.events_consumed.labels(queue, event_type, Settled.DONE.value)
        self.duration = metrics.handler_duration.labels(queue, event_type)


@lru_cache(1024)
def claim_prefix(queue: str, service: str) -> str:
    """Return the beginning of all claims for events of a service; the event's id follows, which needs no encoding."""
    return claim_key(queue, service, "0")[:-1]


def context_of(envelope: EventEnvelope[Any]) -> RequestContext:
    """Return the context in which an event was published.

    A request id that is more than one line could forge a line of the log; the event's own id replaces it.
    """
    try:
        return RequestContext(
            request_id=envelope.request_id, user_id=envelope.user_id, causation_id=envelope.event_id
        )
    except InvalidRequestError:  # the request id: the envelope has checked the user's
        request_id = str(envelope.event_id)
        _log.info("request id replaced, as it is no text of one line", event_id=request_id)
        return RequestContext(request_id=request_id, user_id=envelope.user_id, causation_id=envelope.event_id)


def consumer_span(delivery: Delivery, event_id: str | None = None) -> AbstractContextManager[object]:
    """Return the consumer's span in the producer's trace; where nothing records, the headers stay undecoded.

    Args:
        delivery: the message.
        event_id: None for a message that can't be read.
    """
    if not is_tracing():
        return _NO_SPAN
    return process_span(
        delivery.destination,
        routing_key=delivery.routing_key,
        event_id=event_id,
        body_bytes=len(delivery.body),
        headers=delivery.headers,
    )
