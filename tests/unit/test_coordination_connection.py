"""The Redis client's limits, and what is checked before work is built on a server."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import Mock

import pytest
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, ResponseError, SlotNotCoveredError
from redis.exceptions import TimeoutError as RedisTimeoutError
from structlog.testing import capture_logs

from hybridkit.coordination import (
    Redis,
    check_noeviction,
    connect_redis,
    probe_redis,
    replication_problems,
)
from hybridkit.coordination._clients import SharedClient, _reachable
from hybridkit.coordination._failover import following_master
from hybridkit.errors import SettingsError, UnavailableError
from hybridkit.idempotency import IdempotencyGuard, RedisDown


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncGenerator[str]:
    """A server that gives this answer to everything but the handshake; None for no answer. Yields its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(4096):
            if b"SETINFO" in request.upper():
                writer.write(b"+OK\r\n" * request.upper().count(b"SETINFO"))
            elif answer is not None:
                writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


def info(text: str) -> bytes:
    return f"${len(text)}\r\n{text}\r\n".encode()


@pytest.mark.parametrize("url", ["http://127.0.0.1/0", "redis://user:s3cret@host:s3cret/0", "127.0.0.1:6379"])
def test_a_url_that_is_none_is_an_error_without_its_password(url: str) -> None:
    """The message shows the form of a good one, and the cause is cut off too."""
    with pytest.raises(SettingsError, match="redis://user:password@host") as caught:
        connect_redis(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_nothing_listens_is_told_at_once() -> None:
    """The probe and the check of the policy give the same error."""
    async with connect_redis("redis://127.0.0.1:1/0") as redis:
        with pytest.raises(UnavailableError, match="Redis does not answer"):
            await probe_redis(redis)
        with pytest.raises(UnavailableError, match="Redis does not answer"):
            await check_noeviction(redis)


async def test_a_silent_server_costs_fractions_of_a_second() -> None:
    """A server that takes the connection and never answers is one that is down."""
    async with answering(None) as url, connect_redis(url, timeout_seconds=0.05) as redis:
        since = time.monotonic()
        with pytest.raises(UnavailableError):
            await probe_redis(redis)
        assert time.monotonic() - since < 3


async def test_an_exhausted_pool_is_waited_for_only_so_long() -> None:
    """Callers behind others that wait for a frozen server end too."""
    async with answering(None) as url, connect_redis(url, timeout_seconds=0.1, max_connections=1) as redis:
        since = time.monotonic()
        results = await asyncio.gather(*(probe_redis(redis) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(result, UnavailableError) for result in results)
        assert time.monotonic() - since < 3


async def test_a_server_that_evicts_is_refused_with_the_words_to_fix_it() -> None:
    """The message has the policy that it has, and the command that changes it."""
    async with (
        answering(info("# Memory\r\nmaxmemory_policy:allkeys-lru\r\n")) as url,
        connect_redis(url) as redis,
    ):
        with pytest.raises(SettingsError, match=r"allkeys-lru.*CONFIG SET maxmemory-policy noeviction"):
            await check_noeviction(redis)


async def test_a_server_that_evicts_nothing_is_taken() -> None:
    """It says `noeviction` in its answer to `INFO`."""
    async with (
        answering(info("# Memory\r\nmaxmemory_policy:noeviction\r\n")) as url,
        connect_redis(url) as redis,
    ):
        await check_noeviction(redis)


@pytest.mark.parametrize(
    "answer", [info("# Memory\r\nused_memory:1\r\n"), b"-ERR unknown command 'INFO'\r\n"]
)
async def test_a_server_that_does_not_tell_is_taken_with_a_line_in_the_log(answer: bytes) -> None:
    """A stand-in, or a service that forbids `INFO`, may be as good."""
    with capture_logs() as lines:
        async with answering(answer) as url, connect_redis(url) as redis:
            await check_noeviction(redis)
    assert "make sure that it is noeviction" in lines[-1]["event"]


MASTER = "# Replication\r\nrole:master\r\nconnected_slaves:{replicas}\r\n"


@pytest.mark.parametrize(
    ("replication", "is_risky"),
    [
        (MASTER.format(replicas=0), False),
        (MASTER.format(replicas=2), True),
        (MASTER.format(replicas=2) + "min_slaves_good_slaves:2\r\n", False),
        ("# Replication\r\nrole:slave\r\nconnected_slaves:1\r\n", False),
    ],
)
async def test_a_master_with_replicas_has_to_demand_one_of_them(replication: str, is_risky: bool) -> None:
    """Redis tells in INFO whether it does, which needs no right to read its configuration."""
    async with answering(info(replication)) as url, connect_redis(url) as redis:
        problems = await replication_problems(redis)
    assert [("min-replicas-to-write 1" in problem) for problem in problems] == [True] * is_risky


async def _watched(redis: Redis) -> object:
    async with redis.pipeline() as pipeline:
        await pipeline.watch("key")
        return await pipeline.execute()


async def test_every_call_ends_at_its_deadline() -> None:
    """The whole of it, however many timeouts of redis-py it is made of; its default is six of them."""
    users: list[Callable[[Redis], Awaitable[object]]] = [
        lambda redis: redis.get("key"),
        lambda redis: redis.register_script("return 1")(),
        _pipeline,
        _watched,
    ]
    async with answering(None) as url, connect_redis(url, timeout_seconds=60) as redis:
        assert isinstance(redis, SharedClient)
        assert redis.call_seconds == 360
        redis.call_seconds = 0.02
        for use in users:
            with pytest.raises(RedisTimeoutError, match=r"not answered within 0\.02 s"):
                await use(redis)


# ── a server that isn't the master any more ──────────────────────────────────────────────────────


class Failover:
    """An address that leads to an old master first: its first connections are told this, later ones are served."""

    def __init__(self, told: bytes, *, connections: int = 1) -> None:
        self.told = told
        self.old_connections = connections
        self.connections = 0
        self.commands: list[bytes] = []

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        answer = self.told if self.connections <= self.old_connections else b":1\r\n"
        while request := await reader.read(4096):
            upper = request.upper()
            if b"SETINFO" in upper:
                writer.write(b"+OK\r\n" * upper.count(b"SETINFO"))
            else:
                self.commands.append(request)
                writer.write(answer * request.count(b"*"))
        writer.close()


REFUSALS = [
    b"-READONLY You can't write against a read only replica.\r\n",
    b"-READONLY You can't write against a read only replica. script: 12, on @user_script:4.\r\n",
    b"-ERR Error running script (call to f_1): @user_script:4: -READONLY You can't write against a replica.\r\n",
    b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
    b"-LOADING Redis is loading the dataset in memory\r\n",
    b"-NOREPLICAS Not enough good replicas to write.\r\n",
    b"-CLUSTERDOWN Hash slot not served\r\n",
    b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
    b"-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n",
    b"-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.\r\n",
    b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n",
    b"-EXECABORT Transaction discarded because of: READONLY You can't write against a read only replica.\r\n",
]


async def _pipeline(redis: Redis) -> None:
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.incr("key")
        await pipeline.execute()


@pytest.mark.parametrize("told", REFUSALS, ids=range(len(REFUSALS)))
async def test_a_server_that_takes_no_writes_is_left_and_looked_up_again(told: bytes) -> None:
    """By a command, a script and a pipeline: each goes to the new server, and the old connection is closed."""
    users: list[Callable[[Redis], Awaitable[object]]] = [
        lambda redis: redis.incr("key"),
        lambda redis: redis.evalsha("0" * 40, 1, "key"),
        _pipeline,
        lambda redis: redis.delete("key"),
        probe_redis,
    ]
    for use in users:
        failover = Failover(told)
        async with failover.open() as url, connect_redis(url) as redis:
            await use(redis)
            assert failover.connections == 2
            await use(redis)
            assert failover.connections == 2


async def test_while_no_server_takes_writes_readiness_and_callers_are_told_quickly() -> None:
    """The error has the words of Redis."""
    failover = Failover(REFUSALS[0], connections=1000)
    async with failover.open() as url, connect_redis(url) as redis:
        with pytest.raises(UnavailableError, match="takes no writes: You can't write"):
            await probe_redis(redis)
        guard = IdempotencyGuard(redis, when_down=RedisDown.EXTERNAL)
        with pytest.raises(UnavailableError, match="read only"):
            await guard.begin("orders:order:42", None)


async def test_another_refusal_keeps_the_connection() -> None:
    """A mistake in a command says nothing about the server."""
    failover = Failover(b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n")
    async with failover.open() as url, connect_redis(url) as redis:
        for _ in range(2):
            with pytest.raises(ResponseError):
                await redis.incr("key")
        assert failover.connections == 1


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://h:1/0", "unix:///tmp/redis.sock"])
def test_every_kind_of_connection_follows_the_master(url: str) -> None:
    """And stays of its kind."""
    plain = BlockingConnectionPool.from_url(url).connection_class
    following = connect_redis(url).connection_pool.connection_class
    assert issubclass(following, plain)
    assert following is not plain


LOST = "'NoneType' object is not callable"


@pytest.mark.parametrize(("said", "expected"), [(LOST, RedisConnectionError), ("a mistake", TypeError)])
async def test_a_write_to_a_lost_connection_is_an_error_of_the_connection(
    said: str, expected: type[Exception]
) -> None:
    """asyncio raises a TypeError there in some versions of Python, which nobody who uses Redis expects."""

    async def fail() -> None:
        raise TypeError(said)

    make: Any = following_master(Connection)
    connection = make(host="127.0.0.1", port=1)
    connection._reader = connection._writer = Mock(writelines=Mock(side_effect=TypeError(said)))
    with pytest.raises(expected):
        await connection.send_packed_command(b"PING", check_health=False)
    with pytest.raises(expected):
        await _reachable(fail())


async def test_keys_in_different_slots_stay_a_mistake() -> None:
    """Only a cluster that can't be reached is an error of the connection."""

    async def fail(error: Exception) -> None:
        raise error

    with pytest.raises(RedisClusterException, match="same slot"):
        await _reachable(fail(RedisClusterException("all keys must map to the same slot")))
    for error in (RedisClusterException("Redis Cluster cannot be connected"), SlotNotCoveredError("slot 1")):
        with pytest.raises(RedisConnectionError):
            await _reachable(fail(error))
