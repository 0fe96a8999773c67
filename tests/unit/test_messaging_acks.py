"""What the broker is told about deliveries: everything once, in few frames, and what got lost is remembered."""

import asyncio
import struct
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.messaging._amqp._frames import DeliverMethod
from hybridkit.messaging._amqp._port import IncomingMessage, Port
from hybridkit.messaging._consuming import _acks as acks_module
from hybridkit.messaging._consuming import _consumer_channel as channel_module
from hybridkit.messaging._consuming._acks import Acks, LostAcks
from hybridkit.messaging._consuming._consumer_channel import ConsumerChannel
from hybridkit.messaging._consuming._delivery import Delivery, Identity
from tests.helpers import until

KINDS = {80: "ack", 120: "nack"}


def told(octets: bytes) -> list[tuple[str, int, int]]:
    """Decode method, tag and bits of each frame."""
    frames = [octets[start : start + 21] for start in range(0, len(octets), 21)]
    parsed = [struct.unpack(">BHIHHQBB", frame) for frame in frames]
    return [(KINDS[method], tag, bits) for _, _, _, _, method, tag, bits, _ in parsed]


def event(number: int) -> Identity:
    return ("tests", UUID(int=number), 0)


class Broker:
    """The broker's side of a channel: the unacknowledged tags, and the frames that it got."""

    frame_max = 131_072

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []
        self.unacknowledged: list[int] = []

    def deliver(self, port: Port, count: int = 1, *, first: int = 1) -> None:
        for tag in range(first, first + count):
            self.unacknowledged.append(tag)
            deliver = DeliverMethod(tag, False, "hk.events", "a.b")
            cast("Any", port)._receiver.delivered(IncomingMessage(deliver, b"\0\0", b"{}"))

    def write(self, octets: bytes) -> None:
        for frame in told(octets):
            self.settle(*frame)

    def settle(self, kind: str, tag: int, bits: int) -> None:
        """Settle a tag as RabbitMQ does: one that it doesn't know closes the channel."""
        assert tag in self.unacknowledged, "PRECONDITION_FAILED - unknown delivery tag"
        self.told.append((kind, tag, bits))
        multiple = kind == "ack" and bits
        self.unacknowledged = [
            left for left in self.unacknowledged if (left > tag if multiple else left != tag)
        ]

    def release(self, port: Port) -> None: ...


class FakeOpenChannel:
    """A channel that counts its users."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.users = 0
        self.closed = False

    @property
    def is_open(self) -> bool:
        return self.port.is_open

    def open_port(self, receiver: Any) -> Port:
        self.port = Port(self.broker, 1, receiver)
        return self.port

    def __enter__(self) -> None:
        self.users += 1

    def __exit__(self, *_: object) -> None:
        self.users -= 1

    def close(self) -> "asyncio.Task[None]":
        self.port.close("closed by us")
        return asyncio.create_task(asyncio.sleep(0))


class Channel:
    """A `ConsumerChannel` between a broker and a list of its deliveries."""

    def __init__(self, *, prefetch: int = 48, lost_acks: LostAcks | None = None) -> None:
        self.broker = Broker()
        self.open_channel = FakeOpenChannel(self.broker)
        self.deliveries: list[Delivery] = []
        self.lost_acks = lost_acks or LostAcks(prefetch=prefetch)
        self.consumer_channel = ConsumerChannel(
            cast("Any", self.open_channel),
            queue="tests",
            prefetch=prefetch,
            lost_acks=self.lost_acks,
            on_delivery=self.deliveries.append,
        )

    def deliver(self, count: int) -> None:
        self.broker.deliver(self.open_channel.port, count, first=self.consumer_channel.received + 1)

    @property
    def told(self) -> list[tuple[str, int, int]]:
        return self.broker.told


# ── tags ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_prefix_is_one_frame() -> None:
    """Acknowledgements without a gap leave as one frame with `multiple`."""
    acks = Acks(1)
    for tag in (2, 1, 3):
        acks.add(tag)
    assert told(acks.frames()) == [("ack", 3, 1)]
    assert acks.frames() == b""


def test_behind_a_slow_one_each_is_told_by_itself() -> None:
    """Acknowledgements behind an unsettled delivery leave one by one, and together again after it."""
    acks = Acks(1)
    for tag in (1, 3, 4):
        acks.add(tag)
    assert told(acks.frames()) == [("ack", 1, 1), ("ack", 3, 0), ("ack", 4, 0)]
    acks.add(2)
    assert told(acks.frames()) == [("ack", 2, 1)]
    acks.add(5)
    assert told(acks.frames()) == [("ack", 5, 1)]


def test_what_is_put_back_is_not_acknowledged() -> None:
    """A `multiple` acknowledgement never reaches past a delivery that was requeued or rejected by itself."""
    acks = Acks(1)
    acks.add(1)
    acks.settle(2)
    acks.settle(4)
    acks.add(3)
    assert told(acks.frames()) == [("ack", 3, 1)]
    assert [acks.is_settled(tag) for tag in (1, 4, 5)] == [True, True, False]
    assert repr(acks) == "Acks(channel=1, oldest=5, unsent=0)"


@given(st.permutations(range(1, 25)), st.sets(st.integers(1, 24)), st.sets(st.integers(1, 24)))
def test_in_whatever_order_the_broker_is_told_everything_once(
    order: list[int], put_back: set[int], flushes: set[int]
) -> None:
    """In any order of settling, the broker gets each tag once: a second time would close the channel."""
    broker, acks = Broker(), Acks(1)
    broker.unacknowledged = list(range(1, 25))
    for step, tag in enumerate(order):
        if tag in put_back:
            acks.settle(tag)
            broker.settle("nack", tag, 2)
        else:
            acks.add(tag)
        if step in flushes:
            broker.write(acks.frames())
    broker.write(acks.frames())
    assert broker.unacknowledged == []


# ── a channel ────────────────────────────────────────────────────────────────────────────────────


async def test_an_idle_consumer_does_not_wait() -> None:
    """When nothing is left to settle, the acknowledgements leave at once."""
    channel = Channel()
    channel.deliver(2)
    assert (channel.consumer_channel.unsettled, channel.open_channel.users) == (2, 1)
    channel.deliveries[0].ack(finished=True)
    assert channel.told == []
    channel.deliveries[1].ack(finished=True)
    assert channel.told == [("ack", 2, 1)]
    assert (channel.consumer_channel.unsettled, channel.open_channel.users) == (0, 0)


async def test_a_busy_consumer_sends_some_at_a_time() -> None:
    """Three of 48 acknowledgements leave together, with those of the same iteration of the event loop."""
    channel = Channel()
    channel.deliver(10)
    for count in (2, 2, 5):
        for delivery in channel.deliveries[:count]:
            delivery.ack(finished=False)
        del channel.deliveries[:count]
        await asyncio.sleep(0)
    assert channel.told == [("ack", 4, 1), ("ack", 9, 1)]


async def test_acknowledgements_do_not_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a slow handler the acknowledgements leave after some milliseconds."""
    monkeypatch.setattr(channel_module, "ACK_SECONDS", 0.001)
    channel = Channel()
    channel.deliver(3)
    channel.deliveries[1].ack(finished=True)
    await until(lambda: channel.told == [("ack", 2, 0)])
    channel.deliveries[2].ack(finished=True)
    await until(lambda: channel.told == [("ack", 2, 0), ("ack", 3, 0)])


