"""The spans of messages, all names of OpenTelemetry's conventions in one place, and the metrics of publishing.

The conventions for messages are still in development, so that their names change.

https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Final
from uuid import UUID

from opentelemetry.util.types import AttributeValue
from prometheus_client import Counter, Histogram

from hybridkit.errors import HybridkitError, UnroutableError
from hybridkit.observability import is_tracing, metrics, span

LABELS: Final = 4096
"""The most event types and outcomes whose metrics are cached."""

_NO_SPAN: Final[AbstractContextManager[object]] = nullcontext()


def publish_span(
    destination: str, *, routing_key: str, event_id: UUID, body_bytes: int
) -> AbstractContextManager[object]:
    """Return the producer's span around one publish; nothing where no tracing is set up.

    Args:
        destination: the span's name, of low cardinality: without the delay that a routing key may contain.
        routing_key: of the message.
        event_id: the id of the event or command.
        body_bytes: the size of the body.
    """
    if not is_tracing():
        return _NO_SPAN
    return _producer(destination, _of_message(routing_key, str(event_id), body_bytes))


def batch_span(destination: str, *, messages: int) -> AbstractContextManager[object]:
    """Return the producer's span around many publishes."""
    return _producer(destination, {"messaging.batch.message_count": messages}) if is_tracing() else _NO_SPAN


def process_span(
    destination: str,
    *,
    routing_key: str,
    event_id: str | None,
    body_bytes: int,
    headers: Mapping[str, object],
) -> AbstractContextManager[object]:
    """Return the consumer's span around one message, in the producer's trace and linked to the producer's span.

    Args:
        destination: the span's name, of low cardinality.
        routing_key: of the message.
        event_id: the id of the event or command; None for a message that can't be read.
        body_bytes: the size of the body.
        headers: the message's headers, which may have the producer's trace.
    """
    trace = {name: value for name, value in headers.items() if isinstance(value, str)}
    return span(
        f"process {destination}",
        kind="consumer",
        parent=trace,  # never the current span: the task was started in whatever span the consumer was started in
        linked=trace,
        attributes={
            "messaging.system": "rabbitmq",
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": destination,
            **_of_message(routing_key, event_id, body_bytes),
        },
    )


def _of_message(routing_key: str, event_id: str | None, body_bytes: int) -> dict[str, AttributeValue]:
    return {
        "messaging.rabbitmq.destination.routing_key": routing_key,
        "messaging.message.body.size": body_bytes,
        **({"messaging.message.id": event_id} if event_id else {}),
    }


def outcome_of(answer: bool | HybridkitError) -> str:  # noqa: FBT001 - the broker's answer is that: routed or not
    """Return the metrics' label for an outcome: `confirmed`, `unrouted`, or an error's code."""
    if isinstance(answer, HybridkitError):
        return "unrouted" if isinstance(answer, UnroutableError) else answer.code
    return "confirmed" if answer else "unrouted"


def count(message_type: str, outcome: str, *, messages: int = 1) -> None:
    """Count the outcome of a publish."""
    _counter(message_type, outcome).inc(messages)


def observe_seconds(message_type: str, seconds: float) -> None:
    """Record the time between a publish and its confirm."""
    _duration(message_type).observe(seconds)


# Cached, as `labels` takes a lock and builds a tuple of texts each time.
@lru_cache(LABELS)
def _counter(message_type: str, outcome: str) -> Counter:
    return metrics.events_published.labels(message_type, outcome)


@lru_cache(LABELS)
def _duration(message_type: str) -> Histogram:
    return metrics.event_publish_duration.labels(message_type)


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
