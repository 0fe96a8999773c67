"""A message that was delivered, what can become of it, and its copies."""

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Protocol, TypedDict
from uuid import UUID

from pamqp import commands

from hybridkit.codec import format_timestamp, now
from hybridkit.errors import MalformedPayloadError, PayloadError
from hybridkit.events import EventEnvelope
from hybridkit.events.cloudevents import FIRST_READ_AT, decode_message, read_wire
from hybridkit.messaging._amqp._frames import JSON_MEDIA_TYPE, decode_properties
from hybridkit.messaging._amqp._headers import (
    ATTEMPT,
    ERROR,
    ERROR_TYPE,
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
from hybridkit.messaging._consuming._verdict import DeadLettered, RetryLater
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.messaging._topology._declared import DEAD_LETTER_EXCHANGE, EVENT_EXCHANGE, delay_route
from hybridkit.observability import class_name, printable, stack_of

MAX_UNACKED_SECONDS: Final = 0.8 * 1800
"""The time for which a message may stay unacknowledged: 80 % of RabbitMQ's consumer timeout, which closes the channel.

https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
"""
MAX_ERROR_CHARS: Final = 1000
MAX_STACK_CHARS: Final = 8000
MAX_NAME_CHARS: Final = 256

_REASON: Final = REASON.encode()
_FIRST_READ_AT: Final = FIRST_READ_AT.encode()


type Identity = tuple[str, UUID, int]
"""Which event a delivery is: the service that published it, its id, and how often it was redriven."""


class _Form(TypedDict):
    headers: Mapping[str, Any]
    content_type: str | None


class Acknowledger(Protocol):
    """The channel that a delivery came on: there alone it can be settled."""

    @property
    def is_open(self) -> bool:
        """Whether the broker still hears what is said here."""
        ...

    def ack(self, tag: int, finished: Identity | None, /) -> None:
        """Done with that delivery; `finished` names the event where its work needn't be done again."""
        ...

    def requeue(self, tag: int) -> None:
        """Put that delivery back into its queue."""
        ...

    def reject(self, tag: int) -> None:
        """Have the broker dead-letter that delivery."""
        ...

    def give_back(self) -> None:
        """Close it: everything of it that is in hand goes back into the queue, in its order."""
        ...

    def was_finished(self, event: Identity, /) -> bool:
        """Whether that event's work was finished before, on a channel that closed too early to say so."""
        ...


class Delivery:
    """A message from the broker, until it is settled: acknowledged, put back or rejected.

    Its properties are decoded when something asks for them; of most messages nothing does.

    Attributes:
        key: what keeps it in order, where that is wanted.
        faults: how often something has failed here that nobody has foreseen.
        is_settled: whether the broker has been told what becomes of it.

    Args:
        queue: the consumer's name.
        acknowledger: the channel it came on.
        message: from its port.
    """

    def __init__(self, queue: str, acknowledger: Acknowledger, message: IncomingMessage) -> None:
        self.queue = queue
        self.body = message.body
        self.key: str | None = None
        self.received_at = time.monotonic()
        self._acknowledger = acknowledger
        self._tag, self._is_redelivered, self._exchange, self.routing_key = message.method
        self._octets = message.properties
        self._event: Identity | None = None
        self._envelope: EventEnvelope[Any] | None = None
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

        A dead letter that somebody has moved back by other means, with RabbitMQ's shovel or "Move messages", has those
        of a redriven one: it is meant to run again, with all its attempts ahead. One of another consumer says nothing
        about its fate in this one: it is the event itself, which may well be done here.
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
        """How many runs of the handler have failed before this delivery."""
        return self._count(ATTEMPT)

    @property
    def generation(self) -> int:
        """How often it was taken out of a dead-letter queue and sent again."""
        return self._count(GENERATION)

    @property
    def version_waits(self) -> int:
        """How often it waited for a deployment that knows its version."""
        return self._count(VERSION_WAITS)

    def _count(self, name: str) -> int:
        return read_count(self.headers, name) if name.encode() in self._octets or self._was_dead else 0

    def read(self) -> EventEnvelope[Any]:
        """The envelope in the body, or the CloudEvent that the message is; parsed once.

        Raises:
            PayloadError: see `decode_envelope`.
        """
        if self._envelope is None:
            try:
                self._envelope = decode_message(self.body, **self._form())
            except (PayloadError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # upcasters and validators are the application's own code
                raise MalformedPayloadError(f"the message can't be read: {class_name(error)}") from error
        return self._envelope

    def wire(self) -> Mapping[str, Any]:
        """The members of the envelope as they came, whether or not their type is known here.

        Raises:
            PayloadError: there are none.
        """
        return read_wire(self.body, **self._form()).members

    def _form(self) -> _Form:
        """What the properties say of the body: nothing, where nothing in their bytes is about CloudEvents."""
        octets = self._octets.lower()
        if not (b"specversion" in octets or b"cloudevents" in octets or _FIRST_READ_AT in octets):
            return _Form(headers={}, content_type=None)
        return _Form(headers=self.headers, content_type=self._properties.content_type)

    @property
    def is_ours(self) -> bool:
        """Whether it can still be settled; otherwise the broker delivers it again, to whomever."""
        return self._acknowledger.is_open

    @property
    def destination(self) -> str:
        """`{exchange}:{routing key}:{queue}` of an event, else the queue: the routing key of a delay has it in it."""
        if self._exchange == EVENT_EXCHANGE:
            return f"{self._exchange}:{self.routing_key}:{self.queue}"
        return self.queue

    def age_seconds(self) -> float:
        """How long we have had it; the broker's consumer timeout counts the same."""
        return time.monotonic() - self.received_at

    def left_seconds(self, timeout_seconds: float) -> float:
        """Return how long it can still wait here before a run that may take that long has to begin."""
        return MAX_UNACKED_SECONDS - timeout_seconds - self.age_seconds()

    def identify(self, service: str, event_id: UUID) -> bool:
        """Say which event it is.

        Returns:
            Whether its work was finished before, and only the acknowledgement was lost with its channel.
        """
        self._event = (service, event_id, self.generation)
        return self._is_redelivered and self._acknowledger.was_finished(self._event)

    @property
    def event(self) -> Identity | None:
        """Which event it is, where somebody has said so."""
        return self._event

    def ack(self, *, finished: bool) -> None:
        """It is done with. Where its channel has closed there is nobody to tell: the broker delivers it again.

        Args:
            finished: the work of its event needn't be done again, should it be delivered again.
        """
        self.is_settled = True
        self._acknowledger.ack(self._tag, self._event if finished else None)

    def requeue(self) -> None:
        """Give it back at once, for what ends here and goes on elsewhere: nobody counts that.

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
        """Give it back, with everything else from its channel: nothing overtakes anything."""
        self._acknowledger.give_back()

    def delayed(self, later: RetryLater) -> OutgoingMessage:
        """The copy that comes back."""
        exchange, routing_key = delay_route(later.seconds, self.queue)
        return self._copy(exchange, routing_key, {QUEUE: self.queue, **later.headers})

    def failed(self, failures: int) -> dict[str, Any]:
        """The headers that count this many failures; none for none."""
        if not failures:
            return {}
        moment = format_timestamp(now())
        return {
            ATTEMPT: failures,
            FIRST_FAILED_AT: read_text(self.headers, FIRST_FAILED_AT) or moment,
            FAILED_AT: moment,
        }

    def dead_letter(self, dead: DeadLettered) -> OutgoingMessage:
        """The copy that waits for a person, with all that is known about the reason."""
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
        """When a CloudEvent that has no time was read, so that whoever reads the copy sees the same time."""
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
