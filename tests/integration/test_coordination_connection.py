"""`connect_redis` on a Redis server, also on one that dies and comes back."""

import asyncio
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop

from hybridkit.coordination import check_noeviction, connect_redis, probe_redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.dev import LocalServers, Server
from hybridkit.errors import SettingsError, UnavailableError
from hybridkit.idempotency import Completed, IdempotencyGuard, RedisDown


async def test_a_fresh_redis_is_what_work_can_be_built_on(redis_url: str) -> None:
    """It takes writes and evicts nothing."""
    async with connect_redis(redis_url) as redis:
        await probe_redis(redis)
        await check_noeviction(redis)


@pytest.mark.parametrize(("decode", "value"), [(True, "ü"), (False, "ü".encode())])
async def test_answers_are_text_unless_bytes_are_wanted(redis_url: str, decode: bool, value: object) -> None:
    """Texts are UTF-8."""
    async with connect_redis(redis_url, decode_responses=decode) as redis:
        await redis.set("key", "ü")
        assert await redis.get("key") == value


async def test_more_commands_than_connections_wait_for_each_other(redis_url: str) -> None:
    """A hundred of them over two connections, and none is lost."""
    async with connect_redis(redis_url, max_connections=2, timeout_seconds=5.0) as redis:
        counts = await asyncio.gather(*(redis.incr("counter") for _ in range(100)))
        assert sorted(counts) == list(range(1, 101))


@pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def test_a_stalled_event_loop_is_no_fault_of_redis(
    redis_url: str, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A reply that came in time and is read after the deadline counts, and the connection stays."""

    async def stall() -> None:
        async with connect_redis(redis_url, timeout_seconds=0.25) as redis:
            shared = multiplexer_of(redis)
            await shared.execute("SET", "key", "value")
            node = shared._node
            assert node is not None
            before = node._open
            reply = shared.execute("GET", "key")
            await asyncio.sleep(0)  # it is written in this turn
            ends_at = time.monotonic() + 0.7
            while time.monotonic() < ends_at:
                pass
            assert await reply == b"value"
            assert node._open is before

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(stall())


@pytest.mark.real_server
async def test_a_restarted_redis_is_used_again_without_an_error(own_redis_server: Server) -> None:
    """The one retry is for the connection that it closed."""
    async with connect_redis(own_redis_server.url) as redis:
        await redis.set("key", "kept")
        await asyncio.to_thread(own_redis_server.restart)
        assert await redis.get("key") == "kept"


@pytest.mark.real_server
async def test_a_frozen_redis_is_given_up_and_used_again_when_it_wakes(own_redis_server: Server) -> None:
    """The caller gets its error in time, and the client needs no new start."""
    async with connect_redis(own_redis_server.url) as redis:
        await probe_redis(redis)
        own_redis_server.freeze()
        async with asyncio.timeout(20):
            with pytest.raises(UnavailableError):
                await probe_redis(redis)
        own_redis_server.resume()
        await probe_redis(redis)


FULL = ["CONFIG", "SET", "maxmemory", "1"]
NO_SCRIPTS = ["ACL", "SETUSER", "default", "-@scripting"]


@pytest.mark.real_server
@pytest.mark.parametrize("change", [FULL, NO_SCRIPTS], ids=["full", "no_scripts"])
async def test_readiness_is_red_where_the_guard_is_refused(
    own_redis_server: Server, change: list[str]
) -> None:
    """A full Redis still answers and deletes, and so does one that lets a user run no scripts."""
    async with connect_redis(own_redis_server.url) as redis:
        await probe_redis(redis)
        client: Any = redis  # untyped in redis-py
        await client.execute_command(*change)
        with pytest.raises(UnavailableError):
            await IdempotencyGuard(redis, when_down=RedisDown.EXTERNAL).begin("orders:order:42", None)
        with pytest.raises(UnavailableError, match=r"maxmemory|no permissions"):
            await probe_redis(redis)


@pytest.mark.real_server
async def test_a_master_that_becomes_a_replica_is_left_for_the_new_one(own_redis_server: Server) -> None:
    """The name leads to the new master, the connections to the old one: work runs there, once for each key."""
    with LocalServers() as servers:
        successor = await asyncio.to_thread(servers.start, "redis", private=True)
        old_port, new_port = urlsplit(own_redis_server.url).port or 0, urlsplit(successor.url).port or 0
        leads_to, pipes = [old_port], set[asyncio.Task[None]]()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", leads_to[0])
            for source, sink in ((reader, far_writer), (far_reader, writer)):
                pipes.add(asyncio.create_task(_copy(source, sink)))

        name = await asyncio.start_server(accept, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{name.sockets[0].getsockname()[1]}/0"
        async with connect_redis(own_redis_server.url) as old, connect_redis(url) as redis:
            await probe_redis(redis)
            await old.slaveof("127.0.0.1", new_port)
            with pytest.raises(UnavailableError, match="takes no writes"):
                await probe_redis(redis)
            leads_to[0] = new_port
            guard = IdempotencyGuard(redis, when_down=RedisDown.EXTERNAL)
            async with guard.claim("orders:order:42", 1) as claim:
                claim.set_result("done")
            assert await guard.begin("orders:order:42", 1) == Completed(b'"done"')
            await probe_redis(redis)
        name.close()
        for pipe in pipes:
            pipe.cancel()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()


@pytest.mark.real_server
async def test_a_redis_that_evicts_is_refused_until_it_is_told_otherwise(own_redis_server: Server) -> None:
    """The check asks the server, and not a file."""
    async with connect_redis(own_redis_server.url) as redis:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(SettingsError, match="noeviction"):
            await check_noeviction(redis)
        await redis.config_set("maxmemory-policy", "noeviction")
        await check_noeviction(redis)
