"""Publishing: confirmed and routed, or an error that says what is known."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import batched
from types import TracebackType
from typing import Final, Self
from uuid import UUID

from hybridkit.codec import MAX_MESSAGE_BYTES, check_size
from hybridkit.context import bind, current
from hybridkit.envelope import EventEnvelope
from hybridkit.errors import DeclarationError, HybridkitError, MalformedPayloadError, UnroutableError
from hybridkit.events import Command, Event, Message
from hybridkit.messaging._connection import BrokerConnection
from hybridkit.messaging._headers import EVENT_ID
from hybridkit.messaging._topology import EVENT_EXCHANGE, delay_route
from hybridkit.messaging._writer import Outgoing, Writer
from hybridkit.observability import metrics, span, trace_headers

__all__ = ["Receipt", "RobustPublisher"]

BATCH: Final = 500
MAX_NAME_BYTES: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The broker has stored the message.

    Attributes:
        event_id: the identity of what was published.
        routed: whether a queue took it; False only with `allow_unrouted=True`.
    """

    event_id: UUID
    routed: bool = True


class RobustPublisher:
    """Publishes events and sends commands, over a connection of its own.

    Every call ends with the broker's answer or a typed error, at the latest at the context's deadline, or after 10 s
    without one.

    Args:
        url: `amqp://user:password@host:port/vhost`, or `amqps://`.
        service: the name that envelopes carry as their `service`; up to 255 bytes.

    Raises:
        DeclarationError: no such name.
    """

    def __init__(self, url: str, *, service: str) -> None:
        if not 1 <= len(service.encode()) <= MAX_NAME_BYTES:
            raise DeclarationError(
                f"a service's name has 1 to {MAX_NAME_BYTES} bytes, not {len(service.encode())}"
            )
        self.service = service
        self._connection = BrokerConnection(url, name=f"{service} publisher")
        self._writer = Writer(self._connection, name=f"{service} publisher")

    def __repr__(self) -> str:
        return f"RobustPublisher({self._connection.address!r}, service={self.service!r}, is_ready={self.is_ready})"

    async def __aenter__(self) -> Self:
        """Connect and declare the exchanges, trying again until the context's deadline, or for 30 s without one.

        Raises:
            NotConnectedError: the broker did not answer in that time.
            AccessDeniedError: it refuses the user or the password, or the user may not declare the exchanges.
            TopologyError: an exchange exists with other properties.
        """
        await self._connection.__aenter__()
        try:
            await self._writer.start()
        except BaseException:
            await self._connection.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait up to 5 s for the broker's answers to what was published, then close."""
        try:
            await self._writer.stop()
        finally:
            await self._connection.__aexit__(kind, error, trace)

    @property
    def is_ready(self) -> bool:
        """Whether an event published now would be sent: connected, and not blocked by a broker alarm."""
        return self._writer.is_ready

    async def publish(self, event: Event, *, allow_unrouted: bool = False) -> Receipt:
        """Publish to everybody who wants events of this type.

        Publishing the same object again is the same event: after `OutcomeUnknownError` just do it.

        Args:
            event: what happened.
            allow_unrouted: it is no error that no queue wants it; the receipt says so.

        Raises:
            UnroutableError: no queue wants it.
            NackedError: the broker gave it back.
            BlockedError: the broker has an alarm; nothing was sent.
            NotConnectedError: no connection; nothing was sent.
            OutcomeUnknownError: it was sent, and no answer came.
            PayloadTooLargeError: over 16 MiB; nothing was sent.
        """
        return await self._publish(event, EVENT_EXCHANGE, event.message_type, allow_unrouted=allow_unrouted)

    async def publish_many(
        self, events: Iterable[Event], *, allow_unrouted: bool = False
    ) -> list[Receipt | HybridkitError]:
        """As `publish`, 500 at a time: a receipt or an error for each event, in their order.

        The time limit is each event's own, and all of theirs where the context has a deadline.
        """
        answers: list[Receipt | HybridkitError] = []
        for batch in batched(events, BATCH):
            answers += await asyncio.gather(
                *(self._answer(event, allow_unrouted=allow_unrouted) for event in batch)
            )
        return answers

    async def send(self, command: Command, *, delay_seconds: float = 0.0) -> Receipt:
        """Give work to the command's queue; with the errors of `publish`.

        Args:
            command: the work.
            delay_seconds: the earliest time from now at which it is delivered, in whole seconds, at most 36 h. Then the
                receipt says that the delay has the command; a queue that is missing at its end leaves it in
                `hk.unrouted`.
        """
        exchange, routing_key = (
            delay_route(delay_seconds, command.queue) if delay_seconds else ("", command.queue)
        )
        return await self._publish(command, exchange, routing_key, allow_unrouted=False)

    async def publish_encoded(
        self,
        body: bytes,
        *,
        event_type: str,
        event_id: UUID,
        queue: str | None = None,
        allow_unrouted: bool = False,
    ) -> Receipt:
        """Publish an envelope that is bytes already, as an outbox relay has it; with the errors of `publish`.

        The headers come from the bound context: bind one with the row's request id and user id.

        Args:
            body: the whole envelope, UTF-8 JSON.
            event_type: its `event_type`; the routing key.
            event_id: its `event_id`.
            queue: send it to this queue instead, as a command.
            allow_unrouted: it is no error that no queue wants it.
        """
        return await self._write(
            body,
            exchange=EVENT_EXCHANGE if queue is None else "",
            routing_key=event_type if queue is None else queue,
            message_type=event_type,
            event_id=event_id,
            allow_unrouted=allow_unrouted,
        )

    async def forward(self, message: Outgoing, *, allow_unrouted: bool = False) -> bool:
        """Publish a message as it is; whether a queue took it. The lowest level, for what this package moves itself."""
        routed = await self._writer.write(message)
        if not routed and not allow_unrouted:
            raise UnroutableError(
                f"no queue wants {message.message_type or 'the message'}, published to"
                f" {message.exchange or 'the default exchange'!r} with the key {message.routing_key!r};"
                " start a consumer for it once, or allow_unrouted=True",
                exchange=message.exchange,
                routing_key=message.routing_key,
            )
        return routed

    def renew_topology(self, *, reason: str) -> None:
        """Declare the shared exchanges and queues again, on a new channel."""
        self._writer.renew_topology(reason=reason)

    async def _publish(
        self, message: Message, exchange: str, routing_key: str, *, allow_unrouted: bool
    ) -> Receipt:
        with bind(current()):  # one request id for body and headers, also where no context was bound
            return await self._write(
                EventEnvelope.wrap(message, service=self.service).encode(),
                exchange=exchange,
                routing_key=routing_key,
                message_type=message.message_type,
                event_id=message.event_id,
                allow_unrouted=allow_unrouted,
            )

    async def _write(
        self,
        body: bytes,
        *,
        exchange: str,
        routing_key: str,
        message_type: str,
        event_id: UUID,
        allow_unrouted: bool,
    ) -> Receipt:
        check_size(body, limit_bytes=MAX_MESSAGE_BYTES)
        if max(len(routing_key.encode()), len(message_type.encode())) > MAX_NAME_BYTES:
            raise MalformedPayloadError(f"an event type or queue has at most {MAX_NAME_BYTES} bytes in AMQP")
        began = time.perf_counter()
        attributes = {"messaging.system": "rabbitmq", "messaging.message.id": str(event_id)}
        with span(f"{message_type} publish", kind="producer", attributes=attributes):
            message = Outgoing(
                exchange=exchange,
                routing_key=routing_key,
                body=body,
                headers={EVENT_ID: str(event_id), **current().to_amqp_headers(), **trace_headers()},
                message_type=message_type,
                service=self.service,
            )
            try:
                routed = await self.forward(message, allow_unrouted=allow_unrouted)
            except HybridkitError as error:
                outcome = "unrouted" if isinstance(error, UnroutableError) else error.code
                metrics.events_published.labels(message_type, outcome).inc()
                raise
        metrics.events_published.labels(message_type, "confirmed" if routed else "unrouted").inc()
        metrics.event_publish_duration.labels(message_type).observe(time.perf_counter() - began)
        return Receipt(event_id=event_id, routed=routed)

    async def _answer(self, event: Event, *, allow_unrouted: bool) -> Receipt | HybridkitError:
        try:
            return await self.publish(event, allow_unrouted=allow_unrouted)
        except HybridkitError as error:
            return error
