"""The consumers of a channel, and the messages that it has not settled."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from pamqp import base, commands

from hybridkit.dev._broker import _frames as frames
from hybridkit.dev._broker import _properties as fields
from hybridkit.dev._broker._fault_plan import FaultPlan
from hybridkit.dev._broker._properties import Properties
from hybridkit.dev._broker._queues import Entry, Queue
from hybridkit.dev._broker._refusals import RefusalError

_MAX_TAG: Final = 2**63


class DeliveryConnection(Protocol):
    """The connection that deliveries go out on."""

    @property
    def can_send(self) -> bool:
        """Whether the client keeps up with reading."""
        ...

    @property
    def faults(self) -> FaultPlan:
        """The faults that are due."""
        ...

    @property
    def wants_cancel_notifications(self) -> bool:
        """Whether the client accepts `basic.cancel` from the server."""
        ...


class DeliveryChannel(Protocol):
    """The channel that deliveries go out on."""

    @property
    def connection(self) -> DeliveryConnection:
        """The connection that the channel belongs to."""
        ...

    @property
    def number(self) -> int:
        """The channel's number on its connection."""
        ...

    @property
    def deliveries(self) -> "Deliveries":
        """The channel's consumers and unsettled messages."""
        ...

    @property
    def is_closing(self) -> bool:
        """Whether `channel.close` has been sent."""
        ...

    def send(self, method: base.Frame) -> None:
        """Send a method."""
        ...

    def send_content(self, head: bytes, properties: Properties, body: bytes) -> None:
        """Send an encoded method with its content."""
        ...


class Consumer:
    """The consumer that one `basic.consume` has started.

    Args:
        channel: the channel that its deliveries go out on.
        queue: the queue that they come from.
        tag: its name on the channel.
        no_ack: whether a delivery counts as acknowledged at once.
        prefetch: the limit of its unacknowledged deliveries; 0 for no limit.
    """

    def __init__(
        self, channel: DeliveryChannel, queue: Queue, tag: str, *, no_ack: bool, prefetch: int
    ) -> None:
        self.channel = channel
        self.queue = queue
        self.tag = tag
        self.encoded_tag = frames.short(tag)
        self.no_ack = no_ack
        self.prefetch = prefetch
        self.unsettled = 0

    def __repr__(self) -> str:
        return f"Consumer({self.tag!r}, {self.queue}, unsettled={self.unsettled})"

    def can_accept(self) -> bool:
        """See `QueueConsumer`."""
        has_room = self.no_ack or not self.prefetch or self.unsettled < self.prefetch
        return has_room and self.channel.connection.can_send and not self.channel.is_closing

    def accept(self, entry: Entry) -> None:
        """See `QueueConsumer`."""
        self.unsettled += not self.no_ack
        faults = self.channel.connection.faults
        if faults.concern_deliveries:
            faults.deliver(self, entry)
        else:
            self.channel.deliveries.send(self, entry)

    def deliver(self, entry: Entry) -> None:
        """See `Recipient`."""
        self.channel.deliveries.send(self, entry)

    def deliver_copy(self, entry: Entry) -> None:
        """See `Recipient`."""
        self.unsettled += not self.no_ack
        self.deliver(Entry(entry.message, entry.order, is_copy=True))

    def deliver_late(self, entry: Entry) -> None:
        """See `Recipient`."""
        if self.channel.is_closing or self.tag not in self.channel.deliveries.consumers:
            self.queue.give_back([entry], failed=False)
        else:
            self.deliver(entry)

    def on_cancelled(self) -> None:
        """See `QueueConsumer`; tell the client if it accepts that."""
        self.channel.deliveries.consumers.pop(self.tag, None)
        if self.channel.connection.wants_cancel_notifications and not self.channel.is_closing:
            self.channel.send(commands.Basic.Cancel(consumer_tag=self.tag, nowait=True))


@dataclass(frozen=True, slots=True)
class Delivery:
    """An unacknowledged delivery.

    Attributes:
        queue: the queue of the message.
        entry: the message in that queue.
        consumer: the consumer that has the message; None after `basic.get`.
    """

    queue: Queue
    entry: Entry
    consumer: Consumer | None

    def release(self) -> None:
        """Make room for the consumer's next delivery."""
        if self.consumer:
            self.consumer.unsettled -= 1


