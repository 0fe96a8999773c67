"""Publishing events and sending commands: confirmed and routed, or an error that says what is known."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from itertools import batched
from types import TracebackType
from typing import Final, NamedTuple, Self, cast
from uuid import UUID

from hybridkit.codec import MAX_MESSAGE_BYTES, check_readable, check_size
from hybridkit.context import RequestContext, bind, bound
from hybridkit.errors import (
    BlockedError,
    DeclarationError,
    HybridkitError,
    MalformedPayloadError,
    MisuseError,
)
from hybridkit.events import Command, Event, EventEnvelope, Message, encode_message
from hybridkit.events.cloudevents import to_binary
from hybridkit.ids import uuid_octets
from hybridkit.messaging._amqp._connection import BrokerConnection
from hybridkit.messaging._amqp._frames import FrameTemplate, encode_fields, encode_table, frame_template
from hybridkit.messaging._amqp._headers import EVENT_ID
from hybridkit.messaging._publishing._confirms import AwaitedPublish, Batch, BatchedPublish
from hybridkit.messaging._publishing._telemetry import (
    batch_span,
    count,
    observe_seconds,
    outcome_of,
    publish_span,
)
from hybridkit.messaging._publishing._writer import Writer, unroutable
from hybridkit.messaging._topology._declared import EVENT_EXCHANGE, delay_route
from hybridkit.observability import get_logger, trace_headers

BATCH: Final = 500
"""`publish_many` has up to two batches of this many events on their way."""
MAX_NAME_BYTES: Final = 255
MAX_WAITING: Final = 10_000
"""While this many messages wait to be written, `publish_nowait` drops what comes."""

_EVENT_ID_FIELD: Final = encode_fields({EVENT_ID: "-" * 36})[:-36]  # an id in text form follows

_log = get_logger(__name__)


class Receipt(NamedTuple):
    """The proof that the broker has stored a message.

    Attributes:
        event_id: the id of the event or command.
        routed: whether a queue took it; False only with `allow_unrouted=True`.
    """

    event_id: UUID
    routed: bool = True


class EncodedMessage(NamedTuple):
    """An event or command, ready for the writer.

    Attributes:
        template: exchange, routing key, type and publisher, encoded.
        destination: the same for people and spans, without the delay that a routing key may contain.
        body: the envelope.
        event_id: the id of the event or command.
        fields: the headers of a CloudEvent, encoded; empty for an envelope.
    """

    template: FrameTemplate
    destination: str
    body: bytes
    event_id: UUID
    fields: bytes = b""

    @property
    def message_type(self) -> str:
        """The type of the event or command."""
        return self.template.message_type or ""

    def span(self) -> AbstractContextManager[object]:
        """Return the producer's span around the publish of this message."""
        return publish_span(
            self.destination,
            routing_key=self.template.routing_key,
            event_id=self.event_id,
            body_bytes=len(self.body),
        )


class _SharedFields(NamedTuple):
    """The headers that messages have in common, encoded.

    Attributes:
        head: the table of an envelope's message up to its event id.
        fields: what follows.
    """

    head: bytes
    fields: bytes


type _Begun = tuple[Event, BatchedPublish | HybridkitError]
"""An event of a batch, and its publish, or the error for which there is none."""


