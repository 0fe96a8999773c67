"""A message that was delivered: its content, its settlement, and the copies that are published of it."""

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Protocol, TypedDict
from uuid import UUID

from pamqp import commands
from pydantic import BaseModel, Field, ValidationError

from hybridkit.codec import encode_json, format_timestamp, now
from hybridkit.context import current
from hybridkit.errors import MalformedPayloadError, PayloadError
from hybridkit.events import Event, EventEnvelope, ReplyTo
from hybridkit.events._declaration import MAX_TYPE_LENGTH
from hybridkit.events.cloudevents import FIRST_READ_AT, decode_body, decode_message, read_wire
from hybridkit.idempotency import claim_key
from hybridkit.ids import derived_id
from hybridkit.messaging._amqp._frames import JSON_MEDIA_TYPE, decode_properties
from hybridkit.messaging._amqp._headers import (
    ATTEMPT,
    ERROR,
    ERROR_TYPE,
    EVENT_ID,
    FAILED_AT,
    FIRST_FAILED_AT,
    GENERATION,
    QUEUE,
    REASON,
    STACK,
    VERSION_WAITS,
    copied_headers,
    event_headers,
    read_count,
    read_text,
    redriven_headers,
)
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._consuming._verdict import SHORTEST_DELAY_SECONDS, DeadLettered, RetryLater
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.messaging._topology._declared import DEAD_LETTER_EXCHANGE, EVENT_EXCHANGE, delay_route
from hybridkit.observability import class_name, printable, stack_of

MAX_UNACKED_SECONDS: Final = 0.8 * 1800
"""The time for which a message may stay unacknowledged: 80 % of RabbitMQ's consumer timeout, which closes the channel.

https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
"""
WAIT_SECONDS: Final = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0)
"""The waits of a message for what it needs, such as a deployment that knows its version: a quarter of an hour in all,
then it is a dead letter."""
MAX_ERROR_CHARS: Final = 1000
MAX_STACK_CHARS: Final = 8000
MAX_NAME_CHARS: Final = 256

# A header's name stands in the undecoded bytes as it is.
_ATTEMPT: Final = ATTEMPT.encode()
_EVENT_ID: Final = EVENT_ID.encode()
_GENERATION: Final = GENERATION.encode()
_REASON: Final = REASON.encode()
_VERSION_WAITS: Final = VERSION_WAITS.encode()
_FIRST_READ_AT: Final = FIRST_READ_AT.encode()


type Identity = tuple[str, UUID, int]
"""The identity of an event: the service that published it, its id, and how often it was redriven."""


class _Form(TypedDict):
    headers: Mapping[str, Any]
    content_type: str | None


def _is_new(octets: bytes) -> bool:
    """Return whether a message has no header of a copy or dead letter: of all of ours only its event's id, if any."""
    at = octets.find(b"hk_")
    if octets.startswith(_EVENT_ID, at):
        at = octets.find(b"hk_", at + len(_EVENT_ID))
    return at < 0


class Acknowledger(Protocol):
    """Settles deliveries: the channel on which they came, as the broker takes a tag on no other one."""

    @property
    def is_open(self) -> bool:
        """Whether the channel is open, so that the broker still learns of a settlement."""
        ...

    def ack(self, tag: int, finished: Identity | None, /) -> None:
        """Acknowledge a delivery; `finished` names the event where it need not run again."""
        ...

    def requeue(self, tag: int) -> None:
        """Put a delivery back into its queue."""
        ...

    def reject(self, tag: int) -> None:
        """Have the broker dead-letter a delivery."""
        ...

    def give_back(self) -> None:
        """Close the channel: all of its unsettled messages go back into the queue, in their order."""
        ...

    def was_finished(self, event: Identity, /) -> bool:
        """Return whether the event was finished before, on a channel that closed too early to acknowledge it."""
        ...


