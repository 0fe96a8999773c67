"""Caches that are declared at import, in a process that reads its settings."""

import asyncio
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis

from hybridkit.adapters._running import open_resources
from hybridkit.coordination import Cache, connect_redis
from hybridkit.dev import Server
from hybridkit.settings import RedisSettings, SecretUrl
from tests.helpers.caches import UNHURRIED_SECONDS, Profile, Source, counted, new_name

pytestmark = pytest.mark.real_server


async def test_a_declared_cache_uses_the_redis_of_the_settings(redis_url: str) -> None:
    """Nothing else has to be opened, and nothing is left open."""
    cache, source = Cache(new_name(), Profile, timeout_seconds=UNHURRIED_SECONDS), Source()
    async with open_resources("fastapi", RedisSettings(service_name="tests", redis_url=SecretUrl(redis_url))):
        await cache.get_or_load("ada", source.load)
        await cache.get_or_load("ada", source.load)
    assert source.started == 1


async def test_a_cache_may_have_a_redis_of_its_own_that_evicts(
    redis_url: str, own_redis_server: Server
) -> None:
    """Values are there, and the start neither checks its policy nor waits for it."""
    cache, source = Cache(new_name(), Profile, timeout_seconds=UNHURRIED_SECONDS), Source()
    settings = RedisSettings(
        service_name="tests", redis_url=SecretUrl(redis_url), redis_cache_url=SecretUrl(own_redis_server.url)
    )
    async with connect_redis(own_redis_server.url) as inside, open_resources("fastapi", settings):
        await inside.config_set("maxmemory-policy", "allkeys-lru")
        await cache.get_or_load("ada", source.load)
        assert await inside.keys() == [f"hk:cache:{cache.name}:ada"]
    await asyncio.to_thread(own_redis_server.kill)
    async with open_resources("fastapi", settings):
        await cache.get_or_load("ada", source.load)
    assert source.started == 2
    assert counted(cache)["fallback"] == 1


async def test_a_client_that_connect_redis_has_not_made_works_too() -> None:
    """One command at a time, with errors and time limits as on the shared connection."""
    async with FakeAsyncRedis(decode_responses=True) as redis:
        cache, source = Cache(new_name(), Profile, redis=redis, timeout_seconds=UNHURRIED_SECONDS), Source()
        await cache.get_or_load("ada", source.load)
        await cache.get_or_load("ada", source.load)
        assert source.started == 1
        await redis.set(f"hk:cache:{cache.name}:bea", "no hash")
        await cache.get_or_load("bea", source.load)
        assert counted(cache)["fallback"] == 1


class HangingRedis(FakeAsyncRedis):
    """A client whose commands have no end."""

    async def execute_command(self, *_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()


async def test_another_client_that_hangs_is_read_past() -> None:
    """After the time that the cache waits, like the shared connection."""
    async with HangingRedis() as redis:
        cache, source = Cache(new_name(), Profile, redis=redis, timeout_seconds=0.01), Source()
        assert await cache.get_or_load("ada", source.load) == Profile(name="Ada")
        assert counted(cache)["fallback"] == 1
        commands: Any = cache._stored.entries._commands
        await commands._running.cancel()
