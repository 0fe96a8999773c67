"""A process's resources on a Redis that is late, dies, and comes back."""

import asyncio

import pytest

from hybridkit.coordination import Redis, connect_redis, probe_redis
from hybridkit.dev import Server
from hybridkit.errors import UnavailableError
from hybridkit.lifespan import Health, ServiceResources


async def open_redis(resources: ServiceResources, url: str) -> Redis:
    return await resources.open("redis", lambda: connect_redis(url), provides=Redis, probe=probe_redis)


async def until_ready(health: Health, *, ready: bool) -> None:
    async with asyncio.timeout(60):
        while (await health.readiness()).is_ready is not ready:  # noqa: ASYNC110 - another process sends no event
            await asyncio.sleep(0.01)


async def test_an_open_redis_works_and_is_closed_at_the_end(redis_url: str) -> None:
    """Handlers find it by its type, and no connection is left."""
    async with ServiceResources() as resources:
        redis = await open_redis(resources, redis_url)
        assert resources.providers[Redis] is redis
        assert await redis.set("key", "value")
        resources.started()
        assert (await resources.health.readiness()).is_ready
    assert resources.errors == ()
    assert not any(connection.is_connected for connection in redis.connection_pool._available_connections)


@pytest.mark.real_server
async def test_a_start_waits_for_a_redis_that_is_late(own_redis_server: Server) -> None:
    """The process needs no restart by its orchestrator."""
    await asyncio.to_thread(own_redis_server.kill)
    async with ServiceResources(start_budget_seconds=30) as resources:
        opening = asyncio.create_task(open_redis(resources, own_redis_server.url))
        await asyncio.to_thread(own_redis_server.restart)
        redis = await opening
        assert await redis.ping()


async def test_a_start_without_redis_ends_with_a_report() -> None:
    """It names the dependency and its error."""
    async with ServiceResources(start_budget_seconds=0.2) as resources:
        with pytest.raises(UnavailableError, match="redis: UnavailableError: Redis does not answer"):
            await open_redis(resources, "redis://127.0.0.1:1/0")


@pytest.mark.real_server
async def test_readiness_follows_a_redis_that_freezes_dies_and_comes_back(own_redis_server: Server) -> None:
    """In both directions, as often as it happens."""
    async with ServiceResources(health=Health(cache_seconds=0.05)) as resources:
        await open_redis(resources, own_redis_server.url)
        resources.started()
        await until_ready(resources.health, ready=True)
        own_redis_server.freeze()
        await until_ready(resources.health, ready=False)
        own_redis_server.resume()
        await until_ready(resources.health, ready=True)
        await asyncio.to_thread(own_redis_server.kill)
        await until_ready(resources.health, ready=False)
        await asyncio.to_thread(own_redis_server.restart)
        await until_ready(resources.health, ready=True)
