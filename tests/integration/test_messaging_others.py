"""Other people's clients: pika reads what we publish, and what pika publishes without a word about it is handled."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import orjson
import pika
import pytest

from hybridkit.context import RequestContext, bind
from hybridkit.events import Command, Event, EventEnvelope
from hybridkit.messaging import BrokerConnection, DeadLetters, Order, RobustConsumer, RobustPublisher
from tests.helpers import until

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]


class Shared(Event, type="others.shared"):
    number: int = 0


class Chore(Command, queue="others_chores", type="others.chore"):
    number: int = 0


def read_with_pika(url: str, queue: str) -> tuple[Any, Any, Any]:
    """Take the message that is in the queue, with pika."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        found: tuple[Any, Any, Any] = connection.channel().basic_get(queue, auto_ack=True)
        return found


def publish_with_pika(url: str, exchange: str, routing_key: str, body: bytes) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().basic_publish(exchange, routing_key, body)


def declare_with_pika(url: str, queue: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.queue_bind(queue, "hk.events", Shared.message_type)


async def test_pika_reads_our_events(publisher: RobustPublisher, rabbitmq_url: str) -> None:
    """An event that we publish reaches pika as JSON, with type, service and request id in its properties."""
    await asyncio.to_thread(declare_with_pika, rabbitmq_url, "seen")
    event = Shared(number=5)
    with bind(RequestContext(request_id="req-1")):
        await publisher.publish(event)
    method, properties, body = await asyncio.to_thread(read_with_pika, rabbitmq_url, "seen")
    envelope = orjson.loads(body)
    assert (envelope["event_type"], envelope["data"]) == ("others.shared", {"number": 5})
    assert (method.exchange, method.routing_key) == ("hk.events", "others.shared")
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert (properties.type, properties.app_id) == ("others.shared", "tests")
    assert properties.headers["hk_event_id"] == envelope["event_id"] == str(event.event_id)
    assert properties.headers["x-request-id"] == "req-1"


async def test_pika_reads_our_commands(publisher: RobustPublisher, rabbitmq_url: str) -> None:
    """A command that we send reaches a pika consumer as plain JSON."""
    await asyncio.to_thread(declare_with_pika, rabbitmq_url, Chore.queue)
    await publisher.send(Chore(number=6))
    _, _, body = await asyncio.to_thread(read_with_pika, rabbitmq_url, Chore.queue)
    assert orjson.loads(body)["data"] == {"number": 6}


async def test_a_bare_body_of_pika_is_handled(publisher: RobustPublisher, rabbitmq_url: str) -> None:
    """An event and a command from pika are handled without any properties: the body decides."""
    consumer, seen = RobustConsumer(Chore.queue), asyncio.Queue[tuple[str, int]]()

    @consumer.on(Shared)
    async def on_event(event: Shared) -> None:
        await seen.put(("event", event.number))

    @consumer.on(Chore)
    async def on_command(command: Chore) -> None:
        await seen.put(("command", command.number))

    def body(message_type: str, number: int) -> bytes:
        event_id = str(Shared().event_id)
        return orjson.dumps(
            {
                "event_type": message_type,
                "event_id": event_id,
                "timestamp": "2026-01-01T00:00:00Z",
                "service": "php",
                "request_id": "r",
                "data": {"number": number},
            }
        )

    async with (
        BrokerConnection(rabbitmq_url, name="tests") as connection,
        consumer.running(connection, publisher=publisher),
        asyncio.timeout(60),
    ):
        await asyncio.to_thread(
            publish_with_pika, rabbitmq_url, "hk.events", "others.shared", body("others.shared", 1)
        )
        assert await seen.get() == ("event", 1)
        await asyncio.to_thread(publish_with_pika, rabbitmq_url, "", Chore.queue, body("others.chore", 2))
        assert await seen.get() == ("command", 2)


class Kept(Event, type="others.kept", key="account"):
    account: str
    number: int


async def test_a_message_from_the_end_of_the_calendar_stops_nobody(
    publisher: RobustPublisher, rabbitmq_url: str, logs: list[MutableMapping[str, Any]]
) -> None:
    """A message whose time has no year in UTC becomes a dead letter, and neither connection nor order suffers."""
    consumer, seen = RobustConsumer("others.kept", order=Order.SKIP), list[int]()

    @consumer.on(Kept)
    async def on_kept(event: Kept) -> None:
        seen.append(event.number)

    odd = orjson.loads(EventEnvelope.wrap(Kept(account="a", number=0), service="tests").encode())
    odd["timestamp"] = "9999-12-31T23:59:59.123456-12:00"
    async with (
        BrokerConnection(rabbitmq_url, name="tests") as connection,
        consumer.running(connection, publisher=publisher),
    ):
        for number in (1, 2):
            await publisher.publish(Kept(account="a", number=number))
            await asyncio.to_thread(
                publish_with_pika, rabbitmq_url, "hk.events", Kept.message_type, orjson.dumps(odd)
            )
        await publisher.publish(Kept(account="a", number=3))
        letters = DeadLetters(rabbitmq_url, "others.kept.dlq")

        async def all_are_there() -> bool:
            return len(seen) == 3 and len(await letters.peek()) == 2

        await until(all_are_there)
    assert seen == [1, 2, 3]
    assert not [entry for entry in logs if entry["event"] in {"channel retired", "broker connection lost"}]
