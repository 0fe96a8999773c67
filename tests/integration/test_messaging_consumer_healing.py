"""A consumer on a real RabbitMQ that heals, stops in time, and survives errors of the library itself."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from hybridkit.context import RequestContext, bind
from hybridkit.errors import NotConnectedError, TopologyError
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.messaging._consuming import _consumer_channel as channel_module
from hybridkit.messaging._consuming import _subscription as subscription_module
from hybridkit.messaging._topology._declared import (
    DEAD_LETTER_EXCHANGE,
    DELAY_DELIVER_EXCHANGE,
    EVENT_EXCHANGE,
    declare,
    shared_topology,
)
from hybridkit.retry import Retry
from tests.helpers import plain_channel, until
from tests.helpers.consumers import Consumed, Ledger, consumer_of, proxied, read, waiting_in

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs", "no_jitter")]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


async def test_a_cancelled_consumer_is_not_ready_at_once(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger
) -> None:
    """Also while messages are in hand, and until the broker delivers again, on another channel."""
    consumer, go_on = RobustConsumer("tests.consumer"), asyncio.Event()

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        await ledger.add(event.number)
        await go_on.wait()

    async with consumer.running(connection, publisher=publisher):
        run = consumer._run
        assert run
        open_channel = run._channel.current
        assert open_channel
        await publisher.publish(Consumed(number=1))
        await ledger.reaches(1)
        run._cancelled(open_channel, None)
        ready_at_once = consumer.is_ready
        assert repr(run) == "Subscription('tests.consumer', is_ready=False, in_flight=1)"
        await until(lambda: consumer.is_ready)
        assert not ready_at_once
        assert run._channel.current is not open_channel
        await publisher.publish(Consumed(number=2))
        assert await ledger.reaches(2) == [1, 2]
        go_on.set()


async def test_a_consumer_that_the_broker_forgot_subscribes_again(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody says a word; the probe finds out."""
    monkeypatch.setattr(subscription_module, "PROBE_SECONDS", 0.1)
    consumer = consumer_of(ledger)
    async with consumer.running(connection, publisher=publisher):
        assert consumer._run
        open_channel = consumer._run._channel.current
        assert open_channel
        await consumer._run._probe(open_channel)
        await open_channel.raw.basic_cancel(consumer._run._tag)
        await until(open_channel.retired.is_set)
        await until(lambda: consumer.is_ready)
        await publisher.publish(Consumed(number=1))
        assert await ledger.reaches(1) == [1]


