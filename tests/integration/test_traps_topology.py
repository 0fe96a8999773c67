"""Traps 6 and 11 to 15: messages that RabbitMQ loses or holds up in the obvious topology, and not in ours.

A test named `plain` shows that the trap is there: it fails when the broker or the library no longer has it. Where a
version has none, it is skipped and says since when.
"""

import asyncio
from importlib.metadata import version
from typing import Any

import aio_pika
import pytest
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel
from pamqp.commands import Basic

from hybridkit.errors import UnroutableError
from hybridkit.events import Command, Event
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.retry import Retry
from tests.helpers import until

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs", "no_jitter")]

AIO_PIKA = tuple(map(int, version("aio-pika").split(".")[:3]))


class Noted(Event, type="traps.noted"):
    number: int = 0


class Unwanted(Event, type="traps.unrouted"):
    pass


class Work(Command, queue="traps_alive", type="traps.work"):
    number: int = 0


class Gone(Command, queue="traps_gone", type="traps.gone"):
    number: int = 0


async def declare_consumer(connection: BrokerConnection, publisher: RobustPublisher) -> None:
    """Start and drain a consumer, which leaves its queues behind."""
    consumer = RobustConsumer("tests.consumer")

    @consumer.on(Noted)
    async def handle(event: Noted) -> None: ...

    async with consumer.running(connection, publisher=publisher):
        pass


async def delay_queue(channel: AbstractChannel, name: str, *, milliseconds: int, then: str) -> None:
    """Declare a queue whose messages expire into another one."""
    arguments: dict[str, Any] = {
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": then,
    }
    await channel.declare_queue(name, durable=True, arguments=arguments)


# ── 6: a retry that keeps its death headers is lost on its second way through the delay levels ───


async def test_6_plain_the_second_retry_of_a_message_is_lost(broker: Any) -> None:
    """A copy with `x-death` is dropped at the second delay level as a loop, and one without it gets through."""
    if await broker.version() >= (4, 0, 1):
        pytest.skip("RabbitMQ 4.0.1 no longer reads x-death from what clients publish")
    async with broker.channel() as channel:
        await delay_queue(channel, "level_1", milliseconds=50, then="level_0")
        await delay_queue(channel, "level_0", milliseconds=50, then="work")
        await channel.declare_queue("work", durable=True)
        await channel.default_exchange.publish(aio_pika.Message(b"first"), "level_1")
        failed = await broker.read("work")
        retry = aio_pika.Message(b"retry", headers=failed.headers)
        await channel.default_exchange.publish(retry, "level_1")
        await channel.default_exchange.publish(aio_pika.Message(b"without headers"), "level_1")
    assert (await broker.read("work")).body == b"without headers"
    assert await broker.state("work") == (0, 0)


async def test_6_ours_every_retry_comes_through_the_delay_levels(
    publisher: RobustPublisher, connection: BrokerConnection
) -> None:
    """Each retry of a message passes both delay levels of its 3 s."""
    consumer, times = RobustConsumer("tests.consumer"), asyncio.Queue[float]()
    loop = asyncio.get_running_loop()

    @consumer.on(Noted, retry=Retry.exponential(first_seconds=3, cap_seconds=3))
    async def handle(event: Noted) -> None:
        await times.put(loop.time())
        if times.qsize() < 3:
            raise OSError("not yet")

    async with consumer.running(connection, publisher=publisher):
        await publisher.publish(Noted())
        await until(lambda: times.qsize() == 3)
    first, second, third = [times.get_nowait() for _ in range(3)]
    assert 2.9 < second - first < 6
    assert 2.9 < third - second < 6


# ── 11: of several bindings between two exchanges one is restored ────────────────────────────────


async def deleted(broker: Any, *exchanges: str) -> None:
    async with broker.channel() as other:
        for exchange in exchanges:
            await other.exchange_delete(exchange)


