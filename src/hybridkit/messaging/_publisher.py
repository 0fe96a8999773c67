"""Publishing: confirmed and routed, or an error that says what is known."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import batched
from types import TracebackType
from typing import Final, NamedTuple, Self
from uuid import UUID

from hybridkit.codec import MAX_MESSAGE_BYTES, check_size
from hybridkit.context import RequestContext, bound, current
from hybridkit.envelope import encode_message
from hybridkit.errors import BlockedError, DeclarationError, HybridkitError, PayloadError, UnroutableError
from hybridkit.events import Command, Event, Message
from hybridkit.messaging._connection import BrokerConnection
from hybridkit.messaging._headers import EVENT_ID
from hybridkit.messaging._telemetry import (
    Route,
    batch_span,
    count_failure,
    count_success,
    publish_span,
)
from hybridkit.messaging._topology import EVENT_EXCHANGE, delay_route
from hybridkit.messaging._writer import Outgoing, Writer
from hybridkit.observability import get_logger, trace_headers

__all__ = ["Receipt", "RobustPublisher"]

BATCH: Final = 500
MAX_NAME_BYTES: Final = 255
MAX_WAITING: Final = 10_000
"""`publish_nowait` drops what comes while so many messages wait to be sent."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The broker has stored the message.

    Attributes:
        event_id: the identity of what was published.
        routed: whether a queue took it; False only with `allow_unrouted=True`.
    """

    event_id: UUID
    routed: bool = True


class _Begun(NamedTuple):
    """A message that was handed to the writer."""

    message: Outgoing
    event_id: UUID
    began: float
    answer: asyncio.Future[bool]


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
        return await self._publish(event, _to_subscribers(event), allow_unrouted=allow_unrouted)

    async def publish_many(
        self, events: Iterable[Event], *, allow_unrouted: bool = False
    ) -> list[Receipt | HybridkitError]:
        """As `publish`, 500 at a time: a receipt or an error for each event, in their order.

        The time limit is each event's own, and all of theirs where the context has a deadline. A trace has one span for
        each 500.
        """
        answers: list[Receipt | HybridkitError] = []
        context = bound() or RequestContext()
        for batch in batched(events, BATCH):
            with batch_span(EVENT_EXCHANGE, count=len(batch)):
                begun = [self._begin_or_error(event, context) for event in batch]
                answers += [
                    await self._receipt_or_error(each, allow_unrouted=allow_unrouted) for each in begun
                ]
        return answers

    def publish_nowait(self, event: Event) -> None:
        """Publish without waiting for the answer: for what may be lost, such as a hint to refresh a cache.

        What no queue takes is counted by its reason (`hybridkit_events_published_total`) and logged. An event that
        comes while 10,000 messages wait for the broker is dropped as well.

        Raises:
            MalformedPayloadError: it has no JSON form.
            PayloadTooLargeError: over 16 MiB.
        """
        context = bound() or RequestContext()
        try:
            if self._writer.waiting >= MAX_WAITING:
                raise BlockedError(
                    f"{MAX_WAITING} messages wait for the broker; {event.message_type} was not sent"
                )
            begun = self._begin(event, context)
        except PayloadError:
            raise
        except HybridkitError as error:
            _drop(event.message_type, event.event_id, error)
        else:
            begun.answer.add_done_callback(partial(_look_at, begun))

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
        return await self._publish(command, Route(exchange, routing_key, command.queue))

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
        route = Route(EVENT_EXCHANGE, event_type) if queue is None else Route("", queue, queue)
        with publish_span(route, body, event_id):
            begun = self._submit(route, body, event_type, event_id, bound() or RequestContext())
            return await self._receipt(begun, allow_unrouted=allow_unrouted)

    async def forward(self, message: Outgoing, *, allow_unrouted: bool = False) -> bool:
        """Publish a message as it is; whether a queue took it. The lowest level, for what this package moves itself."""
        routed = await self._writer.submit(message, deadline=current().deadline)
        if not routed and not allow_unrouted:
            raise _unroutable(message)
        return routed

    def renew_topology(self, *, reason: str) -> None:
        """Declare the shared exchanges and queues again, on a new channel."""
        self._writer.renew_topology(reason=reason)

    async def _publish(self, message: Message, route: Route, *, allow_unrouted: bool = False) -> Receipt:
        context = bound() or RequestContext()
        body = encode_message(message, service=self.service, context=context)
        with publish_span(route, body, message.event_id):
            begun = self._submit(route, body, message.message_type, message.event_id, context)
            return await self._receipt(begun, allow_unrouted=allow_unrouted)

    def _begin(self, event: Event, context: RequestContext) -> _Begun:
        body = encode_message(event, service=self.service, context=context)
        return self._submit(_to_subscribers(event), body, event.message_type, event.event_id, context)

    def _submit(
        self, route: Route, body: bytes, message_type: str, event_id: UUID, context: RequestContext
    ) -> _Begun:
        """Hand it to the writer."""
        check_size(body, limit_bytes=MAX_MESSAGE_BYTES)
        headers = {EVENT_ID: str(event_id), **context.to_amqp_headers(), **trace_headers()}
        message = Outgoing(route.exchange, route.routing_key, body, headers, message_type, self.service)
        began = time.perf_counter()
        try:
            answer = self._writer.submit(message, deadline=context.deadline)
        except HybridkitError as error:
            count_failure(message_type, error)
            raise
        return _Begun(message, event_id, began, answer)

    async def _receipt(self, begun: _Begun, *, allow_unrouted: bool) -> Receipt:
        """The broker's answer to it."""
        message_type = begun.message.message_type or ""
        try:
            routed = await begun.answer
            if not routed and not allow_unrouted:
                raise _unroutable(begun.message)
        except HybridkitError as error:
            count_failure(message_type, error)
            raise
        count_success(message_type, routed=routed, seconds=time.perf_counter() - begun.began)
        return Receipt(event_id=begun.event_id, routed=routed)

    def _begin_or_error(self, event: Event, context: RequestContext) -> _Begun | HybridkitError:
        try:
            return self._begin(event, context)
        except HybridkitError as error:
            return error

    async def _receipt_or_error(
        self, begun: _Begun | HybridkitError, *, allow_unrouted: bool
    ) -> Receipt | HybridkitError:
        if isinstance(begun, HybridkitError):
            return begun
        try:
            return await self._receipt(begun, allow_unrouted=allow_unrouted)
        except HybridkitError as error:
            return error


def _to_subscribers(event: Event) -> Route:
    return Route(EVENT_EXCHANGE, event.message_type)


def _unroutable(message: Outgoing) -> UnroutableError:
    return UnroutableError(
        f"no queue wants {message.message_type or 'the message'}, published to"
        f" {message.exchange or 'the default exchange'!r} with the key {message.routing_key!r};"
        " start a consumer for it once, or allow_unrouted=True",
        exchange=message.exchange,
        routing_key=message.routing_key,
    )


def _look_at(begun: _Begun, answer: asyncio.Future[bool]) -> None:
    """Count and log how a message ended for which nobody waits."""
    message_type = begun.message.message_type or ""
    error = answer.exception() or (None if answer.result() else _unroutable(begun.message))
    if error is None:
        count_success(message_type, routed=True, seconds=time.perf_counter() - begun.began)
    elif isinstance(error, HybridkitError):
        _drop(message_type, begun.event_id, error)


def _drop(message_type: str, event_id: UUID, error: HybridkitError) -> None:
    count_failure(message_type, error)
    _log.warning("event dropped", event_type=message_type, event_id=str(event_id), error=str(error))
