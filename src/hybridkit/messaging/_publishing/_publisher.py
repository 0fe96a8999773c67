"""Publishing: confirmed and routed, or an error that says what is known."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import batched
from types import TracebackType
from typing import Final, NamedTuple, Self
from uuid import UUID

from hybridkit.codec import MAX_MESSAGE_BYTES, check_readable, check_size
from hybridkit.context import RequestContext, bind, bound
from hybridkit.errors import (
    BlockedError,
    DeclarationError,
    HybridkitError,
    MalformedPayloadError,
    MisuseError,
    UnroutableError,
)
from hybridkit.events import Command, Event, EventEnvelope, Message, encode_message
from hybridkit.events.cloudevents import to_binary
from hybridkit.messaging._amqp._connection import BrokerConnection
from hybridkit.messaging._amqp._frames import Address, address, encode_fields, encode_table
from hybridkit.messaging._amqp._headers import EVENT_ID
from hybridkit.messaging._publishing._confirms import Publish
from hybridkit.messaging._publishing._telemetry import (
    batch_span,
    count,
    observe_seconds,
    outcome_of,
    publish_span,
)
from hybridkit.messaging._publishing._writer import Outgoing, Writer
from hybridkit.messaging._topology._declared import EVENT_EXCHANGE, delay_route
from hybridkit.observability import get_logger, trace_headers

__all__ = ["Receipt", "RobustPublisher"]

BATCH: Final = 500
MAX_NAME_BYTES: Final = 255
MAX_WAITING: Final = 10_000
"""`publish_nowait` drops what comes while so many messages wait to be sent."""

_EVENT_ID_FIELD: Final = encode_fields({EVENT_ID: "-" * 36})[:-36]  # an id in text form follows

_log = get_logger(__name__)


class Receipt(NamedTuple):
    """The broker has stored the message.

    Attributes:
        event_id: the identity of what was published.
        routed: whether a queue took it; False only with `allow_unrouted=True`.
    """

    event_id: UUID
    routed: bool = True


class _Letter(NamedTuple):
    """An event or command, ready for the writer.

    Attributes:
        to: where it goes.
        destination: the same for people and spans, without the delay that a routing key may have in it.
        body: the envelope.
        event_id: of the event or command.
        fields: headers of its own, encoded.
    """

    to: Address
    destination: str
    body: bytes
    event_id: UUID
    fields: bytes = b""

    @property
    def message_type(self) -> str:
        """The type of the event or command."""
        return self.to.message_type or ""

    def span(self) -> AbstractContextManager[object]:
        """The producer's, around its publish."""
        return publish_span(
            self.destination,
            routing_key=self.to.routing_key,
            event_id=self.event_id,
            body_bytes=len(self.body),
        )


type _Pending = tuple[Event, Publish | HybridkitError]
"""An event, and what came of handing it to the writer."""


