"""From a transaction over HTTP to a queue of a real RabbitMQ, through the outbox."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aio_pika
import httpx
import orjson
import pytest

from hybridkit.dataservice import create_data_service, open_outbox
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.settings import PostgresSettings, SecretUrl
from tests.helpers import until

pytestmark = pytest.mark.real_server


def emission(event_type: str, number: int, key: str | None = "k", **more: Any) -> dict[str, Any]:
    return {
        "event_type": event_type,
        "event_id": str(uuid4()),
        "timestamp": "2026-01-15T10:30:00Z",
        "key": key,
        "request_id": "the-request",
        "data": {"number": number},
        **more,
    }


@asynccontextmanager
async def service_between(database: str, broker: str) -> AsyncGenerator[httpx.AsyncClient]:
    app = create_data_service(PostgresSettings, {})
    app.state.settings = PostgresSettings(
        service_name="db_postgres_service", database_url=SecretUrl(database), rabbitmq_url=SecretUrl(broker)
    )
    transport = httpx.ASGITransport(app)
    headers = {"x-service-name": "api_service"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://data", headers=headers) as client,
    ):
        yield client


async def emit(client: httpx.AsyncClient, *events: dict[str, Any]) -> None:
    headers = {"idempotency-key": str(uuid4())}
    answer = await client.post("/v1:transact", json={"emit": events}, headers=headers)
    assert answer.status_code == 200, answer.text


@asynccontextmanager
async def queue_for(
    broker: str, event_type: str, name: str = "wanted"
) -> AsyncGenerator[aio_pika.abc.AbstractQueue]:
    connection = await aio_pika.connect(broker)
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(name, durable=True)
        await queue.bind("hk.events", event_type)
        yield queue


async def receive(
    queue: aio_pika.abc.AbstractQueue, count: int
) -> list[aio_pika.abc.AbstractIncomingMessage]:
    received: list[aio_pika.abc.AbstractIncomingMessage] = []

    async def are_there() -> bool:
        while len(received) < count and (message := await queue.get(fail=False, no_ack=True)):
            received.append(message)
        return len(received) == count

    await until(are_there)
    return received


async def parked(database: str) -> list[Any]:
    connection = await connect(database, timeout_seconds=10, command_seconds=10, application_name="the test")
    query = "SELECT * FROM hk_outbox WHERE parked_at IS NOT NULL"
    await until(lambda: connection.fetch(query))
    rows = await connection.fetch(query)
    await connection.close()
    return list(rows)


async def test_events_arrive_in_order_and_as_envelopes(postgres_url: str, rabbitmq_url: str) -> None:
    """A consumer gets the events of one key in order, in the name of caller, request and user."""
    async with (
        service_between(postgres_url, rabbitmq_url) as client,
        queue_for(rabbitmq_url, "item.sold") as queue,
    ):
        for number in range(0, 30, 3):
            await emit(client, *(emission("item.sold", number + n, user_id="ann") for n in range(3)))
        messages = await receive(queue, 30)
    bodies = [orjson.loads(message.body) for message in messages]
    assert [body["data"]["number"] for body in bodies] == list(range(30))
    assert {(body["service"], body["request_id"], body["user_id"]) for body in bodies} == {
        ("api_service", "the-request", "ann")
    }
    assert {str(message.headers["x-request-id"]) for message in messages} == {"the-request"}


async def test_an_event_that_nobody_wants_is_parked_and_the_next_one_arrives(
    postgres_url: str, rabbitmq_url: str
) -> None:
    """An unroutable event does not block its key."""
    async with (
        service_between(postgres_url, rabbitmq_url) as client,
        queue_for(rabbitmq_url, "item.sold") as queue,
    ):
        await emit(client, emission("item.forgotten", 1), emission("item.sold", 2))
        [message] = await receive(queue, 1)
        assert orjson.loads(message.body)["data"]["number"] == 2
        [row] = await parked(postgres_url)
    assert (row["event_type"], "item.forgotten" in row["reason"]) == ("item.forgotten", True)


async def test_a_command_goes_to_its_queue(postgres_url: str, rabbitmq_url: str) -> None:
    """It arrives in the queue that it names, and no binding is needed."""
    async with (
        service_between(postgres_url, rabbitmq_url) as client,
        queue_for(rabbitmq_url, "unused", name="email_tasks") as queue,
    ):
        await emit(client, emission("command.send_email", 1, key=None, queue="email_tasks"))
        [message] = await receive(queue, 1)
    assert orjson.loads(message.body)["event_type"] == "command.send_email"


async def test_a_command_for_later_waits_in_the_outbox(postgres_url: str, rabbitmq_url: str) -> None:
    """A command without a time overtakes it."""
    command: dict[str, Any] = {"key": None, "queue": "email_tasks"}
    async with (
        service_between(postgres_url, rabbitmq_url) as client,
        queue_for(rabbitmq_url, "unused", name="email_tasks") as queue,
    ):
        due = datetime.now(UTC) + timedelta(seconds=2)
        later = emission("command.send_email", 1, **command, not_before=due.isoformat())
        await emit(client, later, emission("command.send_email", 2, **command))
        messages = await receive(queue, 2)
        assert datetime.now(UTC) >= due - timedelta(milliseconds=1)
    assert [orjson.loads(message.body)["data"]["number"] for message in messages] == [2, 1]


async def test_an_event_goes_on_in_the_trace_of_the_request(postgres_url: str, rabbitmq_url: str) -> None:
    """The message has the trace headers that the event was stored with, and none without."""
    trace = {"traceparent": f"00-{'4b' * 16}-{'a1' * 8}-01", "tracestate": "vendor=1"}
    async with (
        service_between(postgres_url, rabbitmq_url) as client,
        queue_for(rabbitmq_url, "item.sold") as queue,
    ):
        await emit(client, emission("item.sold", 1, **trace), emission("item.sold", 2))
        first, second = await receive(queue, 2)
    assert {name: str(first.headers[name]) for name in trace} == trace
    assert "traceparent" not in second.headers


async def test_what_was_parked_arrives_once_it_is_tried_again(postgres_url: str, rabbitmq_url: str) -> None:
    """`open_outbox` lets it wait again, and the running relay publishes it."""
    async with service_between(postgres_url, rabbitmq_url) as client:
        await emit(client, emission("item.sold", 1))
        await parked(postgres_url)
        async with queue_for(rabbitmq_url, "item.sold") as queue, open_outbox(postgres_url) as outbox:
            assert await outbox.retry() == 1
            [message] = await receive(queue, 1)
    assert orjson.loads(message.body)["data"]["number"] == 1


async def test_a_broker_that_is_away_stops_no_request_and_loses_no_event(
    postgres_url: str, own_rabbitmq_server: Any
) -> None:
    """The outbox grows while it is down, the service stays ready, and all of it arrives afterwards, in order."""
    broker = own_rabbitmq_server.url
    async with service_between(postgres_url, broker) as client:
        async with queue_for(broker, "item.sold"):
            await emit(client, emission("item.sold", 0))
        await asyncio.to_thread(own_rabbitmq_server.kill)
        for number in range(1, 6):
            await emit(client, emission("item.sold", number))
        assert (await client.get("/ready")).status_code == 200
        await asyncio.to_thread(own_rabbitmq_server.restart)
        async with queue_for(broker, "item.sold") as queue:
            numbers = [orjson.loads(message.body)["data"]["number"] for message in await receive(queue, 6)]
    assert list(dict.fromkeys(numbers)) == list(range(6))
