"""Spans and metrics of what is published, by the names of OpenTelemetry's conventions.

https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

from opentelemetry.util.types import AttributeValue
from prometheus_client import Counter, Histogram

from hybridkit.errors import HybridkitError, UnroutableError
from hybridkit.observability import is_tracing, metrics, span

__all__ = ["Route", "batch_span", "count_failure", "count_success", "publish_span"]

EVENT_TYPES: Final = 1024
"""For so many types a metric's labels are looked up once."""

_NO_SPAN: Final[AbstractContextManager[object]] = nullcontext()


class Route(NamedTuple):
    """Where a message goes.

    Attributes:
        exchange: "" for the default exchange.
        routing_key: of the message.
        queue: the only queue that is to get it, also when it gets there through the delay levels.
    """

    exchange: str
    routing_key: str
    queue: str | None = None

    @property
    def destination(self) -> str:
        """A name of low variety: the routing key of a delay has the delay in it."""
        return self.queue or f"{self.exchange}:{self.routing_key}"


def publish_span(route: Route, body: bytes, event_id: UUID) -> AbstractContextManager[object]:
    """The producer's span around one publish."""
    if not is_tracing():
        return _NO_SPAN
    attributes: dict[str, AttributeValue] = {
        "messaging.rabbitmq.destination.routing_key": route.routing_key,
        "messaging.message.id": str(event_id),
        "messaging.message.body.size": len(body),
    }
    return _producer(route.destination, attributes)


def batch_span(exchange: str, *, count: int) -> AbstractContextManager[object]:
    """The producer's span around many publishes."""
    return _producer(exchange, {"messaging.batch.message_count": count}) if is_tracing() else _NO_SPAN


def count_success(message_type: str, *, routed: bool, seconds: float) -> None:
    """Count a message that the broker has taken.

    Args:
        message_type: of the event or command.
        routed: whether a queue wanted it.
        seconds: from the publish to the broker's answer.
    """
    confirmed, unrouted, duration = _meters(message_type)
    (confirmed if routed else unrouted).inc()
    duration.observe(seconds)


def count_failure(message_type: str, error: HybridkitError) -> None:
    """Count a message that nobody has, or of which that isn't known."""
    outcome = "unrouted" if isinstance(error, UnroutableError) else error.code
    metrics.events_published.labels(message_type, outcome).inc()


@lru_cache(EVENT_TYPES)
def _meters(message_type: str) -> tuple[Counter, Counter, Histogram]:
    return (
        metrics.events_published.labels(message_type, "confirmed"),
        metrics.events_published.labels(message_type, "unrouted"),
        metrics.event_publish_duration.labels(message_type),
    )


def _producer(destination: str, attributes: dict[str, AttributeValue]) -> AbstractContextManager[object]:
    return span(
        f"publish {destination}",
        kind="producer",
        attributes={
            "messaging.system": "rabbitmq",
            "messaging.operation.type": "send",
            "messaging.operation.name": "publish",
            "messaging.destination.name": destination,
            **attributes,
        },
    )
