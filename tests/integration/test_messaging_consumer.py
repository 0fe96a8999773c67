"""Consumers on a real RabbitMQ: they heal, they can prove it, and no message is lost on any way out of a handler."""

import asyncio
import struct
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, cast

import aio_pika
import pytest

from hybridkit.context import RequestContext, bind
from hybridkit.coordination import connect_redis
from hybridkit.dev import Server
from hybridkit.errors import DeclarationError
from hybridkit.events import Command, Event, EventEnvelope
from hybridkit.events.cloudevents import to_structured
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.messaging import BrokerConnection, RobustConsumer, RobustPublisher
from hybridkit.messaging._consuming import _consumer_channel as channel_module
from hybridkit.messaging._consuming import _subscription as subscription_module
from hybridkit.retry import Retry
from tests.helpers import plain_channel, until
from tests.helpers.consumers import Consumed, Ledger, consumer_of, proxied, read, waiting_in

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs", "no_jitter")]


class Reported(Event, type="consumer.reported"):
    number: int


class Task(Command, queue="consumer_tasks", type="consumer.task"):
    number: int


MIB = 1024 * 1024

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


async def limit_messages(server: Server, size_bytes: int) -> None:
    """Set `max_message_size` for the channels to come; RabbitMQ keeps it in one place or the other."""
    for place in (
        "application:set_env(rabbit, max_message_size, {}).",
        "persistent_term:put(max_message_size, {}).",
    ):
        await asyncio.to_thread(server.ctl, "eval", place.format(size_bytes))


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
        async with consumer.running(connection, publisher=publisher, guard=IdempotencyGuard(redis)):
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
        async with consumer.running(connection, publisher=publisher, guard=IdempotencyGuard(redis)):
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
