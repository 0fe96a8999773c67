"""Each kind of server can be killed, frozen and restarted, and a real client sees what it should."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped]
import pytest
from aio_pika import DeliveryMode, Message, connect
from aio_pika.exceptions import AMQPError
from pymongo import AsyncMongoClient
from redis.asyncio import Redis

from hybridkit.dev import KINDS, Server
from hybridkit.dev._servers._probes import mongo_answers, postgres_answers, rabbitmq_answers, redis_answers

pytestmark = pytest.mark.real_server

ANSWERS = {
    "postgres": postgres_answers,
    "mongo": mongo_answers,
    "redis": redis_answers,
    "rabbitmq": rabbitmq_answers,
}


@asynccontextmanager
async def postgres_session(url: str) -> AsyncGenerator[Any]:
    session: Any = await asyncpg.connect(url, command_timeout=1)  # pyright: ignore[reportUnknownMemberType]
    try:
        yield session
    finally:
        session.terminate()


async def write_postgres(url: str) -> None:
    async with postgres_session(url) as session:
        await session.execute("create table kept (value text); insert into kept values ('kept')")


async def read_postgres(url: str) -> object:
    async with postgres_session(url) as session:
        return await session.fetchval("select value from kept")


async def write_mongo(url: str) -> None:
    async with AsyncMongoClient[dict[str, object]](url) as client:
        await client["test"]["kept"].insert_one({"value": "kept"})


async def read_mongo(url: str) -> object:
    async with AsyncMongoClient[dict[str, object]](url) as client:
        found = await client["test"]["kept"].find_one()
        return found and found["value"]


async def write_redis(url: str) -> None:
    client: Any = Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]
    async with client:
        await client.set("kept", "kept")


async def read_redis(url: str) -> object:
    client: Any = Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]
    async with client:
        value: bytes = await client.get("kept")
        return value.decode()


async def write_rabbitmq(url: str) -> None:
    async with await connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True)
        message = Message(b"kept", delivery_mode=DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key="kept")


async def read_rabbitmq(url: str) -> object:
    async with await connect(url) as connection:
        queue = await (await connection.channel()).get_queue("kept")
        message = await queue.get(no_ack=True)
        return message.body.decode()


WRITE: dict[str, Callable[[str], Awaitable[None]]] = {
    "postgres": write_postgres,
    "mongo": write_mongo,
    "redis": write_redis,
    "rabbitmq": write_rabbitmq,
}
READ: dict[str, Callable[[str], Awaitable[object]]] = {
    "postgres": read_postgres,
    "mongo": read_mongo,
    "redis": read_redis,
    "rabbitmq": read_rabbitmq,
}


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Server:
    own: Server = request.getfixturevalue(f"own_{request.param}_server")
    return own


def answers(server: Server) -> bool:
    port = urlsplit(server.url).port
    assert port is not None
    return ANSWERS[server.kind](port)


async def test_what_was_written_survives_a_kill(server: Server) -> None:
    """Confirmed data is there after kill -9 and a restart on the same URL."""
    await WRITE[server.kind](server.url)
    server.kill()
    assert not answers(server)
    await asyncio.to_thread(server.restart)
    assert await READ[server.kind](server.url) == "kept"


async def test_a_frozen_server_is_silent_until_it_is_resumed(server: Server) -> None:
    """All its processes stop and continue, and a graceful restart keeps the data."""
    await WRITE[server.kind](server.url)
    server.freeze()
    assert not await asyncio.to_thread(answers, server)
    server.resume()
    assert await asyncio.to_thread(answers, server)
    await asyncio.to_thread(server.restart)
    assert await READ[server.kind](server.url) == "kept"


async def test_open_sessions_of_a_frozen_postgres_are_frozen_too(own_postgres_server: Server) -> None:
    """Each session is a process in its own process group."""
    async with postgres_session(own_postgres_server.url) as session:
        own_postgres_server.freeze()
        with pytest.raises(TimeoutError):
            await session.execute("select 1")


async def test_a_killed_postgres_can_be_restarted_while_its_sessions_were_busy(
    own_postgres_server: Server,
) -> None:
    """PostgreSQL refuses to start while a dead server's session is attached to its memory."""
    async with postgres_session(own_postgres_server.url) as session:
        busy = asyncio.create_task(session.execute("select count(*) from generate_series(1, 100000000000)"))
        await asyncio.sleep(0)
        own_postgres_server.kill()
        with pytest.raises((asyncpg.PostgresError, OSError)):
            await busy
    await asyncio.to_thread(own_postgres_server.restart)
    assert answers(own_postgres_server)


async def test_rabbitmqctl_speaks_to_the_own_node(own_rabbitmq_server: Server) -> None:
    """It finds the node by its private cookie and epmd."""
    await write_rabbitmq(own_rabbitmq_server.url)
    listed = await asyncio.to_thread(own_rabbitmq_server.ctl, "list_queues", "--quiet", "name", "messages")
    assert "kept\t1" in listed


async def read_once_elected(url: str) -> object:
    while True:
        with suppress(AMQPError):
            return await read_rabbitmq(url)


async def test_a_quorum_queue_survives_the_death_of_a_node(own_rabbitmq_cluster: Sequence[Server]) -> None:
    """In a cluster of three, another node has what the killed one confirmed."""
    first, second, _ = own_rabbitmq_cluster
    async with await connect(first.url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
        await channel.default_exchange.publish(Message(b"kept"), routing_key="kept")
    first.kill()
    async with asyncio.timeout(60):
        assert await read_once_elected(second.url) == "kept"
    await asyncio.to_thread(first.restart)
    running = await asyncio.to_thread(first.ctl, "cluster_status", "--formatter", "json")
    assert len(json.loads(running)["running_nodes"]) == 3