@pytest.mark.skipif(AIO_PIKA >= (10, 2), reason="aio-pika 10.2 remembers every routing key")
async def test_11_plain_one_of_two_bindings_is_restored(broker: Any) -> None:
    """aio-pika's robust connection restores only the last of two bindings between exchanges."""
    async with (
        broker.proxied() as (proxy, url),
        await aio_pika.connect_robust(url, reconnect_interval=0.05) as connection,
    ):
        channel = await connection.channel(on_return_raises=True)
        source = await channel.declare_exchange("source", ExchangeType.TOPIC)
        target = await channel.declare_exchange("target", ExchangeType.FANOUT)
        await target.bind(source, "first")
        await target.bind(source, "second")
        queue = await channel.declare_queue("wanted")
        await queue.bind(target)
        await deleted(broker, "target")
        restored = asyncio.Event()

        async def note(*_: object) -> None:
            restored.set()

        connection.reconnect_callbacks.add(note)
        proxy.reset()
        await restored.wait()
        assert isinstance(await source.publish(aio_pika.Message(b""), "second"), Basic.Ack)
        with pytest.raises(aio_pika.exceptions.PublishError):
            await source.publish(aio_pika.Message(b""), "first")


async def test_11_ours_every_binding_is_declared_again(broker: Any) -> None:
    """The bindings between the delay exchanges exist after a reconnect: a delay of 2 s passes one."""
    consumer, done = RobustConsumer("traps_alive"), asyncio.Event()

    @consumer.on(Work)
    async def work(command: Work) -> None:
        done.set()

    async with (
        broker.proxied() as (proxy, url),
        RobustPublisher(url, service="tests") as publisher,
        BrokerConnection(url, name="tests") as connection,
        consumer.running(connection, publisher=publisher),
    ):
        await deleted(broker, "hk.delay.L1", "hk.delay.L0", "hk.delay.deliver")
        proxy.reset()
        await until(lambda: not (publisher.is_ready or consumer.is_ready))
        await until(lambda: publisher.is_ready and consumer.is_ready)
        await publisher.send(Work(), delay_seconds=2)
        async with asyncio.timeout(60):
            await done.wait()


# ── 12: with an alternate exchange, mandatory means nothing ──────────────────────────────────────


async def test_12_plain_an_event_that_nobody_wants_is_confirmed(broker: Any) -> None:
    """With an alternate exchange, an event that no queue wants is confirmed and never returned."""
    async with broker.channel(on_return_raises=True) as channel:
        await channel.declare_exchange("parking", ExchangeType.FANOUT, durable=True)
        await (await channel.declare_queue("parking", durable=True)).bind("parking")
        events = await channel.declare_exchange(
            "events", ExchangeType.TOPIC, durable=True, arguments={"alternate-exchange": "parking"}
        )
        answer = await events.publish(aio_pika.Message(b""), "nobody.wants.it", mandatory=True)
    assert isinstance(answer, Basic.Ack)


async def test_12_ours_an_event_that_nobody_wants_is_an_error(publisher: RobustPublisher) -> None:
    """The event exchange has no alternate exchange, so an event without a queue is returned."""
    with pytest.raises(UnroutableError):
        await publisher.publish(Unwanted())


# ── 13: messages whose target is gone stall a delay queue ────────────────────────────────────────


async def test_13_plain_messages_without_a_target_stall_all_behind_them(broker: Any) -> None:
    """Forty expired messages without a target hold up the one behind them for seconds."""
    async with broker.channel() as channel:
        delay = await channel.declare_exchange("delay", ExchangeType.FANOUT, durable=True)
        deliver = await channel.declare_exchange("deliver", ExchangeType.DIRECT, durable=True)
        waiting = await channel.declare_queue(
            "waiting",
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-message-ttl": 1000,
                "x-dead-letter-exchange": "deliver",
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        )
        await waiting.bind(delay)
        await (await channel.declare_queue("alive", durable=True)).bind(deliver, "alive")
        await delay_queue(channel, "clock", milliseconds=4000, then="struck")
        await channel.declare_queue("struck", durable=True)
        for target in ["gone"] * 40 + ["alive"]:
            await delay.publish(aio_pika.Message(b""), target)
        await channel.default_exchange.publish(aio_pika.Message(b""), "clock")
    await broker.read("struck")
    assert (await broker.state("alive"))[0] == 0


