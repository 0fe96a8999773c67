"""Both brokers confirm, return, deliver and settle messages alike (aio-pika)."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import aio_pika
import pytest
from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelClosed, ChannelPreconditionFailed, ConnectionClosed, PublishError

from tests.helpers import until
from tests.helpers.amqp import Inbox, bodies, declare, depth, get, put

KINDS = ["classic", "quorum"]


# ── publishing ───────────────────────────────────────────────────────────────────────────────────


async def test_a_mandatory_message_without_a_route_is_returned_before_it_is_confirmed(
    channel: AbstractChannel,
) -> None:
    """The code is 312; without `mandatory` it is confirmed and dropped."""
    await channel.default_exchange.publish(Message(b""), "nowhere", mandatory=False)
    with pytest.raises(PublishError, match="NO_ROUTE"):
        await channel.default_exchange.publish(Message(b""), "nowhere")


async def test_a_thousand_publishes_are_confirmed(channel: AbstractChannel) -> None:
    """Each is confirmed in order, alone or together with others."""
    queue = await declare(channel)
    publishes = (channel.default_exchange.publish(Message(str(n).encode()), "queue") for n in range(1000))
    await asyncio.gather(*publishes)
    assert await depth(channel) == 1000
    assert sorted(map(int, await bodies(queue, 100))) == list(range(100))


async def test_everything_about_a_message_arrives(channel: AbstractChannel) -> None:
    """This includes all properties, and headers of every type."""
    queue = await declare(channel)
    headers: dict[str, Any] = {
        "text": "ä",
        "binary": bytearray(b"\xff"),
        "small": 1,
        "large": 2**40,
        "float": 1.5,
        "yes": True,
        "nothing": None,
        "time": datetime(2026, 11, 21, tzinfo=UTC),
        "decimal": Decimal("1.5"),
        "list": [1, "two", {"three": 3}],
        "table": {"a": {"b": 1}},
    }
    sent = Message(
        b"body",
        headers=headers,
        content_type="application/json",
        content_encoding="utf-8",
        priority=3,
        correlation_id="correlation",
        reply_to="reply",
        message_id="message",
        timestamp=datetime(2026, 11, 21, tzinfo=UTC),
        type="type",
        app_id="app",
        user_id="guest",
        delivery_mode=2,
    )
    await channel.default_exchange.publish(sent, "queue")
    received = await get(queue)
    for name in (
        "headers",
        "priority",
        "reply_to",
        "timestamp",
        "type",
        "user_id",
        "delivery_mode",
        "app_id",
    ):
        assert getattr(received, name) == getattr(sent, name)
    for name in ("content_type", "content_encoding", "correlation_id", "message_id", "body"):
        assert getattr(received, name) == getattr(sent, name)


@pytest.mark.parametrize("size", [0, 1, 131064, 131065, 1_000_000])
async def test_bodies_of_any_size_arrive(channel: AbstractChannel, size: int) -> None:
    """They take as many frames as needed."""
    queue = await declare(channel)
    await put(channel, "x" * size)
    assert len((await get(queue)).body) == size


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"user_id": "bob"}, "user_id property set to 'bob' but authenticated user was 'guest'"),
        ({"headers": {"CC": "text"}}, "unacceptable_type_in_header"),
    ],
)
async def test_impossible_messages_close_the_channel(
    channel: AbstractChannel, options: dict[str, Any], text: str
) -> None:
    """The code is 406."""
    await declare(channel)
    with pytest.raises(ChannelClosed, match=text):
        await put(channel, "", **options)


async def test_a_body_over_16_mib_is_refused(
    channel: AbstractChannel, broker_version: tuple[int, ...]
) -> None:
    """RabbitMQ 3.10 accepts 128 MiB."""
    if broker_version < (4,):
        pytest.skip("RabbitMQ 3.10 takes 128 MiB")
    await declare(channel)
    with pytest.raises(
        ChannelClosed, match="message size 16777217 is larger than configured max size 16777216"
    ):
        await put(channel, "x" * (16 * 1024 * 1024 + 1))


# ── consuming ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_a_consumer_gets_what_is_there_and_what_comes(channel: AbstractChannel, kind: str) -> None:
    """The messages are in order, with ascending tags."""
    inbox = Inbox()
    queue = await declare(channel, x_queue_type=kind)
    await put(channel, "1", "2")
    await queue.consume(inbox.take)
    await put(channel, "3")
    messages = await inbox.receives(3)
    assert inbox.bodies == ["1", "2", "3"]
    assert [message.delivery_tag for message in messages] == [1, 2, 3]
    assert [message.redelivered for message in messages] == [False] * 3
    for message in messages:
        await message.ack()
    await channel.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_prefetch_limits_each_consumer(channel: AbstractChannel, kind: str) -> None:
    """An acknowledgement makes room for the next message."""
    inbox = Inbox()
    queue = await declare(channel, x_queue_type=kind)
    await channel.set_qos(prefetch_count=2)
    await queue.consume(inbox.take)
    await put(channel, "1", "2", "3", "4")
    await inbox.receives(2)
    assert await depth(channel) == 2
    await inbox.messages[0].ack()
    await inbox.receives(3)
    assert await depth(channel) == 1


async def test_a_global_prefetch(channel: AbstractChannel, broker_version: tuple[int, ...]) -> None:
    """RabbitMQ 4.3 applies it to each consumer, and 3.10 to the channel."""
    inbox = Inbox()
    await channel.set_qos(prefetch_count=3, global_=True)
    for name in ("one", "two"):
        await (await declare(channel, name)).consume(inbox.take)
    await put(channel, *"1234", queue="one")
    await put(channel, *"1234", queue="two")
    await inbox.receives(6 if broker_version >= (4, 3) else 3)
    left = await depth(channel, "one") + await depth(channel, "two")
    assert left == (2 if broker_version >= (4, 3) else 5)


async def test_consumers_take_turns(connection: AbstractConnection) -> None:
    """Each gets its share of the messages."""
    channel = await connection.channel()
    queue = await declare(channel)
    inboxes = [Inbox(), Inbox()]
    for inbox in inboxes:
        await queue.consume(inbox.take)
    await put(channel, *"123456")
    await until(lambda: sum(len(inbox.messages) for inbox in inboxes) == 6)
    assert [len(inbox.messages) for inbox in inboxes] == [3, 3]


async def test_without_acknowledgements_nothing_stays(channel: AbstractChannel) -> None:
    """Delivered messages do not come back."""
    inbox = Inbox()
    queue = await declare(channel)
    await channel.set_qos(prefetch_count=1)
    await put(channel, "1", "2", "3")
    await queue.consume(inbox.take, no_ack=True)
    await inbox.receives(3)
    assert await depth(channel) == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_an_ack_of_many_settles_all_up_to_it(connection: AbstractConnection, kind: str) -> None:
    """Later messages come back when the channel ends."""
    channel = await connection.channel()
    queue = await declare(channel, x_queue_type=kind)
    await put(channel, *"12345")
    messages = [await get(queue) for _ in range(5)]
    await messages[1].ack()
    await messages[2].ack(multiple=True)
    await channel.close()
    queue = await (await connection.channel()).get_queue("queue")
    assert await bodies(queue, 2) == ["4", "5"]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_given_back_is_redelivered(
    channel: AbstractChannel, kind: str, broker_version: tuple[int, ...]
) -> None:
    """A classic queue puts it at its old place, a quorum queue first on 4.3 and last on 3.10."""
    queue = await declare(channel, x_queue_type=kind)
    await put(channel, *"12345")
    first, second, third = [await get(queue) for _ in range(3)]
    for message in (third, first, second):
        await message.nack()
    await channel.declare_queue("queue", passive=True)
    again = [await get(queue) for _ in range(5)]
    order = "12345"
    if kind == "quorum":
        order = "31245" if broker_version >= (4, 3) else "45312"
    assert [message.body.decode() for message in again] == list(order)
    assert [message.redelivered for message in again] == [number in "123" for number in order]


async def test_an_unknown_delivery_tag_closes_the_channel(channel: AbstractChannel) -> None:
    """A settled tag is a 406 too, but settling all of none is no error."""
    amqp = await channel.get_underlay_channel()
    queue = await declare(channel)
    await amqp.basic_ack(0, multiple=True)
    await put(channel, "1")
    await (await get(queue)).ack()
    await amqp.basic_ack(1)
    with pytest.raises(ChannelPreconditionFailed, match="unknown delivery tag 1"):
        await declare(channel)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_rejected_message_is_gone(channel: AbstractChannel, kind: str) -> None:
    """With `requeue` it comes back."""
    queue = await declare(channel, x_queue_type=kind)
    await put(channel, "1", "2")
    await (await get(queue)).reject()
    message = await get(queue)
    await message.reject(requeue=True)
    again = await get(queue)
    assert (again.body, again.redelivered) == (b"2", True)


async def test_recover_gives_everything_back(channel: AbstractChannel) -> None:
    """Without `requeue` it is not implemented."""
    queue = await declare(channel)
    await put(channel, "1", "2")
    await bodies(queue, 2)
    await (await channel.get_underlay_channel()).basic_recover(requeue=True)
    assert await bodies(queue, 2) == ["1", "2"]
    with pytest.raises(ConnectionClosed, match="requeue=false"):
        await (await channel.get_underlay_channel()).basic_recover(requeue=False)


async def test_get_tells_how_many_are_left(channel: AbstractChannel) -> None:
    """An empty queue has an answer of its own."""
    queue = await declare(channel)
    await put(channel, "1", "2", "3")
    assert (await get(queue)).message_count == 2
    await bodies(queue, 2)
    assert await queue.get(fail=False) is None


async def test_a_cancelled_consumer_keeps_what_it_has(channel: AbstractChannel) -> None:
    """It gets nothing more, and can still settle."""
    inbox = Inbox()
    queue = await declare(channel)
    await put(channel, "1")
    tag = await queue.consume(inbox.take)
    (message,) = await inbox.receives(1)
    await queue.cancel(tag)
    await put(channel, "2")
    assert await depth(channel) == 1
    await message.nack()
    assert await bodies(queue, 2) == ["1", "2"]


async def test_what_a_lost_connection_had_goes_back(amqp_url: str, channel: AbstractChannel) -> None:
    """Another consumer gets it."""
    queue = await declare(channel)
    await put(channel, "1", "2")
    async with await aio_pika.connect(amqp_url) as other:
        await bodies(await (await other.channel()).get_queue("queue"), 2)
    assert await bodies(queue, 2) == ["1", "2"]


async def test_an_exclusive_consumer_is_alone(connection: AbstractConnection) -> None:
    """A second consumer gets a 403, and so does it when it is not the first."""
    channel = await connection.channel()
    queue = await declare(channel)
    tag = await queue.consume(Inbox().take, exclusive=True)
    other = await connection.channel()
    with pytest.raises(ChannelClosed, match=r"queue 'queue' in vhost '.*' in exclusive use"):
        await (await other.get_queue("queue")).consume(Inbox().take)
    await queue.cancel(tag)
    await queue.consume(Inbox().take)
    with pytest.raises(ChannelClosed, match="in exclusive use"):
        await queue.consume(Inbox().take, exclusive=True)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_single_active_consumer_is_followed_by_the_next(channel: AbstractChannel, kind: str) -> None:
    """The next one begins at once, although the first has unsettled messages."""
    first, second = Inbox(), Inbox()
    queue = await declare(channel, x_queue_type=kind, x_single_active_consumer=True)
    tag = await queue.consume(first.take)
    await queue.consume(second.take)
    await put(channel, "1", "2")
    await first.receives(2)
    await queue.cancel(tag)
    await put(channel, "3")
    await second.receives(1)
    assert (first.bodies, second.bodies) == (["1", "2"], ["3"])


@pytest.mark.parametrize("kind", KINDS)
async def test_who_follows_a_dead_consumer_starts_where_that_was(
    amqp_url: str, channel: AbstractChannel, kind: str
) -> None:
    """The dead consumer's messages come first."""
    first, second = Inbox(), Inbox()
    queue = await declare(channel, x_queue_type=kind, x_single_active_consumer=True)
    async with await aio_pika.connect(amqp_url) as other:
        theirs = await other.channel()
        await theirs.set_qos(prefetch_count=3)
        await (await theirs.get_queue("queue")).consume(first.take)
        await queue.consume(second.take)
        await put(channel, *"12345")
        await first.receives(3)
    await second.receives(5)
    assert second.bodies == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_consumers_of_a_deleted_queue_are_told(connection: AbstractConnection, kind: str) -> None:
    """They get `basic.cancel`, and can settle without an error."""
    channel = await connection.channel()
    amqp: Any = await channel.get_underlay_channel()
    inbox = Inbox()
    queue = await declare(channel, x_queue_type=kind)
    await put(channel, "1")
    tag = await queue.consume(inbox.take)
    (message,) = await inbox.receives(1)
    await (await connection.channel()).queue_delete("queue")
    # aiormq forgets the consumer when it hears of it.
    await until(lambda: tag not in amqp.consumers)
    await message.ack()
    await declare(channel, "another")