async def test_what_was_deleted_around_a_consumer_is_there_again(
    publisher: RobustPublisher,
    connection: BrokerConnection,
    ledger: Ledger,
    rabbitmq_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Publishers make an exchange again, without its bindings; the queue of the dead letters nobody makes but us."""
    monkeypatch.setattr(subscription_module, "BINDINGS_PER_PROBE", 1)
    consumer = RobustConsumer("tests.consumer")

    @consumer.on(Consumed, retry=Retry.exponential(first_seconds=1, cap_seconds=1, attempts=2))
    async def fail(event: Consumed) -> None:
        await ledger.add(event.number)
        raise ValueError("again, and then never")

    async with consumer.running(connection, publisher=publisher):
        open_connection = await connection.opened()
        channel = await open_connection.channel(confirms=False)
        for exchange in (EVENT_EXCHANGE, DELAY_DELIVER_EXCHANGE, DEAD_LETTER_EXCHANGE):
            await channel.exchange_delete(exchange)
        await channel.queue_delete("tests.consumer.dlq")
        await declare(shared_topology(), channel)
        run = consumer._run
        assert run
        open_channel = await run._channel.opened()
        for _ in run._own.bindings:
            await run._probe(open_channel)
        await publisher.publish(Consumed(number=1))
        assert await ledger.reaches(2) == [1, 1]
        assert (await read(rabbitmq_url, "tests.consumer.dlq")).headers["hk_reason"] == "exhausted"


async def test_what_can_not_be_declared_again_stops_nothing(
    publisher: RobustPublisher,
    connection: BrokerConnection,
    ledger: Ledger,
    logs: list[MutableMapping[str, Any]],
) -> None:
    """Somebody has made the queue of the dead letters another one: that is told, and the consumer goes on."""
    consumer = consumer_of(ledger)
    async with consumer.running(connection, publisher=publisher):
        channel = await (await connection.opened()).channel(confirms=False)
        await channel.queue_delete("tests.consumer.dlq")
        await channel.queue_declare("tests.consumer.dlq", durable=True)
        assert consumer._run
        open_channel = await consumer._run._channel.opened()
        await consumer._run._probe(open_channel)
        assert consumer.is_ready
        await publisher.publish(Consumed(number=1))
        assert await ledger.reaches(1) == [1]
        assert await consumer._run._channel.opened() is open_channel
    assert "topology not declared again" in [line["event"] for line in logs]


async def test_a_consumer_that_the_broker_forgot_beside_others_subscribes_again(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker tells how many consumers there are, not which; but messages wait, and none comes."""
    monkeypatch.setattr(subscription_module, "PROBE_SECONDS", 0.1)
    forgotten, other = consumer_of(ledger), RobustConsumer("tests.consumer", concurrency=1)
    go_on = asyncio.Event()

    @other.on(Consumed)
    async def block(event: Consumed) -> None:
        await go_on.wait()

    async with forgotten.running(connection, publisher=publisher):
        assert forgotten._run
        open_channel = forgotten._run._channel.current
        assert open_channel
        async with other.running(connection, publisher=publisher):
            await open_channel.raw.basic_cancel(forgotten._run._tag)
            await publisher.publish_many(Consumed(number=n) for n in range(20))
            assert len(await ledger.reaches(17)) == 17
            assert open_channel.retired.is_set()
            go_on.set()
            await until(lambda: other.in_flight == 0)


async def test_an_idle_consumer_beside_others_is_left_alone(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger
) -> None:
    """Nothing waits, or nothing has room here, or something came in between: no reason to subscribe again."""
    consumer, go_on = RobustConsumer("tests.consumer", concurrency=1), asyncio.Event()

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        await ledger.add(event.number)
        await go_on.wait()

    async with consumer.running(connection, publisher=publisher):
        run = consumer._run
        assert run
        open_channel = run._channel.current
        assert open_channel
        assert [run._is_starving(waiting) for waiting in (0, 5, 0, 5)] == [False] * 4
        await publisher.publish(Consumed())
        await ledger.reaches(1)
        assert not run._is_starving(5)
        await publisher.publish_many(Consumed() for _ in range(9))
        await until(lambda: consumer.in_flight == 3)
        assert not run._is_starving(5)
        assert not run._is_starving(5)
        await run._probe(open_channel)
        go_on.set()
        await ledger.reaches(10)


async def test_one_bad_queue_harms_no_other(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, rabbitmq_url: str
) -> None:
    """A 406 makes a robust connection of aio-pika reconnect for ever (trap 7). Here it is named at the start."""
    async with plain_channel(rabbitmq_url) as channel:
        await channel.declare_queue("tests.bad", durable=True)
    good = consumer_of(ledger)
    async with good.running(connection, publisher=publisher):
        open_connection = await connection.opened()
        with pytest.raises(TopologyError, match=r"tests\.bad"):
            await consumer_of(ledger, "tests.bad").start(connection, publisher=publisher)
        assert await connection.opened() is open_connection
        await publisher.publish(Consumed(number=1))
        assert await ledger.reaches(1) == [1]


async def test_a_channel_that_the_broker_closes_is_replaced(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger
) -> None:
    """Here for an acknowledgement of nothing (406); the connection stays."""
    consumer = consumer_of(ledger)
    async with consumer.running(connection, publisher=publisher):
        open_connection = await connection.opened()
        assert consumer._run
        open_channel = consumer._run._channel.current
        assert open_channel
        await open_channel.raw.basic_ack(99)
        await until(lambda: not open_channel.is_open)
        await publisher.publish(Consumed(number=1))
        assert await ledger.reaches(1) == [1]
        assert await connection.opened() is open_connection


async def test_a_start_without_a_broker_ends_with_the_context(
    publisher: RobustPublisher, ledger: Ledger, rabbitmq_url: str
) -> None:
    """It raises at the context's deadline, and a later start succeeds."""
    consumer = consumer_of(ledger)
    async with proxied(rabbitmq_url) as (proxy, connection):
        proxy.freeze()
        with (
            bind(RequestContext().within(0.3)),
            pytest.raises(NotConnectedError, match=r"not up after 0\.3 s"),
        ):
            await consumer.start(connection, publisher=publisher)
        assert not consumer.is_ready
        proxy.let_pass()
        async with consumer.running(connection, publisher=publisher):
            assert consumer.is_ready


async def test_a_start_that_is_cancelled_can_be_tried_again(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger
) -> None:
    """Wherever the cancellation hits it, nothing is left behind that keeps the next start from working."""
    consumer = consumer_of(ledger)
    for turns in range(0, 40, 8):
        task = asyncio.create_task(consumer.start(connection, publisher=publisher))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with consumer.running(connection, publisher=publisher):
        await publisher.publish(Consumed(number=1))
        assert await ledger.reaches(1) == [1]


async def test_a_drain_finishes_what_runs_and_leaves_the_rest(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, rabbitmq_url: str
) -> None:
    """One handler runs, two messages wait behind it in this process, more in the queue."""
    consumer = RobustConsumer("tests.consumer", concurrency=1)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        begun.set()
        await go_on.wait()
        await ledger.add(event.number)

    await consumer.start(connection, publisher=publisher)
    await publisher.publish_many(Consumed(number=n) for n in range(5))
    await begun.wait()
    await until(lambda: consumer.in_flight == 3)
    drain = asyncio.create_task(consumer.drain(budget_seconds=10))
    await until(lambda: not consumer.is_ready)
    go_on.set()
    assert await drain
    assert ledger.entries == [0]
    assert await waiting_in(rabbitmq_url, "tests.consumer") == 4


async def test_what_arrives_while_stopping_goes_back(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, rabbitmq_url: str
) -> None:
    """A delivery after the beginning of a drain runs nowhere here, and is in the queue after it."""
    consumer = consumer_of(ledger)
    await consumer.start(connection, publisher=publisher)
    assert consumer._run
    consumer._run._draining = True
    await publisher.publish(Consumed(number=1))
    assert await waiting_in(rabbitmq_url, "tests.consumer") == 0
    assert await consumer.drain(budget_seconds=5)
    assert await waiting_in(rabbitmq_url, "tests.consumer") == 1
    assert ledger.entries == []


async def test_a_drain_acknowledges_what_is_done(
    publisher: RobustPublisher,
    connection: BrokerConnection,
    ledger: Ledger,
    rabbitmq_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Acknowledgements are collected for a moment; a drain doesn't wait for it. The others stay."""
    monkeypatch.setattr(channel_module, "ACK_SECONDS", 60.0)
    consumer = RobustConsumer("tests.consumer")

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        await ledger.add(event.number)
        if event.number != 1:
            await asyncio.sleep(60)

    await consumer.start(connection, publisher=publisher)
    await publisher.publish_many(Consumed(number=n) for n in range(20))
    await ledger.reaches(17)
    await until(lambda: consumer.in_flight == 19)
    assert not await consumer.drain(budget_seconds=0.5)

    async def are_back() -> bool:
        return await waiting_in(rabbitmq_url, "tests.consumer") == 19

    await until(are_back)


async def test_a_handler_that_cancels_itself_holds_no_message(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger
) -> None:
    """Nobody else asked for it, so the message goes back into its queue and comes again."""
    consumer = RobustConsumer("tests.consumer")

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        await ledger.add(event.number)
        task = asyncio.current_task()
        if len(ledger.entries) == 1 and task:
            task.cancel()
            await asyncio.sleep(0)

    async with consumer.running(connection, publisher=publisher):
        await publisher.publish(Consumed(number=1))
        assert await ledger.reaches(2) == [1, 1]


async def test_a_drain_ends_in_time(
    publisher: RobustPublisher, connection: BrokerConnection, rabbitmq_url: str
) -> None:
    """A handler that doesn't end is cancelled, and its message goes back to the queue."""
    consumer = RobustConsumer("tests.consumer")
    begun, ended = asyncio.Event(), asyncio.Event()

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    await consumer.start(connection, publisher=publisher)
    await publisher.publish(Consumed())
    await begun.wait()
    async with asyncio.timeout(60):
        assert not await consumer.drain(budget_seconds=0.5)
    assert ended.is_set()
    assert await waiting_in(rabbitmq_url, "tests.consumer") == 1


async def test_a_drain_without_a_broker_ends_in_time(
    publisher: RobustPublisher, ledger: Ledger, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer to its cancellation is waited for beyond the budget."""
    monkeypatch.setattr(subscription_module, "CANCEL_SECONDS", 0.1)
    consumer = consumer_of(ledger)
    async with proxied(rabbitmq_url) as (proxy, connection):
        await consumer.start(connection, publisher=publisher)
        proxy.freeze()
        async with asyncio.timeout(20):
            assert await consumer.drain(budget_seconds=0.5)
        proxy.let_pass()


async def test_a_message_that_trips_us_up_comes_again(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the processing must neither lose a message nor hold it for ever."""
    consumer = consumer_of(ledger)
    async with consumer.running(connection, publisher=publisher):
        assert consumer._run
        process, trips = consumer._run._processor.process, 0

        async def trip(delivery: Any) -> None:
            nonlocal trips
            trips += 1
            if trips < 3:
                raise LookupError("a bug")
            await process(delivery)

        monkeypatch.setattr(consumer._run._processor, "process", trip)
        await publisher.publish(Consumed(number=1))
        assert await ledger.reaches(1) == [1]