class _Report(BaseModel):
    """The members of a command's envelope from which its saga is told of its end, whatever its data is."""

    event_type: str = Field(max_length=MAX_TYPE_LENGTH)
    event_id: UUID
    service: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    reply_to: ReplyTo


class Delivery:
    """A message from the broker, until it is settled: acknowledged, put back or rejected.

    Its properties are decoded when something asks for them; for most messages nothing does.

    Attributes:
        members: of the envelope, as `peek_object` reads them; None until it was read, and for a CloudEvent.
        key: the value by which it is kept in order, where the consumer keeps order.
        faults: the number of errors in its processing that were none of its handler's.
        is_settled: whether it is acknowledged, put back or rejected.

    Args:
        queue: the consumer's name.
        acknowledger: the channel on which it came.
        message: the message as its port has it.
    """

    def __init__(self, queue: str, acknowledger: Acknowledger, message: IncomingMessage) -> None:
        self.queue = queue
        self.body = message.body
        self.key: str | None = None
        self.received_at = time.monotonic()
        self._acknowledger = acknowledger
        self._tag, self._is_redelivered, self._exchange, self.routing_key = message.method
        self._octets = message.properties
        self._is_new = _is_new(message.properties)
        self._event: Identity | None = None
        self._envelope: EventEnvelope[Any] | None = None
        self.members: Mapping[str, Any] | None = None
        self.faults = 0
        self.is_settled = False

    def __repr__(self) -> str:
        return f"Delivery({self.queue!r}, tag={self._tag}, failures={self.failures})"

    @cached_property
    def _properties(self) -> commands.Basic.Properties:
        return decode_properties(self._octets)

    @cached_property
    def headers(self) -> Mapping[str, Any]:
        """The message's headers; none where they can't be decoded.

        A dead letter that was moved back by other means, with RabbitMQ's shovel or "Move messages", gets the headers of
        a redriven one: it is meant to run again, with all its attempts ahead. The dead letter of another consumer gets
        those of the event itself, which may well be done in this consumer.
        """
        headers: Mapping[str, Any] = self._properties.headers or {}
        if not self._was_dead:
            return headers
        is_own = (read_text(headers, QUEUE) or self.queue) == self.queue
        return redriven_headers(headers) if is_own else event_headers(headers)

    @property
    def _was_dead(self) -> bool:
        # A header's name stands in the undecoded bytes as it is: where it doesn't, there is nothing to decode.
        return _REASON in self._octets and REASON in (self._properties.headers or {})

    @property
    def failures(self) -> int:
        """The number of runs of the handler that failed before this delivery."""
        return 0 if self._is_new else self._count(ATTEMPT, _ATTEMPT)

    @property
    def generation(self) -> int:
        """The number of times that it was redriven from a dead-letter queue."""
        return 0 if self._is_new else self._count(GENERATION, _GENERATION)

    @property
    def version_waits(self) -> int:
        """The number of waits for a deployment that knows its version, or for what its handler misses."""
        return self._count(VERSION_WAITS, _VERSION_WAITS)

    def _count(self, name: str, octets: bytes) -> int:
        return read_count(self.headers, name) if octets in self._octets or self._was_dead else 0

    def read(self) -> EventEnvelope[Any]:
        """Return the envelope in the body, or the CloudEvent that the message is; it is parsed once.

        Raises:
            PayloadError: the message can't be read; see `decode_envelope`.
        """
        if self._envelope is None:
            try:
                if self._may_be_cloudevent():
                    form = self._form()
                    self._envelope = decode_message(self.body, **form)
                else:
                    self._envelope, self.members = decode_body(self.body, {})
            except (PayloadError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # upcasters and validators are the application's own code
                raise MalformedPayloadError(f"the message can't be read: {class_name(error)}") from error
        return self._envelope

    def wire(self) -> Mapping[str, Any]:
        """Return the members of the envelope as they came, whether or not their type is known here.

        Raises:
            PayloadError: the body has no such members.
        """
        return read_wire(self.body, **self._form()).members

    def _form(self) -> _Form:
        """Return the headers and the content type of a CloudEvent; none where the properties don't mention one."""
        if not self._may_be_cloudevent():
            return _Form(headers={}, content_type=None)
        return _Form(headers=self.headers, content_type=self._properties.content_type)

    def _may_be_cloudevent(self) -> bool:
        # Decoding costs more than this search, and few messages are CloudEvents or copies of them.
        octets = self._octets.lower()
        is_copy = not self._is_new and _FIRST_READ_AT in octets
        return is_copy or b"specversion" in octets or b"cloudevents" in octets

    @property
    def is_ours(self) -> bool:
        """Whether it can still be settled; otherwise the broker delivers it again, here or elsewhere."""
        return self._acknowledger.is_open

    @property
    def destination(self) -> str:
        """The name for spans: `{exchange}:{routing key}:{queue}` of an event, the queue of all else."""
        if self._exchange == EVENT_EXCHANGE:
            return f"{self._exchange}:{self.routing_key}:{self.queue}"
        return self.queue

    def age_seconds(self) -> float:
        """Return the seconds since it was delivered; the broker's consumer timeout counts the same."""
        return time.monotonic() - self.received_at

    def left_seconds(self, timeout_seconds: float) -> float:
        """Return how long it can still wait here before a run that may take that long has to begin."""
        return MAX_UNACKED_SECONDS - timeout_seconds - self.age_seconds()

    def next_wait(self, *, waits_for: str = "waiting") -> RetryLater | None:
        """Return the next of the waits in delay levels; None after the last one.

        Args:
            waits_for: a word for the metrics.
        """
        waits = self.version_waits
        if waits >= len(WAIT_SECONDS):
            return None
        return RetryLater(WAIT_SECONDS[waits], headers={VERSION_WAITS: waits + 1}, waits_for=waits_for)

    def next_wait_in_order(self, timeout_seconds: float, *, waits_for: str) -> RetryLater | None:
        """Return the next of the waits in front of a key, each as long as all before it; None after the last one.

        Args:
            timeout_seconds: the time that a run may take.
            waits_for: a word for the metrics.
        """
        left_seconds = self.left_wait_seconds(timeout_seconds)
        if left_seconds <= 0:
            return None
        seconds = min(max(self.age_seconds(), WAIT_SECONDS[0]), WAIT_SECONDS[-1], left_seconds)
        return RetryLater(max(seconds, SHORTEST_DELAY_SECONDS), waits_for=waits_for)

    def left_wait_seconds(self, timeout_seconds: float) -> float:
        """Return how long a message in front of its key still waits for what it needs; 0 or less for no longer."""
        return min(sum(WAIT_SECONDS) - self.age_seconds(), self.left_seconds(timeout_seconds))

    def identify(self, service: str, event_id: UUID) -> bool:
        """Set which event it is.

        Returns:
            Whether the event was finished before, and only the acknowledgement was lost with its channel.
        """
        self._event = (service, event_id, self.generation)
        return self._is_redelivered and self._acknowledger.was_finished(self._event)

    @property
    def event(self) -> Identity | None:
        """The identity of its event, once it could be read."""
        return self._event

    def ack(self, *, finished: bool) -> None:
        """Acknowledge it. Where its channel has closed, nothing is sent: the broker delivers it again.

        Args:
            finished: whether its event need not run again, if it is delivered again.
        """
        self.is_settled = True
        self._acknowledger.ack(self._tag, self._event if finished else None)

    def requeue(self) -> None:
        """Give it back to its queue at once, to be delivered elsewhere; no attempt is counted.

        RabbitMQ before 4.3 dead-letters it at the twentieth time; since then its limit counts deliveries that were lost
        with their channel, and none that was given back. https://www.rabbitmq.com/docs/quorum-queues
        """
        self.is_settled = True
        self._acknowledger.requeue(self._tag)

    def reject(self) -> None:
        """Have the broker move it to the dead-letter queue as it is: without a copy, and without our reason."""
        self.is_settled = True
        self._acknowledger.reject(self._tag)

    def give_back(self) -> None:
        """Give it back with all other messages of its channel, so that none overtakes another."""
        self._acknowledger.give_back()

    def delayed(self, later: RetryLater) -> OutgoingMessage:
        """Return the copy that comes back after a delay."""
        exchange, routing_key = delay_route(later.seconds, self.queue)
        return self._copy(exchange, routing_key, {QUEUE: self.queue, **later.headers})

    def failed(self, failures: int) -> dict[str, Any]:
        """Return the headers that count so many failures; none where there are none."""
        if not failures:
            return {}
        moment = format_timestamp(now())
        return {
            ATTEMPT: failures,
            FIRST_FAILED_AT: read_text(self.headers, FIRST_FAILED_AT) or moment,
            FAILED_AT: moment,
        }

    def dead_letter(self, dead: DeadLettered) -> OutgoingMessage:
        """Return the copy for the dead letters, with all that is known about the reason."""
        reason = {
            QUEUE: self.queue,
            REASON: dead.reason,
            ERROR_TYPE: class_name(dead.error)[:MAX_NAME_CHARS],
            ERROR: printable(dead.error)[:MAX_ERROR_CHARS],
            STACK: stack_of(dead.error)[-MAX_STACK_CHARS:],
            FAILED_AT: format_timestamp(now()),
            **self.failed(dead.failures),
        }
        return self._copy(DEAD_LETTER_EXCHANGE, self.queue, reason)

    def failure_report(self, dead: DeadLettered) -> OutgoingMessage | None:
        """Return the message that tells a saga that its command is given up; None where no saga has sent it.

        It has the same id each time, so a crash before the acknowledgement makes no second one.
        """
        if self._envelope is not None and isinstance(self._envelope.data, Event):
            return None
        try:
            members = self.members or self.wire()
            if members.get("reply_to") is None:
                return None
            report = _Report.model_validate(dict(members))
        except (PayloadError, ValidationError):
            return None  # nobody can be told
        context = current()
        claim = claim_key(self.queue, report.service, str(report.event_id), self.generation)
        failed_id = derived_id(claim, "command.failed")
        wire = {
            "event_type": "command.failed",
            "event_id": failed_id,
            "timestamp": format_timestamp(now()),
            "service": self.queue,
            "request_id": context.request_id,
            "user_id": context.user_id,
            "data": {
                "saga_id": report.reply_to.saga_id,
                "command_type": report.event_type,
                "command_id": report.event_id,
                "reason": dead.reason,
                "error_type": class_name(dead.error)[:MAX_NAME_CHARS],
            },
            "causation_id": report.event_id,
        }
        return OutgoingMessage(
            exchange="",
            routing_key=report.reply_to.queue,
            body=encode_json(wire),
            headers={EVENT_ID: str(failed_id), **context.to_amqp_headers()},
            message_type="command.failed",
            service=self.queue,
        )

    def _copy(self, exchange: str, routing_key: str, headers: Mapping[str, Any]) -> OutgoingMessage:
        return OutgoingMessage(
            exchange=exchange,
            routing_key=routing_key,
            body=self.body,
            headers={**copied_headers(self.headers), **self._first_read(), **headers},
            message_type=self._properties.message_type,
            service=self._properties.app_id,
            content_type=self._properties.content_type or JSON_MEDIA_TYPE,
        )

    def _first_read(self) -> dict[str, str]:
        """Return a header with the time at which a CloudEvent without a time was read: its copies have the same."""
        if b"specversion" not in self.body and b"specversion" not in self._octets.lower():
            return {}
        try:
            wire = read_wire(self.body, **self._form())
        except PayloadError:
            return {}
        if wire.is_timed:
            return {}
        seen = format_timestamp(self._envelope.timestamp) if self._envelope else wire.members["timestamp"]
        return {FIRST_READ_AT: seen}
