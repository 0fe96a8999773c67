"""A cluster of three masters with a replica each, under writers. `make redis_failover` harms it in more ways."""

import asyncio

import pytest

from hybridkit.coordination import check_noeviction, connect_redis, probe_redis, replication_problems
from hybridkit.coordination._clients import ClusterClient
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._redis._commands import Script
from hybridkit.errors import UnavailableError
from tests.helpers import until
from tests.helpers.redis_failovers import TIMEOUT_SECONDS, Failover
from tests.helpers.redis_topologies import Cluster, redis_cluster, until_holds

GET = Script("get", "return redis.call('GET', KEYS[1])")


@pytest.mark.real_server
async def test_a_cluster_is_used_like_one_server_and_survives_the_death_of_an_owner() -> None:
    """Commands go to the owners of their slots; after `kill -9` of one they go to its replica, without a restart."""
    with redis_cluster() as servers:
        async with connect_redis(servers.url, timeout_seconds=TIMEOUT_SECONDS) as redis:
            await use_it(servers, redis)
            old = servers.owner("{a}:key")
            [replica] = servers.replicas_of(old)
            failover = Failover(redis, name="killed", tag="{a}")
            await failover.run(
                old.kill, until_announced=lambda: until_holds(lambda: replica.ask("ROLE")[0] == "master")
            )
            await failover.check()
        async with connect_redis("redis+cluster://127.0.0.1:1", timeout_seconds=0.1) as nowhere:
            with pytest.raises(UnavailableError, match="Redis does not answer"):
                await probe_redis(nowhere)
            with pytest.raises(UnavailableError, match="Redis does not answer"):
                await check_noeviction(nowhere)


async def use_it(servers: Cluster, redis: object) -> None:
    assert isinstance(redis, ClusterClient)
    shared = multiplexer_of(redis)
    await probe_redis(redis)
    await check_noeviction(redis)
    assert "min-replicas-to-write 1" in "".join(await replication_problems(redis))
    keys = [f"key:{number}" for number in range(60)]
    assert await asyncio.gather(*(redis.set(key, key) for key in keys)) == [True] * 60
    assert await asyncio.gather(*(shared.run(GET, [key]) for key in keys)) == [key.encode() for key in keys]
    async with redis.pipeline() as pipeline:
        for key in keys:
            pipeline.get(key)
        assert await pipeline.execute() == keys
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.incr("{t}:one")
        pipeline.incr("{t}:two")
        assert await pipeline.execute() == [1, 1]
    script = redis.register_script("return redis.call('GET', KEYS[1])")
    assert await script(keys=["key:1"]) == "key:1"
    async with redis.pubsub(ignore_subscribe_messages=True) as messages:
        await messages.subscribe("news")

        async def is_heard() -> bool:
            await shared.execute("PUBLISH", "news", "text")
            return await messages.get_message(timeout=0.1) is not None

        await until(is_heard)
    await move_a_slot(servers, redis)


async def move_a_slot(servers: Cluster, redis: ClusterClient) -> None:
    """Move `{b}` from its owner to another one, and use its keys before, meanwhile, and after."""
    shared = multiplexer_of(redis)
    source, target = servers.owner("{b}"), servers.owner("{a}")
    assert source is not target
    slot = int(source.ask("CLUSTER", "KEYSLOT", "{b}"))
    await shared.execute("SET", "{b}:stays", "1")
    ids = {node: str(node.ask("CLUSTER", "MYID")) for node in (source, target)}
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    assert await shared.execute("GET", "{b}:stays") == b"1"
    assert await shared.execute("SET", "{b}:moves", "2") == b"OK"  # by ASK
    assert await shared.run(GET, ["{b}:moves"]) == b"2"
    source.ask("MIGRATE", "127.0.0.1", target.port, "{b}:stays", 0, 5000)
    for node in (target, source):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
    replies = await asyncio.gather(*(shared.execute("GET", f"{{b}}:{key}") for key in ("stays", "moves")))
    assert replies == [b"1", b"2"]  # by MOVED
    assert await redis.get("{b}:moves") == "2"