class RobustPublisher:
    """Publishes events and sends commands, over a connection of its own.

    Every call ends with the broker's answer or a typed error, at the latest at the context's deadline, or after 10 s
    without one.

    Args:
        url: as for `BrokerConnection`.
        service: the name that envelopes carry as their `service`; printable, up to 255 bytes.
        cloudevents: publish in the binary form of CloudEvents 1.0 instead of the envelope, for readers outside of the
            stack; our consumers read both. What comes as bytes, from an outbox, stays as it is.

    Raises:
        DeclarationError: no such name.
    """

    def __init__(self, url: str, *, service: str, cloudevents: bool = False) -> None:
        if not service.isprintable() or not 1 <= len(service.encode()) <= MAX_NAME_BYTES:
            raise DeclarationError(
                f"a service's name has 1 to {MAX_NAME_BYTES} bytes and is printable, not {service[:80]!r}"
            )
        self.service = service
        self._cloudevents = cloudevents
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
            MalformedPayloadError: it has no JSON form, or one that no consumer could read; nothing was sent.
            MisuseError: the publisher was opened in another event loop, or before a fork; nothing was sent.
            PayloadTooLargeError: over 16 MiB; nothing was sent.
        """
        context = bound() or RequestContext()
        return await self._publish(self._event(event, context), context, allow_unrouted=allow_unrouted)

    async def publish_many(
        self, events: Iterable[Event], *, allow_unrouted: bool = False
    ) -> list[Receipt | HybridkitError]:
        """As `publish`, up to 1,000 at a time: a receipt or an error for each event, in their order.

        The time limit is each event's own, and all of theirs where the context has a deadline. A trace has one span for
        all of them.
        """
        every = list(events)
        context = bound() or RequestContext()
        answers: list[Receipt | HybridkitError] = []
        with batch_span(EVENT_EXCHANGE, messages=len(every)):
            fields = _shared_fields(context)
            before: list[_Pending] = []
            for batch in batched(every, BATCH):
                pending = [(event, self._begin_or_error(event, context, fields)) for event in batch]
                answers += await _answers(
                    before, allow_unrouted=allow_unrouted
                )  # while these are on their way
                before = pending
            answers += await _answers(before, allow_unrouted=allow_unrouted)
        return answers

    def publish_nowait(self, event: Event) -> None:
        """Publish without waiting for the answer: for what may be lost, such as a hint to refresh a cache.

        What no queue takes is counted by its reason (`hybridkit_events_published_total`) and logged. An event that
        comes while 10,000 messages wait for the broker is dropped as well.

        Raises:
            MalformedPayloadError: it has no JSON form, or one that no consumer could read.
            PayloadTooLargeError: over 16 MiB.
            MisuseError: see `publish`.
        """
        context = bound() or RequestContext()
        letter = self._event(event, context)
        if self._writer.waiting >= MAX_WAITING:
            _drop(
                letter, BlockedError(f"{MAX_WAITING} messages wait for the broker; {letter.to} was not sent")
            )
            return
        try:
            with letter.span():
                publish = self._begin(letter, context, _shared_fields(context))
        except MisuseError:
            raise
        except HybridkitError as error:
            _drop(letter, error)
        else:
            publish.answer.add_done_callback(partial(_look_at, letter))

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
        context = bound() or RequestContext()
        to = self._address(exchange, routing_key, command.message_type)
        return await self._publish(self._letter(command, context, to, command.queue), context)

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
        check_readable(body)
        exchange, routing_key = (EVENT_EXCHANGE, event_type) if queue is None else ("", queue)
        to = self._address(exchange, routing_key, event_type)
        letter = _checked(_Letter(to, queue or f"{exchange}:{routing_key}", body, event_id))
        return await self._publish(letter, bound() or RequestContext(), allow_unrouted=allow_unrouted)

    async def forward(self, message: Outgoing, *, allow_unrouted: bool = False) -> bool:
        """Publish a message as it is; whether a queue took it. The lowest level, for what this package moves itself."""
        context = bound()
        publish = self._writer.submit(message, deadline=context.deadline if context else None)
        routed = await publish.answer
        if not (routed or allow_unrouted):
            raise _unroutable(publish.to)
        return routed

    def renew_topology(self, *, reason: str) -> None:
        """Declare the shared exchanges and queues again, on a new channel."""
        self._writer.renew_topology(reason=reason)

    def _event(self, event: Event, context: RequestContext) -> _Letter:
        to = self._address(EVENT_EXCHANGE, event.message_type, event.message_type)
        return self._letter(event, context, to, f"{EVENT_EXCHANGE}:{event.message_type}")

    def _letter(self, message: Message, context: RequestContext, to: Address, destination: str) -> _Letter:
        fields = b""
        if self._cloudevents:
            with bind(context):
                headers, body = to_binary(EventEnvelope.wrap(message, service=self.service))
            fields = encode_fields(headers)
        else:
            body = encode_message(message, service=self.service, context=context)
        return _checked(_Letter(to, destination, body, message.event_id, fields))

    def _address(self, exchange: str, routing_key: str, message_type: str) -> Address:
        try:
            return address(exchange, routing_key, message_type, self.service)
        except ValueError as error:
            raise MalformedPayloadError(f"an event type or queue that AMQP can't carry: {error}") from error

    async def _publish(
        self, letter: _Letter, context: RequestContext, *, allow_unrouted: bool = False
    ) -> Receipt:
        began = time.monotonic()
        with letter.span():
            try:
                routed = await self._begin(letter, context, _shared_fields(context)).answer
                if not (routed or allow_unrouted):
                    raise _unroutable(letter.to)
            except HybridkitError as error:
                count(letter.message_type, outcome_of(error))
                raise
            except asyncio.CancelledError:
                count(letter.message_type, "cancelled")
                raise
        count(letter.message_type, outcome_of(routed))
        observe_seconds(letter.message_type, time.monotonic() - began)
        return Receipt(letter.event_id, routed)

    def _begin(self, letter: _Letter, context: RequestContext, fields: bytes) -> Publish:
        table = encode_table(_EVENT_ID_FIELD + str(letter.event_id).encode() + letter.fields + fields)
        return self._writer.begin(letter.to, table, letter.body, deadline=context.deadline)

    def _begin_or_error(
        self, event: Event, context: RequestContext, fields: bytes
    ) -> Publish | HybridkitError:
        try:
            return self._begin(self._event(event, context), context, fields)
        except HybridkitError as error:
            return error


async def _answers(pending: Sequence[_Pending], *, allow_unrouted: bool) -> list[Receipt | HybridkitError]:
    """A receipt or an error for each, counted together."""
    answers: list[Receipt | HybridkitError] = []
    outcomes: Counter[tuple[str, str]] = Counter()
    for event, publish in pending:
        answer = await _answer(event, publish, allow_unrouted=allow_unrouted)
        answers.append(answer)
        outcomes[
            event.message_type, outcome_of(answer if isinstance(answer, HybridkitError) else answer.routed)
        ] += 1
    for (message_type, outcome), messages in outcomes.items():
        count(message_type, outcome, messages=messages)
    return answers


async def _answer(
    event: Event, publish: Publish | HybridkitError, *, allow_unrouted: bool
) -> Receipt | HybridkitError:
    if isinstance(publish, HybridkitError):
        return publish
    try:
        routed = await publish.answer
    except HybridkitError as error:
        return error
    return Receipt(event.event_id, routed) if routed or allow_unrouted else _unroutable(publish.to)


def _checked(letter: _Letter) -> _Letter:
    check_size(letter.body, limit_bytes=MAX_MESSAGE_BYTES)
    return letter


def _shared_fields(context: RequestContext) -> bytes:
    """The headers that all messages of one context and span have in common."""
    return encode_fields(context.to_amqp_headers() | trace_headers())


def _unroutable(to: Address) -> UnroutableError:
    return UnroutableError(
        f"no queue wants {to}; start a consumer for it once",
        exchange=to.exchange,
        routing_key=to.routing_key,
    )


def _look_at(letter: _Letter, answer: asyncio.Future[bool]) -> None:
    """See how a publish ended for which nobody waits."""
    error = answer.exception()
    if error is None and answer.result():
        count(letter.message_type, outcome_of(True))
    else:
        _drop(letter, error if isinstance(error, HybridkitError) else _unroutable(letter.to))


def _drop(letter: _Letter, error: HybridkitError) -> None:
    count(letter.message_type, outcome_of(error))
    _log.warning(
        "event dropped", event_type=letter.message_type, event_id=str(letter.event_id), error=str(error)
    )
