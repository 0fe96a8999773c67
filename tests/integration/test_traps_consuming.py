"""Traps 3, 7 and 8: what plain aio-pika does when consuming goes wrong, and beside it what the consumer does.

A test named `plain` shows that the trap is there: it fails when the library no longer has it.
"""

import asyncio
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from hybridkit.dev import Server
from hybridkit.events import Event
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from tests.helpers import until

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]


class Consumed(Event, type="traps.consumed"):
    number: int = 0


def consumer_of(seen: asyncio.Queue[int], name: str = "tests.consumer") -> RobustConsumer:
    consumer = RobustConsumer(name)

    @consumer.on(Consumed)
    async def note(event: Consumed) -> None:
        await seen.put(event.number)

    return consumer


async def ignore(message: object) -> None: ...


# ── 3: a consumer that the broker cancels is silent ──────────────────────────────────────────────


async def test_3_plain_a_cancelled_consumer_is_silent(broker: Any) -> None:
    """When its queue is deleted and back, aio-pika's consumer is gone without an error, on an open channel."""
    async with broker.channel() as channel, broker.channel() as other:
        queue = await channel.declare_queue("tasks", durable=True)
        await queue.consume(ignore)
        underlay = await channel.get_underlay_channel()
        await other.queue_delete("tasks")
        await until(lambda: not underlay.consumers)
        await other.declare_queue("tasks", durable=True)
        await other.default_exchange.publish(aio_pika.Message(b""), "tasks")
        assert await broker.state("tasks") == (1, 0)
        assert not channel.is_closed


async def test_3_ours_a_cancelled_consumer_comes_back(broker: Any, publisher: RobustPublisher) -> None:
    """Our consumer subscribes again at once, and not only at the probe after 15 s."""
    seen = asyncio.Queue[int]()
    consumer = consumer_of(seen)
    async with (
        BrokerConnection(broker.url, name="tests") as connection,
        consumer.running(connection, publisher=publisher),
        asyncio.timeout(60),
    ):
        async with broker.channel() as other:
            await other.queue_delete("tests.consumer")
        await until(lambda: not consumer.is_ready)
        await until(lambda: consumer.is_ready)
        await publisher.publish(Consumed(number=1))
        assert await seen.get() == 1


async def test_3_plain_and_ours_when_a_message_is_held_too_long(
    own_rabbitmq_server: Server, broker: Any
) -> None:
    """When RabbitMQ 4.3 cancels a consumer over its timeout, aio-pika's is silent and ours comes back."""
    if await broker.version() < (4, 3):
        pytest.skip("before RabbitMQ 4.3 the channel is closed, which a client notices")
    url, broker = own_rabbitmq_server.url, broker.at(own_rabbitmq_server.url)
    policy = ("impatient", ".*", '{"consumer-timeout": 1000}', "--apply-to", "queues")
    await asyncio.to_thread(own_rabbitmq_server.ctl, "set_policy", *policy)
    consumer, seen, go_on = RobustConsumer("tests.consumer"), asyncio.Queue[int](), asyncio.Event()

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        await seen.put(event.number)
        await go_on.wait()

    async with (
        broker.channel() as channel,
        RobustPublisher(url, service="tests") as publisher,
        BrokerConnection(url, name="tests") as connection,
        consumer.running(connection, publisher=publisher),
    ):
        queue = await channel.declare_queue("tasks", durable=True, arguments={"x-queue-type": "quorum"})
        await queue.consume(ignore)
        await channel.default_exchange.publish(aio_pika.Message(b""), "tasks")
        await publisher.publish(Consumed(number=1))
        underlay = await channel.get_underlay_channel()
        await until(lambda: not underlay.consumers)
        await until(lambda: seen.qsize() > 1)
        await until(lambda: consumer.is_ready)
        assert (await broker.state("tasks"))[0] == 1
        assert not channel.is_closed
        go_on.set()


# ── 7: one queue that can't be declared stops all that share its connection ──────────────────────


async def replace(broker: Any, queue: str) -> None:
    """Declare a queue of that name with other properties."""
    async with broker.channel() as other:
        await other.queue_delete(queue)
        await other.declare_queue(queue, durable=True, arguments={"x-max-length": 1})


