"""Consumers on a real RabbitMQ: they heal, they can prove it, and no message is lost on any way out of a handler."""

import asyncio
import struct
from collections.abc import AsyncGenerator, MutableMapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import urlsplit

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from hybridkit.context import RequestContext, bind
from hybridkit.coordination import connect_redis
from hybridkit.dev import Server
from hybridkit.errors import DeclarationError, NotConnectedError, TopologyError
from hybridkit.events import Command, Event, EventEnvelope
from hybridkit.events.cloudevents import to_structured
from hybridkit.idempotency import IdempotencyGuard
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
from hybridkit.testing import FaultProxy
from tests.helpers import plain_channel, until

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs", "no_jitter")]


class Consumed(Event, type="consumer.consumed"):
    number: int = 0


class Reported(Event, type="consumer.reported"):
    number: int


class Task(Command, queue="consumer_tasks", type="consumer.task"):
    number: int


MIB = 1024 * 1024

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Ledger:
    """What handlers did, and the words with which a test waits for it."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self._changed = asyncio.Condition()

    async def add(self, entry: Any) -> None:
        async with self._changed:
            self.entries.append(entry)
            self._changed.notify_all()

    async def reaches(self, count: int) -> list[Any]:
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: len(self.entries) >= count)
        return self.entries


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def consumer_of(ledger: Ledger, name: str = "tests.consumer", **options: Any) -> RobustConsumer:
    """A consumer that writes down the numbers of its events."""
    consumer = RobustConsumer(name, **options)

    @consumer.on(Consumed)
    async def note(event: Consumed) -> None:
        await ledger.add(event.number)

    return consumer


async def read(url: str, name: str) -> AbstractIncomingMessage:
    """The next message of the queue; waits for it."""
    async with plain_channel(url) as channel, asyncio.timeout(60):
        queue = await channel.get_queue(name)
        async with queue.iterator(no_ack=True) as messages:
            return await anext(messages)


async def waiting_in(url: str, name: str) -> int:
    """How many messages are ready in the queue."""
    async with plain_channel(url) as channel:
        queue = await channel.declare_queue(name, passive=True)
        return queue.declaration_result.message_count or 0


async def limit_messages(server: Server, size_bytes: int) -> None:
    """Set `max_message_size` for the channels to come; RabbitMQ keeps it in one place or the other."""
    for place in (
        "application:set_env(rabbit, max_message_size, {}).",
        "persistent_term:put(max_message_size, {}).",
    ):
        await asyncio.to_thread(server.ctl, "eval", place.format(size_bytes))


@asynccontextmanager
async def proxied(url: str) -> AsyncGenerator[tuple[FaultProxy, BrokerConnection]]:
    """A connection for consumers whose network can fail."""
    parts = urlsplit(url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 0) as proxy,
        BrokerConnection(proxy.url_for(url), name="tests") as connection,
    ):
        yield proxy, connection


# ── the way through ──────────────────────────────────────────────────────────────────────────────


async def test_events_and_commands_reach_their_handlers(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, rabbitmq_url: str
) -> None:
    """With what the process provides, in the context of whoever published."""
    consumer = RobustConsumer("consumer_tasks")

    @consumer.on(Consumed)
    async def first(
        event: Consumed, context: RequestContext, publisher: RobustPublisher, ledger: Ledger
    ) -> None:
        await ledger.add((event.number, context.request_id))
        await publisher.send(Task(number=event.number + 1))

    @consumer.on(Task)
    async def second(command: Task, context: RequestContext, ledger: Ledger) -> None:
        await ledger.add((command.number, context.request_id))

    async with consumer.running(connection, publisher=publisher, providers={Ledger: ledger}):
        assert consumer.is_ready
        with bind(RequestContext(request_id="req-1")):
            await publisher.publish(Consumed(number=1))
        assert await ledger.reaches(2) == [(1, "req-1"), (2, "req-1")]
        await until(lambda: consumer.in_flight == 0)
    assert await waiting_in(rabbitmq_url, "consumer_tasks") == 0


async def test_cloudevents_are_read_in_both_forms(
    connection: BrokerConnection, ledger: Ledger, rabbitmq_url: str, redis_url: str
) -> None:
    """From our publisher in binary mode, from anybody in structured mode; once each, however often they come."""
    event = Consumed(number=2)
    structured = to_structured(EventEnvelope.wrap(event, service="elsewhere"))
    async with (
        connect_redis(redis_url) as redis,
        RobustPublisher(rabbitmq_url, service="tests", cloudevents=True) as publisher,
        consumer_of(ledger).running(connection, publisher=publisher, guard=IdempotencyGuard(redis)),
        plain_channel(rabbitmq_url) as channel,
    ):
        binary = Consumed(number=1)
        for _ in range(2):
            await publisher.publish(binary)
            exchange = await channel.get_exchange("hk.events")
            message = aio_pika.Message(structured, content_type="application/cloudevents+json")
            await exchange.publish(message, Consumed.message_type)
        await publisher.publish(Consumed(number=3))
        await ledger.reaches(3)
        assert sorted(ledger.entries) == [1, 2, 3]


async def test_each_queue_gets_every_event_it_wants(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger
) -> None:
    """Two consumers of one type each get the event."""
    other = Ledger()
    async with (
        consumer_of(ledger).running(connection, publisher=publisher),
        consumer_of(other, "tests.other").running(connection, publisher=publisher),
    ):
        await publisher.publish(Consumed(number=1))
        assert await ledger.reaches(1) == await other.reaches(1) == [1]


async def test_no_more_handlers_run_than_the_consumer_allows(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, broker: Any
) -> None:
    """And no more messages are taken from the queue than three for each."""
    running, most, goes_on = 0, 0, asyncio.Event()
    consumer = RobustConsumer("tests.consumer", concurrency=2)

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await goes_on.wait()
        running -= 1
        await ledger.add(event.number)

    async with consumer.running(connection, publisher=publisher):
        await publisher.publish_many(Consumed(number=n) for n in range(20))
        async with asyncio.timeout(60):
            while await broker.state("tests.consumer") != (14, 1) or consumer.in_flight < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (running, consumer.in_flight) == (2, 6)
        goes_on.set()
        assert sorted(await ledger.reaches(20)) == list(range(20))
    assert most == 2


async def test_a_plain_publishers_bad_messages_do_not_stop_the_good(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, rabbitmq_url: str
) -> None:
    """No headers, no content type, no message id: the body decides. What can't be read is kept, with the reason."""
    good = (
        b'{"event_type":"consumer.consumed","event_id":"%s","timestamp":"2026-01-01T00:00:00Z",'
        % (str(Consumed().event_id).encode())
        + b'"service":"php","request_id":"r","data":{"number":5}}'
    )
    async with consumer_of(ledger).running(connection, publisher=publisher):
        async with plain_channel(rabbitmq_url) as channel:
            events = await channel.get_exchange("hk.events")
            await events.publish(aio_pika.Message(b"no json"), routing_key=Consumed.message_type)
            await events.publish(aio_pika.Message(good), routing_key=Consumed.message_type)
        assert await ledger.reaches(1) == [5]
        dead = await read(rabbitmq_url, "tests.consumer.dlq")
    assert dead.body == b"no json"
    assert dead.headers["hk_reason"] == "malformed"
    assert dead.headers["hk_queue"] == "tests.consumer"


