"""Each URL fixture leads to a server that answers a real client, in a place of the test's own."""

from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
from aio_pika import Message, connect
from pymongo import AsyncMongoClient
from redis.asyncio import Redis


@pytest.mark.parametrize("attempt", [1, 2])
async def test_postgres_is_a_new_database_each_time(postgres_url: str, attempt: int) -> None:
    """Both tests can create the same table."""
    connection: Any = await asyncpg.connect(postgres_url)  # pyright: ignore[reportUnknownMemberType]
    try:
        await connection.execute("create table things (id int)")
        await connection.execute("insert into things values ($1)", attempt)
        assert await connection.fetchval("select count(*) from things") == 1
    finally:
        await connection.close()


@pytest.mark.parametrize("attempt", [1, 2])
async def test_mongo_is_a_new_database_each_time(mongo_url: str, attempt: int) -> None:
    """Each test finds the default database of its URL empty."""
    async with AsyncMongoClient[dict[str, object]](mongo_url) as client:
        things = client.get_default_database()["things"]
        await things.insert_one({"_id": "only", "attempt": attempt})
        assert await things.count_documents({}) == 1


@pytest.mark.parametrize("attempt", [1, 2])
async def test_redis_is_an_empty_database_each_time(redis_url: str, attempt: int) -> None:
    """Each test finds no keys, and leaves some."""
    client: Any = Redis.from_url(redis_url)  # pyright: ignore[reportUnknownMemberType]
    async with client as redis:
        assert await redis.dbsize() == 0
        await redis.set("attempt", attempt)


@pytest.mark.parametrize("attempt", [1, 2])
async def test_rabbitmq_is_a_new_virtual_host_each_time(rabbitmq_url: str, attempt: int) -> None:
    """The second test does not find the first one's queue."""
    async with await connect(rabbitmq_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("things", durable=True)
        assert queue.declaration_result.message_count == 0
        await channel.default_exchange.publish(Message(b"hello"), routing_key="things")