async def test_a_delivery_is_settled_once() -> None:
    """Only the first settlement of a delivery is sent to the broker."""
    channel = Channel()
    channel.deliver(3)
    first, second, third = channel.deliveries
    first.reject()
    second.requeue()
    for delivery in (first, second):
        delivery.ack(finished=True)
        delivery.requeue()
    third.ack(finished=True)
    assert channel.told == [("nack", 1, 0), ("nack", 2, 2), ("ack", 3, 1)]


async def test_what_is_in_hand_leaves_no_room() -> None:
    """Unsettled deliveries and unsent acknowledgements both count against the prefetch."""
    channel = Channel(prefetch=32)

    def has_room() -> bool:
        return channel.consumer_channel.has_room

    channel.deliver(31)
    assert has_room()
    channel.deliver(1)
    channel.deliveries[0].ack(finished=True)
    assert not has_room()
    channel.deliveries[1].ack(finished=True)
    await asyncio.sleep(0)
    assert has_room()


async def test_what_was_collected_is_sent_before_the_channel_closes() -> None:
    """Closing the channel first sends the acknowledgements that were collected."""
    channel = Channel()
    channel.deliver(2)
    channel.deliveries[0].ack(finished=True)
    await channel.consumer_channel.close()
    assert channel.told == [("ack", 1, 1)]
    assert not channel.consumer_channel.is_open
    assert repr(channel.consumer_channel) == "ConsumerChannel('tests', received=2, unsettled=1)"


# ── acknowledgements that are lost ───────────────────────────────────────────────────────────────


def identified(delivery: Delivery, number: int) -> Delivery:
    delivery.identify("tests", UUID(int=number))
    return delivery


async def test_lost_acknowledgements_are_remembered() -> None:
    """When a channel closes, the last acknowledgements are remembered: sent, unsent, and those that come after it."""
    channel = Channel()
    channel.deliver(4)
    for number, delivery in enumerate(channel.deliveries):
        identified(delivery, number)
    channel.deliveries[0].ack(finished=True)
    channel.consumer_channel.flush()
    channel.deliveries[1].ack(finished=True)
    channel.open_channel.port.close("connection lost")
    channel.deliveries[2].ack(finished=True)
    channel.deliveries[3].ack(finished=False)
    channel.deliveries[3].requeue()
    channel.consumer_channel.flush()
    assert [channel.consumer_channel.was_finished(event(number)) for number in range(4)] == [
        True,
        True,
        True,
        False,
    ]
    assert channel.told == [("ack", 1, 1)]


async def test_no_more_are_remembered_than_can_be_lost() -> None:
    """No more acknowledgements than the prefetch are remembered of a channel, as the broker knows of all before."""
    channel = Channel(prefetch=2)
    for number in range(5):
        channel.deliver(1)
        identified(channel.deliveries[-1], number).ack(finished=True)
    channel.open_channel.port.close("connection lost")
    assert [event(number) in channel.lost_acks for number in range(5)] == [False, False, False, True, True]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost acknowledgements are forgotten beyond four times the prefetch, the oldest first, and after an hour."""
    lost_acks = LostAcks(prefetch=2)
    lost_acks.add(event(number) for number in range(9))
    lost_acks.add([event(1)])
    lost_acks.add([event(9)])
    assert repr(lost_acks) == "LostAcks(8 of at most 8)"
    assert [event(0) in lost_acks, event(1) in lost_acks, event(2) in lost_acks] == [False, True, False]
    monkeypatch.setattr(acks_module, "KEPT_SECONDS", 0.0)
    lost_acks.add([event(10)])
    assert event(10) not in lost_acks


async def test_nothing_is_published_on_a_consumers_channel() -> None:
    """A consumer's channel ignores confirms and returns."""
    channel = Channel()
    channel.consumer_channel.settled(1, multiple=False, accepted=True)
    channel.consumer_channel.returned(b"")
    assert channel.told == []