async def test_properties_that_can_not_be_decoded_stop_nobody(
    publisher: RobustPublisher,
    connection: BrokerConnection,
    ledger: Ledger,
    rabbitmq_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A timestamp of the year 292277026596 ends a plain connection at each delivery, with all consumers on it."""
    async with consumer_of(ledger).running(connection, publisher=publisher):
        open_connection = await connection.opened()
        async with plain_channel(rabbitmq_url) as channel:
            hostile = aio_pika.Message(b"no json", headers={"when": datetime.now(UTC)}, timestamp=1)
            with monkeypatch.context() as patch:
                patch.setattr("pamqp.encode.timestamp", lambda _: struct.pack(">Q", 2**63))
                await channel.default_exchange.publish(hostile, routing_key="tests.consumer")
        await publisher.publish(Consumed(number=1))
        assert await ledger.reaches(1) == [1]
        assert (await read(rabbitmq_url, "tests.consumer.dlq")).headers["hk_reason"] == "malformed"
        assert await connection.opened() is open_connection


async def test_a_slow_message_holds_nobody_up(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, rabbitmq_url: str
) -> None:
    """What is done behind it is acknowledged one by one: many more come than may be unacknowledged."""
    consumer, go_on = RobustConsumer("tests.consumer", concurrency=2), asyncio.Event()

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        if event.number == 0:
            await go_on.wait()
        await ledger.add(event.number)

    async with consumer.running(connection, publisher=publisher):
        await publisher.publish_many(Consumed(number=n) for n in range(100))
        assert sorted(await ledger.reaches(99)) == list(range(1, 100))
        go_on.set()
        await ledger.reaches(100)
    assert await waiting_in(rabbitmq_url, "tests.consumer") == 0


async def test_a_message_sees_no_variables_of_another(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger
) -> None:
    """Each handler begins with the context variables that the process had at the start."""
    consumer = RobustConsumer("tests.consumer", concurrency=1)

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        await ledger.add(tenant.get())
        tenant.set(f"of {event.number}")

    tenant.set("the process's")
    async with consumer.running(connection, publisher=publisher):
        await publisher.publish_many(Consumed(number=n) for n in range(3))
        assert await ledger.reaches(3) == ["the process's"] * 3


# ── retries and dead letters ─────────────────────────────────────────────────────────────────────


async def test_a_delay_level_that_is_gone_is_declared_again(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, rabbitmq_url: str
) -> None:
    """The copy comes back as unroutable; its original is kept until the level is there again."""
    consumer = RobustConsumer("tests.consumer")

    @consumer.on(Consumed, retry=Retry.exponential(first_seconds=1))
    async def handle(event: Consumed) -> None:
        await ledger.add(event.number)
        if len(ledger.entries) == 1:
            raise OSError

    async with consumer.running(connection, publisher=publisher):
        async with plain_channel(rabbitmq_url) as channel:
            await channel.queue_delete("hk.delay.L0")
        await publisher.publish(Consumed(number=1))
        assert await ledger.reaches(2) == [1, 1]


async def test_a_dead_letter_has_its_reason(
    publisher: RobustPublisher, connection: BrokerConnection, rabbitmq_url: str
) -> None:
    """It has the exception, the attempts, the request id and the body of the event."""
    consumer = RobustConsumer("tests.consumer")

    @consumer.on(Consumed, retry=Retry.immediate(attempts=2))
    async def handle(event: Consumed) -> None:
        raise OSError("always")

    async with consumer.running(connection, publisher=publisher):
        event = Consumed()
        with bind(RequestContext(request_id="req-1")):
            await publisher.publish(event)
        dead = await read(rabbitmq_url, "tests.consumer.dlq")
    known = {
        name: dead.headers[name]
        for name in ("hk_reason", "hk_error", "hk_attempt", "hk_event_id", "x-request-id")
    }
    assert known == {
        "hk_reason": "exhausted",
        "hk_error": "always",
        "hk_attempt": 2,
        "hk_event_id": str(event.event_id),
        "x-request-id": "req-1",
    }
    assert 'raise OSError("always")' in str(dead.headers["hk_stack"])
    assert await waiting_in(rabbitmq_url, "tests.consumer") == 0


async def test_a_dead_letter_queue_that_is_gone_loses_nothing(
    publisher: RobustPublisher, connection: BrokerConnection, rabbitmq_url: str
) -> None:
    """The dead letter waits in the parking queue that catches what no binding matches."""
    consumer = RobustConsumer("tests.consumer")

    @consumer.on(Consumed, retry=Retry.immediate(attempts=1))
    async def handle(event: Consumed) -> None:
        raise OSError

    async with consumer.running(connection, publisher=publisher):
        async with plain_channel(rabbitmq_url) as channel:
            await channel.queue_delete("tests.consumer.dlq")
        await publisher.publish(Consumed(number=1))
        assert b'"number":1' in (await read(rabbitmq_url, "hk.unrouted")).body


async def test_messages_over_16_mib_are_dead_letters(own_rabbitmq_server: Server) -> None:
    """With the reason where the broker takes the copy; as they are where its limit is lower by now."""
    server, ledger = own_rabbitmq_server, Ledger()
    consumer = consumer_of(ledger)
    await limit_messages(server, 64 * MIB)
    async with (
        RobustPublisher(server.url, service="tests") as publisher,
        BrokerConnection(server.url, name="tests") as connection,
        plain_channel(server.url) as channel,
    ):

        async def send(size_bytes: int) -> None:
            message = aio_pika.Message(b" " * size_bytes)
            await channel.default_exchange.publish(message, routing_key="tests.consumer")

        async with consumer.running(connection, publisher=publisher):
            await send(17 * MIB)
            first = await read(server.url, "tests.consumer.dlq")
        await send(18 * MIB)
        await limit_messages(server, MIB)
        publisher._writer.renew_topology(reason="a channel keeps the limit that it was opened with")
        async with consumer.running(connection, publisher=publisher):
            second = await read(server.url, "tests.consumer.dlq")
            await publisher.publish(Consumed(number=1))
            assert await ledger.reaches(1) == [1]
    assert [len(first.body), len(second.body)] == [17 * MIB, 18 * MIB]
    assert first.headers["hk_reason"] == "malformed"
    assert second.headers["x-first-death-reason"] == "rejected"


# ── the guard ────────────────────────────────────────────────────────────────────────────────────


async def test_an_event_that_is_published_twice_has_one_effect(
    publisher: RobustPublisher,
    connection: BrokerConnection,
    ledger: Ledger,
    rabbitmq_url: str,
    redis_url: str,
) -> None:
    """The guard knows the event by its id, whichever message brings it."""
    async with connect_redis(redis_url, timeout_seconds=10) as redis:
        consumer = consumer_of(ledger)
        async with consumer.running(
            connection, publisher=publisher, guard=IdempotencyGuard(redis, timeout_seconds=30)
        ):
            event = Consumed(number=1)
            await asyncio.gather(*(publisher.publish(event) for _ in range(10)))
            await publisher.publish(Consumed(number=2))
            await ledger.reaches(2)
            await until(lambda: consumer.in_flight == 0)
        assert sorted(ledger.entries) == [1, 2]
    assert await waiting_in(rabbitmq_url, "tests.consumer") == 0


async def test_a_handler_finishes_when_the_connection_drops_and_has_one_effect(
    publisher: RobustPublisher, ledger: Ledger, rabbitmq_url: str, redis_url: str
) -> None:
    """Aiormq cancels its callbacks then (trap 8). The message comes again, and the guard knows it is done."""
    consumer = RobustConsumer("tests.consumer")
    begun, go_on = asyncio.Event(), asyncio.Event()

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        begun.set()
        await go_on.wait()
        await ledger.add(event.number)

    async with (
        connect_redis(redis_url, timeout_seconds=10) as redis,
        proxied(rabbitmq_url) as (proxy, connection),
    ):
        async with consumer.running(
            connection, publisher=publisher, guard=IdempotencyGuard(redis, timeout_seconds=30)
        ):
            await publisher.publish(Consumed(number=1))
            await begun.wait()
            proxy.reset()
            await until(lambda: not consumer.is_ready)
            await until(lambda: consumer.is_ready)
            go_on.set()
            await ledger.reaches(1)
            await until(lambda: consumer.in_flight == 0)
        assert ledger.entries == [1]
    assert await waiting_in(rabbitmq_url, "tests.consumer") == 0


async def test_finished_work_whose_acknowledgement_was_lost_is_not_done_again(
    publisher: RobustPublisher, ledger: Ledger, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a guard too. Some acknowledgements were sent into the void, one message is finished afterwards."""
    monkeypatch.setattr(channel_module, "ACK_SECONDS", 60.0)
    consumer, go_on = RobustConsumer("tests.consumer", concurrency=32), asyncio.Event()

    @consumer.on(Consumed)
    async def handle(event: Consumed) -> None:
        await ledger.add(event.number)
        if event.number == 0:
            await go_on.wait()

    async with (
        proxied(rabbitmq_url) as (proxy, connection),
        consumer.running(connection, publisher=publisher),
    ):
        await publisher.publish_many(Consumed(number=n) for n in range(5))
        await ledger.reaches(5)
        await until(lambda: consumer.in_flight == 1)
        proxy.cut("to_server", at_byte=0)
        assert consumer._run
        consumer._run._consumer_channels[-1].flush()
        await until(lambda: not consumer.is_ready)
        go_on.set()
        await until(lambda: consumer.in_flight == 0)
        proxy.let_pass()
        await until(lambda: consumer.is_ready)
        await publisher.publish(Consumed(number=9))
        await ledger.reaches(6)
        await until(lambda: consumer.in_flight == 0)
    assert ledger.entries == [0, 1, 2, 3, 4, 9]
    assert await waiting_in(rabbitmq_url, "tests.consumer") == 0


# ── healing ──────────────────────────────────────────────────────────────────────────────────────


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


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────


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
    assert await waiting_in(rabbitmq_url, "tests.consumer") == 19


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


# ── mistakes of our own ──────────────────────────────────────────────────────────────────────────


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


# ── namesakes ────────────────────────────────────────────────────────────────────────────────────


async def test_a_second_consumer_of_a_queue_that_handles_other_events_is_refused(
    publisher: RobustPublisher, connection: BrokerConnection, ledger: Ledger, rabbitmq_url: str
) -> None:
    """They would share one queue, and each get what only the other one handles. A replica is none of that."""
    other = RobustConsumer("tests.consumer")

    @other.on(Reported)
    async def report(event: Reported) -> None:
        await ledger.add(event.number)

    async with (
        BrokerConnection(rabbitmq_url, name="another") as another,
        consumer_of(ledger).running(connection, publisher=publisher),
    ):
        for where in (connection, another):
            with pytest.raises(DeclarationError, match=r"another consumer named 'tests\.consumer' runs"):
                await other.start(where, publisher=publisher)
        async with consumer_of(ledger).running(another, publisher=publisher):
            pass
    async with other.running(connection, publisher=publisher):
        await publisher.publish(Reported(number=7))
        assert await ledger.reaches(1) == [7]


async def test_a_consumer_of_many_types_has_the_time_that_they_take(
    publisher: RobustPublisher, connection: BrokerConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit grows with their number; what was refused among them is said."""
    monkeypatch.setattr(subscription_module, "PREPARE_SECONDS", 0.0)
    consumer = RobustConsumer("tests.consumer")
    for number in range(200):
        consumer.on(cast("type[Event]", type(f"Many{number}", (Event,), {}, type=f"many.n{number}")))(
            _nothing
        )
    async with consumer.running(connection, publisher=publisher):
        assert consumer.is_ready
        assert (await publisher.publish(consumer.handles[0]())).routed  # type: ignore[arg-type]
        assert (await publisher.publish(consumer.handles[-1]())).routed  # type: ignore[arg-type]


async def _nothing() -> None: ...