async def test_7_plain_one_bad_queue_ends_the_connection_again_and_again(broker: Any) -> None:
    """One bad queue makes aio-pika's robust connection reconnect for ever, so that no other consumer stays."""
    ended = list[object]()
    async with (
        broker.proxied() as (proxy, url),
        await aio_pika.connect_robust(url, reconnect_interval=0.05) as connection,
    ):

        async def note(*_: object) -> None:
            ended.append(None)

        connection.close_callbacks.add(note)
        good = await (await connection.channel()).declare_queue("good", durable=True)
        await good.consume(ignore)
        bad = await connection.channel()
        await bad.declare_queue("bad", durable=True)
        await replace(broker, "bad")
        proxy.reset()
        await until(lambda: len(ended) > 5)


async def test_7_plain_a_channel_that_was_not_restored_once_is_dead(broker: Any) -> None:
    """A channel of aio-pika whose restore failed once hangs for ever on a connection that says it is open."""
    async with await aio_pika.connect_robust(broker.url, reconnect_interval=0.05) as connection:
        channel: Any = await connection.channel()
        await channel.declare_queue("bad", durable=True)
        await replace(broker, "bad")
        underlay = await channel.get_underlay_channel()
        await underlay.basic_ack(99)
        # A queue that is deleted before the restore has met it would not be in its way.
        await until(lambda: channel._channel is None or channel._channel.channel is not underlay)
        await until(lambda: channel._channel is None or channel._channel.channel.is_closed)
        async with broker.channel() as other:
            await other.queue_delete("bad")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel.declare_queue("other"), 1)
        assert connection.connected.is_set()
        assert not connection.is_closed


async def test_7_ours_one_bad_queue_harms_no_other(broker: Any, publisher: RobustPublisher) -> None:
    """A consumer whose queue is refused stays down alone: the other one comes back, and the connection stays."""
    seen, nothing = asyncio.Queue[int](), asyncio.Queue[int]()
    good, bad = consumer_of(seen, "tests.good"), consumer_of(nothing, "tests.bad")
    async with (
        broker.proxied() as (proxy, url),
        BrokerConnection(url, name="tests") as connection,
        good.running(connection, publisher=publisher),
        bad.running(connection, publisher=publisher),
    ):
        await replace(broker, "tests.bad")
        await until(lambda: not bad.is_ready)
        proxy.reset()
        await until(lambda: not good.is_ready)
        await until(lambda: good.is_ready)
        open_connection = await connection.opened()
        await publisher.publish(Consumed(number=1))
        assert await asyncio.wait_for(seen.get(), 30) == 1
        assert not bad.is_ready
        assert await connection.opened() is open_connection


# ── 8: a handler is cancelled when the connection drops ──────────────────────────────────────────


async def test_8_plain_a_running_handler_is_cancelled_when_the_connection_drops(broker: Any) -> None:
    """aiormq cancels a running handler when the connection drops."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def handle(message: AbstractIncomingMessage) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with (
        broker.proxied() as (proxy, url),
        await aio_pika.connect_robust(url, reconnect_interval=0.05) as connection,
    ):
        channel = await connection.channel()
        queue = await channel.declare_queue("tasks", durable=True)
        await queue.consume(handle)
        await channel.default_exchange.publish(aio_pika.Message(b""), "tasks")
        await begun.wait()
        proxy.reset()
        async with asyncio.timeout(60):
            await cancelled.wait()


async def test_8_ours_a_running_handler_ends_by_itself(broker: Any, publisher: RobustPublisher) -> None:
    """A handler that runs while the connection drops is not cancelled."""
    consumer = RobustConsumer("tests.consumer")
    begun, go_on, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        begun.set()
        await go_on.wait()
        finished.set()

    async with (
        broker.proxied() as (proxy, url),
        BrokerConnection(url, name="tests") as connection,
        consumer.running(connection, publisher=publisher),
    ):
        await publisher.publish(Consumed())
        await begun.wait()
        proxy.reset()
        await until(lambda: not consumer.is_ready)
        await until(lambda: consumer.is_ready)
        go_on.set()
        async with asyncio.timeout(60):
            await finished.wait()
