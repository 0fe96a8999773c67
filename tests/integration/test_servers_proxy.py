"""FaultProxy in front of a real Redis, seen through a real client."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from hybridkit.testing import FaultProxy

pytestmark = pytest.mark.real_server


@pytest.fixture
async def proxy(redis_url: str) -> AsyncGenerator[FaultProxy]:
    parts = urlsplit(redis_url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with FaultProxy(parts.hostname, parts.port) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: FaultProxy, redis_url: str) -> AsyncGenerator[Any]:
    url = proxy.url_for(redis_url)
    client: Any = Redis.from_url(url, socket_timeout=0.5, retry=Retry(NoBackoff(), 0))  # pyright: ignore[reportUnknownMemberType]
    async with client:
        yield client


async def test_a_frozen_redis_times_out_and_works_again(proxy: FaultProxy, client: Any) -> None:
    """The command that timed out arrives when the fault ends."""
    await client.set("before", "1")
    proxy.freeze()
    with pytest.raises(RedisTimeoutError):
        await client.incr("counted")
    proxy.let_pass()
    # Over another connection, which the server may serve before the delayed one.
    async with asyncio.timeout(60):
        while await client.get("counted") != b"1":
            pass


async def test_a_command_into_a_black_hole_is_lost(proxy: FaultProxy, client: Any) -> None:
    """The command times out as well, but is never run."""
    await client.set("before", "1")
    proxy.swallow()
    with pytest.raises(RedisTimeoutError):
        await client.incr("counted")
    proxy.let_pass()
    assert await client.get("counted") is None


async def test_a_reply_that_breaks_off_is_a_broken_connection(proxy: FaultProxy, client: Any) -> None:
    """A part of a reply never becomes a value."""
    await client.set("large", "x" * 10_000)
    proxy.cut("to_client", at_byte=5_000)
    with pytest.raises(RedisConnectionError):
        await client.get("large")
    proxy.let_pass()
    assert len(await client.get("large")) == 10_000
