"""What a channel has been given and not settled, and the consumers that it is given to."""

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
        """Whether the client reads what it is sent."""
        ...

    @property
    def faults(self) -> FaultPlan:
        """The faults that are due."""
        ...

    @property
    def wants_cancel_notifications(self) -> bool:
        """Whether the client knows `basic.cancel` of the server."""
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
        """Whether the channel takes part in nothing any more."""
        ...

    def send(self, method: base.Frame) -> None:
        """Send a method."""
        ...

    def send_content(self, head: bytes, properties: Properties, body: bytes) -> None:
        """Send a method that is encoded already, and its content."""
        ...


class Consumer:
    """One `basic.consume`.

    Args:
        channel: where deliveries go.
        queue: where they come from.
        tag: its name on the channel.
        no_ack: what is delivered counts as acknowledged.
        prefetch: how many it may have unacknowledged; 0 for any number.
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

    def can_take(self) -> bool:
        """See `Taker`: its limit, and whether the client reads what it is sent."""
        has_room = self.no_ack or not self.prefetch or self.unsettled < self.prefetch
        return has_room and self.channel.connection.can_send and not self.channel.is_closing

    def take(self, entry: Entry) -> None:
        """See `Taker`."""
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

    def cancelled(self) -> None:
        """See `Taker`: the client is told, where it wants to be."""
        self.channel.deliveries.consumers.pop(self.tag, None)
        if self.channel.connection.wants_cancel_notifications and not self.channel.is_closing:
            self.channel.send(commands.Basic.Cancel(consumer_tag=self.tag, nowait=True))


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is unacknowledged under one tag.

    Attributes:
        queue: where it belongs.
        entry: the message there.
        consumer: who has it; None after `basic.get`.
    """

    queue: Queue
    entry: Entry
    consumer: Consumer | None

    def release(self) -> None:
        """Make room for the consumer's next."""
        if self.consumer:
            self.consumer.unsettled -= 1


class Deliveries:
    """The consumers of one channel and everything that is out on it.

    Attributes:
        consumers: by their tags.
        prefetch: the limit of the consumers that come.
    """

    def __init__(self, channel: DeliveryChannel) -> None:
        self.consumers: dict[str, Consumer] = {}
        self.prefetch = 0
        self._channel = channel
        # Ordered, because a plain dict takes longer and longer to find its first key when the first ones are removed.
        self._unsettled: OrderedDict[int, Delivery] = OrderedDict()
        self._last_tag = 0

    def __repr__(self) -> str:
        return f"Deliveries(consumers={len(self.consumers)}, unsettled={len(self._unsettled)})"

    def send(self, consumer: Consumer, entry: Entry) -> None:
        """Deliver to a consumer."""
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
        """Settle one, or all up to it.

        Raises:
            RefusalError: 406, no such delivery.
        """
        taken = self._take(tag, multiple=multiple)
        for delivery in taken:
            delivery.queue.settle(delivery.entry)
        _dispatch(taken)

    def nack(self, tag: int, *, multiple: bool, requeue: bool, failed: bool) -> None:
        """Give back or reject one, or all up to it.

        Args:
            tag: 0 with `multiple` means all.
            multiple: all up to the tag.
            requeue: give back; otherwise they are dead.
            failed: giving back counts for the delivery limit.

        Raises:
            RefusalError: 406, no such delivery.
        """
        taken = self._take(tag, multiple=multiple)
        if requeue:
            _give_back(taken, failed=failed)
        else:
            for delivery in taken:
                delivery.queue.reject(delivery.entry)
        _dispatch(taken)

    def give_all_back(self, *, failed: bool) -> None:
        """Put everything back into its queue."""
        taken = list(self._unsettled.values())
        self._unsettled.clear()
        for delivery in taken:
            delivery.release()
        _give_back(taken, failed=failed)

    def _take(self, tag: int, *, multiple: bool) -> list[Delivery]:
        # A tag of 2^63 and more is none that was ever given; pamqp reads it as negative.
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
        """Remember a consumer; its queue gets to know it afterwards."""
        self.consumers[consumer.tag] = consumer

    def cancel(self, tag: str) -> None:
        """Forget a consumer; what it has stays with the channel."""
        if consumer := self.consumers.pop(tag, None):
            consumer.queue.remove(consumer)

    def wake(self) -> None:
        """Deliver again: the client reads again."""
        for queue in dict.fromkeys(consumer.queue for consumer in self.consumers.values()):
            queue.dispatch()

    def close(self) -> None:
        """Give back what is out, and end the consumers."""
        # In this order: who comes after a single active consumer must not get later messages first.
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
    """As published, with the counts that a quorum queue adds."""
    properties = entry.message.properties
    if not entry.acquired:
        return properties
    counts = {"x-acquired-count": fields.long_integer(entry.acquired)}
    if entry.failures:
        counts["x-delivery-count"] = fields.long_integer(entry.failures)
    return properties.with_headers({**properties.headers, **counts})
