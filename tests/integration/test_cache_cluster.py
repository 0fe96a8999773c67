"""The cache and broadcasts on a cluster of three masters."""

import asyncio

import pytest

from hybridkit.coordination import Broadcast, Cache, connect_redis
from tests.helpers import until
from tests.helpers.caches import UNHURRIED_SECONDS, Profile, Source, new_name
from tests.helpers.redis_topologies import redis_cluster

pytestmark = pytest.mark.real_server


async def test_a_cache_and_a_broadcast_on_a_cluster() -> None:
    """Values, tags and their clock are on different nodes, and each script is about one of them."""
    with redis_cluster() as servers:
        async with (
            connect_redis(servers.url, timeout_seconds=10) as redis,
            connect_redis(servers.url, timeout_seconds=10) as other_redis,
        ):
            name = new_name()
            cache, other = (
                Cache(
                    name,
                    Profile,
                    redis=each,
                    timeout_seconds=UNHURRIED_SECONDS,
                    tags=lambda _: ["all", "red"],
                )
                for each in (redis, other_redis)
            )
            sources = [Source() for _ in range(20)]

            async def read(which: Cache[Profile]) -> list[Profile | None]:
                return await asyncio.gather(
                    *(which.get_or_load(number, source.load) for number, source in enumerate(sources))
                )

            async def are_hits() -> bool:
                before = sum(source.started for source in sources)
                await read(cache)
                return sum(source.started for source in sources) == before

            await until(are_hits)
            wanted = [source.change() for source in sources]
            for number in range(10):
                assert await other.invalidate(number)
            assert await read(cache) == wanted[:10] + [Profile(name="Ada")] * 10
            assert await other.invalidate_tag("red")
            assert await read(cache) == wanted

            broadcast, far = (Broadcast(name, Profile, redis=each) for each in (redis, other_redis))
            async with broadcast.subscribe() as messages:
                await far.publish(Profile(name="Bea"))
                assert await anext(messages) == Profile(name="Bea")