async def test_13_ours_messages_without_a_target_are_parked(broker: Any, publisher: RobustPublisher) -> None:
    """Forty delayed commands without a queue go to `hk.unrouted`, and don't hold up the one behind them."""
    async with broker.channel() as channel:
        queue = await channel.declare_queue("traps_alive", durable=True)
        await queue.bind("hk.delay.deliver", "*." * 17 + "traps_alive")
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(publisher.send(Gone(number=n), delay_seconds=1) for n in range(40)))
    began = loop.time()
    await publisher.send(Work(), delay_seconds=1)
    await broker.read("traps_alive")
    assert loop.time() - began < 30
    assert (await broker.state("hk.unrouted"))[0] == 40


# ── 14: a dead letter that keeps its routing key is lost ─────────────────────────────────────────


async def test_14_plain_a_rejected_message_is_lost(broker: Any) -> None:
    """A rejected message is lost where the queue has no `x-dead-letter-routing-key`."""
    async with broker.channel() as channel:
        dead = await channel.declare_exchange("dead", ExchangeType.DIRECT, durable=True)
        await (await channel.declare_queue("work.dlq", durable=True)).bind(dead, "work")
        events = await channel.declare_exchange("events", ExchangeType.TOPIC, durable=True)
        work = await channel.declare_queue("work", durable=True, arguments={"x-dead-letter-exchange": "dead"})
        await work.bind(events, "user.created")
        await events.publish(aio_pika.Message(b"event"), "user.created")
        await channel.default_exchange.publish(aio_pika.Message(b"direct"), "work")
        for _ in range(2):
            message = await work.get()
            await message.reject(requeue=False)
    assert (await broker.read("work.dlq")).body == b"direct"
    assert await broker.state("work.dlq") == await broker.state("work") == (0, 0)


async def test_14_ours_a_rejected_message_is_a_dead_letter(
    broker: Any, publisher: RobustPublisher, connection: BrokerConnection
) -> None:
    """A message that a tool rejects gets to our dead-letter queue."""
    await declare_consumer(connection, publisher)
    await publisher.publish(Noted(number=1))
    async with broker.channel() as channel:
        message = await (await channel.get_queue("tests.consumer")).get()
        await message.reject(requeue=False)
    assert b'"number":1' in (await broker.read("tests.consumer.dlq")).body


# ── 15: a dead-letter queue forgets what is looked at too often ──────────────────────────────────


async def look_into(broker: Any, queue: str, *, times: int) -> None:
    """Take and return the messages of a queue, each time as a delivery that isn't acknowledged."""
    async with await aio_pika.connect(broker.url) as connection:
        for _ in range(times):
            async with connection.channel() as channel:
                looked = asyncio.Queue[object]()
                await (await channel.get_queue(queue)).consume(looked.put)
                await asyncio.wait_for(looked.get(), 30)


async def test_15_plain_a_dead_letter_vanishes_after_some_looks(broker: Any) -> None:
    """A dead letter vanishes after 21 looks on RabbitMQ 4 (a queue without a limit), or after one on 3.10 (with -1)."""
    modern = await broker.version() >= (4, 0)
    arguments = {"x-queue-type": "quorum"} | ({} if modern else {"x-delivery-limit": -1})
    async with broker.channel() as channel:
        await channel.declare_queue("work.dlq", durable=True, arguments=arguments)
        await channel.default_exchange.publish(aio_pika.Message(b"looked at"), "work.dlq")
        await look_into(broker, "work.dlq", times=21 if modern else 1)
        await channel.default_exchange.publish(aio_pika.Message(b"new"), "work.dlq")
    assert (await broker.read("work.dlq")).body == b"new"
    assert await broker.state("work.dlq") == (0, 0)


async def test_15_ours_a_dead_letter_stays(
    broker: Any, publisher: RobustPublisher, connection: BrokerConnection
) -> None:
    """A dead letter survives 30 looks by a tool that returns it each time."""
    await declare_consumer(connection, publisher)
    async with broker.channel() as channel:
        await channel.default_exchange.publish(aio_pika.Message(b"looked at"), "tests.consumer.dlq")
    await look_into(broker, "tests.consumer.dlq", times=30)
    assert (await broker.read("tests.consumer.dlq")).body == b"looked at"
