"""Sentinels as scripts: who is believed, when connections are dropped, and how long a promotion is waited for."""

import asyncio
import gc
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import NoBackoff

from hybridkit.coordination import connect_redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._redis import _sentinels
from hybridkit.coordination._redis._sentinels import Sentinels
from tests.helpers import until
from tests.helpers.scripted_redis import ScriptedRedis, bulk, echo_last


def listed(*parts: str) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(bulk(part.encode()) for part in parts)


class Sentinel(ScriptedRedis):
    """A sentinel that names a master, as of an epoch, and publishes what a test says."""

    def __init__(self, port: int, epoch: int = 1) -> None:
        super().__init__(self._answer)
        self.master_port = port
        self.epoch = epoch

    def _answer(self, command: list[bytes]) -> bytes:
        match command:
            case [b"SENTINEL", _, b"unknown"]:
                return b"-ERR No such master with that name\r\n"
            case [b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", _]:
                return listed("127.0.0.1", str(self.master_port))
            case [b"SENTINEL", _, name]:
                state = {"name": name.decode(), "flags": "master", "config-epoch": str(self.epoch)}
                return listed(*(word for pair in state.items() for word in pair))
            case [_, *channels]:
                return b"".join(
                    b"*3\r\n" + bulk(b"subscribe") + bulk(channel) + b":%d\r\n" % (number + 1)
                    for number, channel in enumerate(channels)
                )
            case _:
                raise AssertionError(command)

    @property
    def is_heard(self) -> bool:
        return any(client.is_subscribed for client in self.clients)

    def publish(self, channel: str, data: str) -> None:
        for client in self.clients:
            if client.is_subscribed:
                client.writer.write(listed("message", channel, data))


def client_of(sentinel: Sentinel) -> Redis:
    return Redis.from_pool(
        ConnectionPool(
            host="127.0.0.1",
            port=sentinel.port,
            protocol=2,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
        )
    )


@asynccontextmanager
async def sentinels(
    *scripted: Sentinel, master: str = "mymaster"
) -> AsyncGenerator[tuple[Sentinels, list[str]]]:
    """The look-up over these sentinels, and the reasons for which it has asked for new connections."""
    told: list[str] = []
    async with AsyncExitStack() as stack:
        for sentinel in scripted:
            await stack.enter_async_context(sentinel.open())
        found = Sentinels(
            [partial(client_of, sentinel) for sentinel in scripted], master=master, timeout_seconds=20
        )
        found.on_change(told.append)
        try:
            yield found, told
        finally:
            await found.close()


async def until_known(found: Sentinels, port: int) -> None:
    await until(lambda: found._known is not None and found._known.address[1] == port)


async def test_the_master_is_the_one_that_a_sentinel_names() -> None:
    """Several callers at once cost one question."""
    sentinel = Sentinel(7001)
    async with sentinels(sentinel) as (found, told):
        addresses = await asyncio.gather(*(found.address() for _ in range(5)))
        assert addresses == [("127.0.0.1", 7001)] * 5
        assert not told
        assert "7001" in repr(found)
        assert sum(command[1] == b"MASTER" for command in sentinel.commands) <= 2  # one is the watcher's


@pytest.mark.parametrize("master", ["unknown", "mymaster"])
async def test_a_master_that_no_sentinel_names_is_an_error(master: str) -> None:
    """Whether they do not know it or are not there."""
    sentinel = Sentinel(7001)
    async with sentinels(sentinel, master=master) as (found, _):
        if master == "mymaster":
            sentinel.url = "redis://localhost:1/0"
        with pytest.raises(MasterNotFoundError, match=f"no sentinel names the master '{master}'"):
            await found.address()


async def test_an_old_answer_is_believed_only_when_all_have_given_one() -> None:
    """A sentinel that is behind names the old master, and sentinels that were set up anew begin at 0."""
    behind, ahead = Sentinel(7001, epoch=1), Sentinel(7002, epoch=2)
    async with sentinels(behind, ahead) as (found, _):
        await found.address()
        await until_known(found, 7002)
        for _ in range(5):
            assert await found.address() == ("127.0.0.1", 7002)
        ahead.master_port, ahead.epoch = 7003, 0
        assert await found.address() == ("127.0.0.1", 7001)


async def test_a_switch_is_heard_of() -> None:
    """Of this master only, and once, however many sentinels tell it."""
    one, two = Sentinel(7001), Sentinel(7001)
    async with sentinels(one, two) as (found, told):
        await found.address()
        await until(lambda: one.is_heard and two.is_heard)
        for sentinel in (one, two):
            sentinel.publish("+switch-master", "other 127.0.0.1 7001 127.0.0.1 7009")
            sentinel.publish("+switch-master", "mymaster 127.0.0.1 7001 127.0.0.1 7002")
        await until_known(found, 7002)
        one.master_port = two.master_port = 7002
        one.epoch = two.epoch = 2
        assert await found.address() == ("127.0.0.1", 7002)
        assert told == ["the sentinels name another master"]


async def test_a_switch_without_a_message_is_found_by_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a second, also after a sentinel that has gone away and come back."""
    monkeypatch.setattr(_sentinels, "ASK_EVERY_SECONDS", 0.01)
    sentinel = Sentinel(7001)
    async with sentinels(sentinel) as (found, told):
        await found.address()
        sentinel.cut()
        await until(lambda: sentinel.connections >= 4)
        sentinel.master_port, sentinel.epoch = 7002, 2
        await until_known(found, 7002)
        assert told == ["the sentinels name another master"]


PROMOTING = "slave 127.0.0.1:7002 127.0.0.1 7002 @ mymaster 127.0.0.1 7001"


async def test_connections_wait_while_a_replica_is_promoted() -> None:
    """The old master would still confirm writes; the sentinels are asked often until they name the new one."""
    sentinel = Sentinel(7001)
    async with sentinels(sentinel) as (found, told):
        await found.address()
        await until(lambda: sentinel.is_heard)
        sentinel.publish("+failover-state-send-slaveof-noone", PROMOTING.replace("mymaster", "other"))
        sentinel.publish("+failover-state-send-slaveof-noone", PROMOTING)
        await until(lambda: told)
        waiting = asyncio.create_task(found.address())
        asked = len(sentinel.commands)
        await until(lambda: len(sentinel.commands) > asked + 4)
        assert not waiting.done()
        sentinel.master_port, sentinel.epoch = 7002, 2
        assert await waiting == ("127.0.0.1", 7002)
        assert told == ["a replica becomes the master", "the sentinels name another master"]


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_promotion_that_fails_ends_the_wait(monkeypatch: pytest.MonkeyPatch, is_told: bool) -> None:
    """At once when the sentinel says so, and otherwise after a few seconds; the master is still the old one."""
    if not is_told:
        monkeypatch.setattr(_sentinels, "HOLD_SECONDS", 0.05)
    sentinel = Sentinel(7001)
    async with sentinels(sentinel) as (found, told):
        await found.address()
        await until(lambda: sentinel.is_heard)
        sentinel.publish("+failover-state-send-slaveof-noone", PROMOTING)
        await until(lambda: told)
        if is_told:
            sentinel.publish("-failover-abort-slave-timeout", "master mymaster 127.0.0.1 7001")
        assert await found.address() == ("127.0.0.1", 7001)
        assert told == ["a replica becomes the master"]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the first loop ends without closing
def test_another_event_loop_gets_watchers_of_its_own() -> None:
    """Those of the first have ended with it; closing in a loop that has opened nothing is nothing."""
    sentinel = Sentinel(7001)
    kept: list[Sentinels] = []

    async def use() -> None:
        async with sentinel.open():
            found = (
                kept[0] if kept else Sentinels([lambda: client_of(sentinel)], master="m", timeout_seconds=20)
            )
            kept.append(found)
            assert await found.address() == ("127.0.0.1", 7001)
            if len(kept) == 2:
                await found.close()

    asyncio.run(use())
    asyncio.run(kept[0].close())
    asyncio.run(use())
    gc.collect()  # redis-py's complaints about the connections of the first loop belong to this test


async def test_client_and_shared_connection_go_over_to_the_new_master() -> None:
    """With the credentials of the servers there, and those of the sentinels here."""
    old, new = ScriptedRedis(lambda _: bulk(b"old")), ScriptedRedis(echo_last)
    async with old.open(), new.open():
        sentinel = Sentinel(old.port)
        async with sentinel.open():
            hosts = f"127.0.0.1:{sentinel.port},127.0.0.1:1"
            url = f"redis+sentinel://user:of-servers@{hosts}/mymaster/0?sentinel_password=of-sentinels"
            async with connect_redis(url, timeout_seconds=10) as redis:
                shared = multiplexer_of(redis)
                assert await redis.get("key") == "old"
                assert await shared.execute("GET", "key") == b"old"
                assert shared.name == f"mymaster of {hosts}"
                await until(lambda: sentinel.is_heard)
                sentinel.master_port, sentinel.epoch = new.port, 2
                sentinel.publish("+switch-master", f"mymaster 127.0.0.1 {old.port} 127.0.0.1 {new.port}")
                await until(lambda: not old.clients)
                assert await redis.get("key") == "key"
                assert await shared.execute("GET", "key") == b"key"
    assert passwords(old) == {b"of-servers"}
    assert passwords(sentinel) == {b"of-sentinels"}


def passwords(server: ScriptedRedis) -> set[bytes]:
    return {command[-1] for command in server.set_up if command[0] == b"AUTH"}