class RobustPublisher:
    """Publishes events and sends commands, over a connection that nothing else uses.

    Every call ends with the broker's confirm or a typed error, at the latest at the context's deadline, or after 10 s
    without one.

    Args:
        url: as for `BrokerConnection`.
        service: the `service` of the envelopes; printable, 1 to 255 bytes.
        cloudevents: publish in the binary form of CloudEvents 1.0 instead of the envelope, for readers outside of the
            stack; `RobustConsumer` reads both. `publish_encoded` sends its bytes as they are.

    Raises:
        DeclarationError: the name is empty, too long, or not printable.
    """

    def __init__(self, url: str, *, service: str, cloudevents: bool = False) -> None:
        if not service.isprintable() or not 1 <= len(service.encode()) <= MAX_NAME_BYTES:
            raise DeclarationError(
                f"a service's name has 1 to {MAX_NAME_BYTES} bytes and is printable, not {service[:80]!r}"
            )
        self.service = service
        self._cloudevents = cloudevents
        # By event class, of which a process declares few; commands have a routing key for each delay.
        self._routes: dict[type[Event], tuple[FrameTemplate, str]] = {}
        self._connection = BrokerConnection(url, name=f"{service} publisher")
        self._writer = Writer(self._connection, name=f"{service} publisher")

    def __repr__(self) -> str:
        return f"RobustPublisher({self._connection.address!r}, service={self.service!r}, is_ready={self.is_ready})"

    async def __aenter__(self) -> Self:
        """Connect and declare the exchanges, trying again until the context's deadline, or for 30 s without one.

        Raises:
            NotConnectedError: the broker did not answer in that time.
            AccessDeniedError: the broker refuses the user or the password, or the user may not declare the exchanges.
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
        """Wait up to 5 s for the confirms of what was published, then close."""
        try:
            await self._writer.stop()  # first: the confirms that it waits for come over the connection
        finally:
            await self._connection.__aexit__(kind, error, trace)

    @property
    def is_ready(self) -> bool:
        """Whether an event published now would be sent: connected, and not blocked by a broker alarm."""
        return self._writer.is_ready

    async def publish(self, event: Event, *, allow_unrouted: bool = False) -> Receipt:
        """Publish an event to all queues that are bound to its type, and wait for the broker's confirm.

        After `OutcomeUnknownError` publish the same object again: it is the same event, with the same id, so that a
        consumer's guard removes the second one.

        Args:
            event: the event to publish.
            allow_unrouted: return a receipt with `routed=False` where no queue is bound, instead of an error.

        Raises:
            UnroutableError: no queue is bound to the type.
            NackedError: the broker gave the event back.
            BlockedError: the broker has a memory or disk alarm; nothing was sent.
            NotConnectedError: there is no connection; nothing was sent.
            OutcomeUnknownError: the event was sent, and no confirm came in time.
            MalformedPayloadError: the event has no JSON form, or one that no consumer could read; nothing was sent.
            MisuseError: the publisher was opened in another event loop, or before a fork; nothing was sent.
            PayloadTooLargeError: the envelope has over 16 MiB; nothing was sent.
        """
        context = bound() or RequestContext()
        return await self._publish(self._event(event, context), context, allow_unrouted=allow_unrouted)

    async def publish_many(
        self, events: Iterable[Event], *, allow_unrouted: bool = False
    ) -> list[Receipt | HybridkitError]:
        """Publish many events, and return a receipt or an error for each, in their order.

        Up to 1,000 are on their way at a time. Without a deadline in the context each event has 10 s. A trace has one
        span for all of them.

        Args:
            events: the events to publish.
            allow_unrouted: as for `publish`.
        """
        every = list(events)
        context = bound() or RequestContext()
        receipts: list[Receipt | HybridkitError] = []
        with batch_span(EVENT_EXCHANGE, messages=len(every)):
            fields = _shared_fields(context)
            before: _BegunBatch | None = None
            for events_of_batch in batched(every, BATCH):
                # Begun before the previous batch is awaited: the broker always has something to do.
                begun = self._begin_batch(events_of_batch, context, fields)
                if before is not None:
                    receipts += await before.receipts(allow_unrouted=allow_unrouted)
                before = begun
            if before is not None:
                receipts += await before.receipts(allow_unrouted=allow_unrouted)
        return receipts

    def publish_nowait(self, event: Event) -> None:
        """Publish an event without waiting for its confirm: for events that may be lost, such as a hint to a cache.

        An event that is lost is logged, and counted by its reason (`hybridkit_events_published_total`). An event that
        comes while 10,000 messages wait for the broker is lost as well.

        Raises:
            MalformedPayloadError: the event has no JSON form, or one that no consumer could read.
            PayloadTooLargeError: the envelope has over 16 MiB.
            MisuseError: the publisher was opened in another event loop, or before a fork.
        """
        context = bound() or RequestContext()
        message = self._event(event, context)
        # Nothing slows this caller down: without a bound, an outage of the broker would fill the memory.
        if self._writer.waiting >= MAX_WAITING:
            _drop(
                message,
                BlockedError(f"{MAX_WAITING} messages wait for the broker; {message.template} was not sent"),
            )
            return
        try:
            with message.span():
                pending = self._begin(message, context, _shared_fields(context))
        except MisuseError:
            raise
        except HybridkitError as error:
            _drop(message, error)
        else:
            pending.confirmation.add_done_callback(partial(_look_at, message))

    async def send(self, command: Command, *, delay_seconds: float = 0.0) -> Receipt:
        """Send a command to its queue, and wait for the broker's confirm; raises as `publish` does.

        Args:
            command: the command to send.
            delay_seconds: the least time until it is delivered; rounded up to whole seconds, at most 36 h: beyond that,
                `emit` the command with `not_before` in a transaction of a data client. With a delay the receipt
                confirms that a delay queue has the command: where its own queue is missing at the end, it is left in
                `hk.unrouted`.
        """
        exchange, routing_key = (
            delay_route(delay_seconds, command.queue) if delay_seconds else ("", command.queue)
        )
        context = bound() or RequestContext()
        template = self._template(exchange, routing_key, command.message_type)
        return await self._publish(self._encode(command, context, template, command.queue), context)

    async def publish_encoded(
        self,
        body: bytes,
        *,
        event_type: str,
        event_id: UUID,
        queue: str | None = None,
        allow_unrouted: bool = False,
    ) -> Receipt:
        """Publish an envelope that is encoded already, as an outbox relay does; raises as `publish` does.

        The headers come from the bound context: bind one with the row's request id and user id.

        Args:
            body: the whole envelope, UTF-8 JSON.
            event_type: the `event_type` in the envelope; the routing key.
            event_id: the `event_id` in the envelope.
            queue: send it to this queue instead, as a command.
            allow_unrouted: as for `publish`.
        """
        check_readable(body)
        exchange, routing_key = (EVENT_EXCHANGE, event_type) if queue is None else ("", queue)
        template = self._template(exchange, routing_key, event_type)
        message = _checked(EncodedMessage(template, queue or f"{exchange}:{routing_key}", body, event_id))
        return await self._publish(message, bound() or RequestContext(), allow_unrouted=allow_unrouted)

    def _event(self, event: Event, context: RequestContext) -> EncodedMessage:
        found = self._routes.get(type(event))
        if found is None:
            template = self._template(EVENT_EXCHANGE, event.message_type, event.message_type)
            found = self._routes[type(event)] = template, f"{EVENT_EXCHANGE}:{event.message_type}"
        return self._encode(event, context, *found)

    def _encode(
        self, message: Message, context: RequestContext, template: FrameTemplate, destination: str
    ) -> EncodedMessage:
        fields = b""
        if self._cloudevents:
            with bind(context):
                headers, body = to_binary(EventEnvelope.wrap(message, service=self.service))
            fields = encode_fields(headers)
        else:
            body = encode_message(message, service=self.service, context=context)
        return _checked(EncodedMessage(template, destination, body, message.event_id, fields))

    def _template(self, exchange: str, routing_key: str, message_type: str) -> FrameTemplate:
        try:
            return frame_template(exchange, routing_key, message_type, self.service)
        except ValueError as error:
            raise MalformedPayloadError(f"an event type or queue that AMQP can't carry: {error}") from error

    async def _publish(
        self, message: EncodedMessage, context: RequestContext, *, allow_unrouted: bool = False
    ) -> Receipt:
        began = time.monotonic()
        with message.span():
            try:
                routed = await self._begin(message, context, _shared_fields(context)).confirmation
                if not (routed or allow_unrouted):
                    raise unroutable(message.template)
            except HybridkitError as error:
                count(message.message_type, outcome_of(error))
                raise
            except (
                asyncio.CancelledError
            ):  # the message may be written already, and stays numbered: see `_writer`
                count(message.message_type, "cancelled")
                raise
        count(message.message_type, outcome_of(routed))
        observe_seconds(message.message_type, time.monotonic() - began)
        return Receipt(message.event_id, routed)

    def _begin(
        self, message: EncodedMessage, context: RequestContext, fields: _SharedFields
    ) -> AwaitedPublish:
        table = _table(message, fields)
        return self._writer.begin(message.template, table, message.body, deadline=context.deadline)

    def _begin_batch(
        self, events: Sequence[Event], context: RequestContext, fields: _SharedFields
    ) -> "_BegunBatch":
        batch = Batch(len(events))
        begun: list[_Begun] = []
        refused: HybridkitError | None = None
        deadline = 0.0
        try:
            deadline = self._writer.admit(context.deadline)
        except HybridkitError as error:
            refused = error
        for event in events:
            try:
                message = self._event(event, context)
            except HybridkitError as error:
                begun.append((event, error))
                batch.count_down()
                continue
            if refused is not None:
                begun.append((event, refused))
                batch.count_down()
                continue
            pending = BatchedPublish(message.template, _table(message, fields), message.body, deadline, batch)
            self._writer.add(pending)
            begun.append((event, pending))
        return _BegunBatch(batch, begun)


class _BegunBatch(NamedTuple):
    """Events of one batch, each with its publish, or the error for which there is none."""

    batch: Batch
    begun: list[_Begun]

    async def receipts(self, *, allow_unrouted: bool) -> list[Receipt | HybridkitError]:
        """Wait for the outcomes, and count those that are equal together."""
        await asyncio.wait(
            {self.batch.ended}
        )  # not by `await`: a caller that is cancelled would cancel the future
        receipts: list[Receipt | HybridkitError] = []
        outcomes: Counter[tuple[str, str]] = Counter()
        for event, pending in self.begun:
            receipt = _receipt(event, pending, allow_unrouted=allow_unrouted)
            receipts.append(receipt)
            outcome = outcome_of(receipt if isinstance(receipt, HybridkitError) else receipt.routed)
            outcomes[event.message_type, outcome] += 1
        for (message_type, outcome), messages in outcomes.items():
            count(message_type, outcome, messages=messages)
        return receipts


def _receipt(
    event: Event, pending: BatchedPublish | HybridkitError, *, allow_unrouted: bool
) -> Receipt | HybridkitError:
    outcome = pending if isinstance(pending, HybridkitError) else pending.outcome
    if isinstance(outcome, HybridkitError):
        return outcome
    if outcome or allow_unrouted:
        return Receipt(event.event_id, bool(outcome))
    return unroutable(cast("BatchedPublish", pending).template)


def _checked(message: EncodedMessage) -> EncodedMessage:
    check_size(message.body, limit_bytes=MAX_MESSAGE_BYTES)
    return message


def _table(message: EncodedMessage, shared: _SharedFields) -> bytes:
    """Encode the headers of a message; those of context and span are encoded once for a whole batch."""
    event_id = uuid_octets(message.event_id)
    if message.fields:
        return encode_table(_EVENT_ID_FIELD, event_id, message.fields, shared.fields)
    return shared.head + event_id + shared.fields


def _shared_fields(context: RequestContext) -> _SharedFields:
    """Encode the headers that all messages of one context and span have in common."""
    shared = _context_fields(context.request_id, context.user_id)
    trace = trace_headers()
    return _with_head(shared.fields + encode_fields(trace)) if trace else shared


@lru_cache(1024)
def _context_fields(request_id: str, user_id: str | None) -> _SharedFields:
    context = RequestContext(request_id=request_id, user_id=user_id)
    return _with_head(encode_fields(context.to_amqp_headers()))


def _with_head(fields: bytes) -> _SharedFields:
    return _SharedFields(encode_table(_EVENT_ID_FIELD, b"-" * 36, fields)[: -36 - len(fields)], fields)


def _look_at(message: EncodedMessage, confirmation: asyncio.Future[bool]) -> None:
    """Count the outcome of a publish for which nobody waits."""
    error = confirmation.exception()
    if error is None and confirmation.result():
        count(message.message_type, outcome_of(True))
    else:
        _drop(message, error if isinstance(error, HybridkitError) else unroutable(message.template))


def _drop(message: EncodedMessage, error: HybridkitError) -> None:
    count(message.message_type, outcome_of(error))
    _log.warning(
        "event dropped", event_type=message.message_type, event_id=str(message.event_id), error=str(error)
    )