class Deliveries:
    """The consumers and unsettled deliveries of one channel.

    Attributes:
        consumers: the consumers by their tags.
        prefetch: the limit of the consumers that start from now on.
    """

    def __init__(self, channel: DeliveryChannel) -> None:
        self.consumers: dict[str, Consumer] = {}
        self.prefetch = 0
        self._channel = channel
        # A plain dict gets slower at finding its first key with every first key that is removed.
        self._unsettled: OrderedDict[int, Delivery] = OrderedDict()
        self._last_tag = 0

    def __repr__(self) -> str:
        return f"Deliveries(consumers={len(self.consumers)}, unsettled={len(self._unsettled)})"

    def send(self, consumer: Consumer, entry: Entry) -> None:
        """Deliver a message to a consumer."""
        channel = self._channel
        tag = self._register(consumer.queue, entry, consumer, no_ack=consumer.no_ack)
        head = frames.encode_deliver(
            channel.number, consumer.encoded_tag, tag, entry.message, redelivered=entry.redelivered
        )
        channel.send_content(head, _delivered_properties(entry), entry.message.body)

    def get(self, queue: Queue, *, no_ack: bool) -> None:
        """Answer a `basic.get`."""
        channel = self._channel
        entry = queue.get()
        if entry is None:
            channel.send(commands.Basic.GetEmpty())
            return
        tag = self._register(queue, entry, None, no_ack=no_ack)
        head = frames.encode_get_ok(
            channel.number, tag, entry.message, redelivered=entry.redelivered, left=queue.ready
        )
        channel.send_content(head, _delivered_properties(entry), entry.message.body)

    def _register(self, queue: Queue, entry: Entry, consumer: Consumer | None, *, no_ack: bool) -> int:
        self._last_tag += 1
        if no_ack:
            queue.settle(entry)
        else:
            self._unsettled[self._last_tag] = Delivery(queue, entry, consumer)
        return self._last_tag

    # ── settling ─────────────────────────────────────────────────────────────────────────────────

    def ack(self, tag: int, *, multiple: bool) -> None:
        """Acknowledge one delivery, or with `multiple` all up to it.

        Raises:
            RefusalError: the tag is unknown (406).
        """
        taken = self._take(tag, multiple=multiple)
        for delivery in taken:
            delivery.queue.settle(delivery.entry)
        _dispatch(taken)

    def nack(self, tag: int, *, multiple: bool, requeue: bool, failed: bool) -> None:
        """Return or reject one delivery, or several.

        Args:
            tag: the delivery tag; with `multiple`, 0 means all deliveries.
            multiple: include all deliveries up to the tag.
            requeue: return the messages to their queue; otherwise they are dead-lettered.
            failed: count the return towards the delivery limit.

        Raises:
            RefusalError: the tag is unknown (406).
        """
        taken = self._take(tag, multiple=multiple)
        if requeue:
            _give_back(taken, failed=failed)
        else:
            for delivery in taken:
                delivery.queue.reject(delivery.entry)
        _dispatch(taken)

    def give_all_back(self, *, failed: bool) -> None:
        """Return all unsettled messages to their queues."""
        taken = list(self._unsettled.values())
        self._unsettled.clear()
        for delivery in taken:
            delivery.release()
        _give_back(taken, failed=failed)

    def _take(self, tag: int, *, multiple: bool) -> list[Delivery]:
        # pamqp decodes a tag from 2^63 on as a negative number.
        unknown = RefusalError(406, f"unknown delivery tag {tag % (2 * _MAX_TAG)}")
        taken: list[Delivery] = []
        if not multiple or (tag and tag not in self._unsettled):
            delivery = self._unsettled.pop(tag, None)
            if delivery is None:
                raise unknown
            taken.append(delivery)
        else:
            while self._unsettled and (not tag or next(iter(self._unsettled)) <= tag):
                taken.append(self._unsettled.popitem(last=False)[1])
        for delivery in taken:
            delivery.release()
        return taken

    # ── consumers ────────────────────────────────────────────────────────────────────────────────

    def consume(self, consumer: Consumer) -> None:
        """Register a consumer, before its queue does."""
        self.consumers[consumer.tag] = consumer

    def cancel(self, tag: str) -> None:
        """Forget a consumer; its unsettled messages stay with the channel."""
        if consumer := self.consumers.pop(tag, None):
            consumer.queue.remove(consumer)

    def wake(self) -> None:
        """Resume deliveries after the client has read."""
        for queue in dict.fromkeys(consumer.queue for consumer in self.consumers.values()):
            queue.dispatch()

    def close(self) -> None:
        """Return the unsettled messages, then end the consumers."""
        # In this order: the successor of a single active consumer must not get later messages first.
        self.give_all_back(failed=True)
        for tag in list(self.consumers):
            self.cancel(tag)


def _dispatch(deliveries: Iterable[Delivery]) -> None:
    for queue in dict.fromkeys(delivery.queue for delivery in deliveries):
        queue.dispatch()


def _give_back(deliveries: Iterable[Delivery], *, failed: bool) -> None:
    entries: dict[Queue, list[Entry]] = {}
    for delivery in deliveries:
        entries.setdefault(delivery.queue, []).append(delivery.entry)
    for queue, returned in entries.items():
        queue.give_back(returned, failed=failed)


def _delivered_properties(entry: Entry) -> Properties:
    """Return the published properties with the counts that a quorum queue adds."""
    properties = entry.message.properties
    if not entry.acquired:
        return properties
    counts = {"x-acquired-count": fields.long_integer(entry.acquired)}
    if entry.failures:
        counts["x-delivery-count"] = fields.long_integer(entry.failures)
    return properties.with_headers({**properties.headers, **counts})
