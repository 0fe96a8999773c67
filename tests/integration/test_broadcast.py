"""Broadcasts over a Redis server that dies, freezes and comes back."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from pydantic import BaseModel

from hybridkit.coordination import Broadcast, Redis, Subscription, connect_redis, use_redis
from hybridkit.dev import Server
from hybridkit.errors import DeclarationError, MisuseError, PayloadTooLargeError, UnavailableError
from hybridkit.testing import FaultProxy
from tests.helpers import until

pytestmark = pytest.mark.real_server


class ConfigChanged(BaseModel):
    """The message of the tests."""

    version: int
    note: str = ""


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, timeout_seconds=10) as redis:
        yield redis


@pytest.fixture
async def other_redis(redis_url: str) -> AsyncGenerator[Redis]:
    """The client of another process; its replies are bytes."""
    async with connect_redis(redis_url, timeout_seconds=10, decode_responses=False) as redis:
        yield redis


@pytest.fixture
def name() -> str:
    """A name that no other test uses: channels belong to the server, and not to one of its databases."""
    return f"config_{uuid4().hex[:8]}"


async def hears_again(broadcast: Broadcast[ConfigChanged], messages: Subscription[ConfigChanged]) -> None:
    """Publish until a message arrives."""

    async def publish() -> None:
        while True:
            with suppress(UnavailableError):
                await broadcast.publish(ConfigChanged(version=2))
            await asyncio.sleep(0.01)

    publishing = asyncio.create_task(publish())
    try:
        async with asyncio.timeout(60):
            assert (await anext(messages)).version == 2
    finally:
        publishing.cancel()


async def test_every_subscriber_gets_every_message(redis: Redis, other_redis: Redis, name: str) -> None:
    """In the order in which they were sent, in this process and in another one."""
    here = Broadcast(name, ConfigChanged, redis=redis)
    there = Broadcast(name, ConfigChanged, redis=other_redis)
    async with here.subscribe() as first, here.subscribe() as second, there.subscribe() as third:
        for version in range(10):
            await here.publish(ConfigChanged(version=version))
        for messages in (first, second, third):
            assert [(await anext(messages)).version for _ in range(10)] == list(range(10))


async def test_a_subscriber_gets_nothing_from_before_and_after(redis: Redis, name: str) -> None:
    """A message is for those who listen at its moment; the iteration ends with the block."""
    broadcast = Broadcast(name, ConfigChanged, redis=redis)
    await broadcast.publish(ConfigChanged(version=1))
    async with broadcast.subscribe() as messages:
        await broadcast.publish(ConfigChanged(version=2))
        assert (await anext(messages)).version == 2
    await broadcast.publish(ConfigChanged(version=3))
    assert [message async for message in messages] == []
    async with broadcast.subscribe() as messages:
        await broadcast.publish(ConfigChanged(version=4))
        assert (await anext(messages)).version == 4


async def test_a_slow_subscriber_loses_the_oldest_messages(redis: Redis, name: str) -> None:
    """Up to its limit they wait; what is dropped is counted, and the others lose nothing."""
    slow = Broadcast(name, ConfigChanged, redis=redis, max_queued=3)
    async with slow.subscribe() as messages:
        for version in range(10):
            await slow.publish(ConfigChanged(version=version))
        await until(lambda: messages.dropped == 7)
        assert [(await anext(messages)).version for _ in range(3)] == [7, 8, 9]
        assert "dropped=7" in repr(messages)


async def test_a_message_of_another_type_is_skipped(redis: Redis, logs: list[Any], name: str) -> None:
    """Another version of the program has sent it, or it is no UTF-8; the next one arrives."""
    broadcast = Broadcast(name, ConfigChanged, redis=redis)
    async with broadcast.subscribe() as messages:
        await redis.publish(f"hk:broadcast:{name}", '{"release": 1}')
        await broadcast.publish(ConfigChanged(version=2))
        assert (await anext(messages)).version == 2
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
            "a message can't be read"
        ]
        await redis.publish(f"hk:broadcast:{name}", b"\xff")
        await hears_again(broadcast, messages)


async def test_a_message_has_a_size_that_hints_have(redis: Redis, name: str) -> None:
    """A larger one is refused before it is sent."""
    broadcast = Broadcast(name, ConfigChanged, redis=redis)
    with pytest.raises(PayloadTooLargeError):
        await broadcast.publish(ConfigChanged(version=1, note="a" * 65_536))


async def test_a_subscription_survives_a_restart(own_redis_server: Server, name: str) -> None:
    """Messages of the time between are lost, which the subscriber can see."""
    async with connect_redis(own_redis_server.url) as redis:
        broadcast = Broadcast(name, ConfigChanged, redis=redis)
        async with broadcast.subscribe() as messages:
            await asyncio.to_thread(own_redis_server.restart)
            await hears_again(broadcast, messages)
            assert messages.interruptions >= 1


async def test_a_silent_loss_is_noticed_by_a_ping(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The network drops everything and reports nothing; the subscription is on another connection then."""
    monkeypatch.setattr("hybridkit.coordination._broadcast.REPLY_SECONDS", 0.2)
    parts = urlsplit(redis_url)
    async with (
        FaultProxy(str(parts.hostname), parts.port or 6379) as proxy,
        connect_redis(redis_url, timeout_seconds=10) as near,
        connect_redis(proxy.url_for(redis_url)) as far,
    ):
        publisher = Broadcast(name, ConfigChanged, redis=near)
        async with Broadcast(name, ConfigChanged, redis=far, ping_seconds=0.2).subscribe() as messages:
            proxy.swallow()
            await until(lambda: messages.interruptions == 1)
            proxy.let_pass()
            await hears_again(publisher, messages)


async def test_a_connection_that_is_cut_comes_back(redis_url: str, name: str) -> None:
    """Without a pause; the subscriber sees that messages may be missing."""
    parts = urlsplit(redis_url)
    async with (
        FaultProxy(str(parts.hostname), parts.port or 6379) as proxy,
        connect_redis(proxy.url_for(redis_url), timeout_seconds=10) as redis,
    ):
        broadcast = Broadcast(name, ConfigChanged, redis=redis)
        async with broadcast.subscribe() as messages:
            proxy.reset()
            await hears_again(broadcast, messages)
            assert messages.interruptions == 1


async def test_a_quiet_subscription_stays(redis: Redis, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Pings are answered, however long nobody says anything."""
    pings: list[object] = []
    send = redis.pubsub().__class__.ping

    async def ping(pubsub: Any) -> None:
        pings.append(pubsub)
        await send(pubsub)

    monkeypatch.setattr(redis.pubsub().__class__, "ping", ping)
    broadcast = Broadcast(name, ConfigChanged, redis=redis, ping_seconds=0.01)
    async with broadcast.subscribe() as messages:
        await until(lambda: len(pings) >= 5)
        await broadcast.publish(ConfigChanged(version=1))
        assert (await anext(messages)).version == 1
        assert len(set(map(id, pings))) == 1


async def test_a_subscription_begins_without_redis(own_redis_server: Server, name: str) -> None:
    """Messages come as soon as it is there; publishing says that it is not."""
    await asyncio.to_thread(own_redis_server.kill)
    async with connect_redis(own_redis_server.url) as redis:
        broadcast = Broadcast(name, ConfigChanged, redis=redis)
        async with broadcast.subscribe() as messages:
            with pytest.raises(UnavailableError):
                await broadcast.publish(ConfigChanged(version=1))
            await asyncio.to_thread(own_redis_server.restart)
            await hears_again(broadcast, messages)


async def test_a_broadcast_that_is_declared_at_import_uses_the_redis_of_the_process(
    redis: Redis, name: str
) -> None:
    """Outside of one, its use is a mistake with a remedy."""
    broadcast = Broadcast(name, ConfigChanged)
    with pytest.raises(MisuseError, match="use_redis"):
        await broadcast.publish(ConfigChanged(version=1))
    with use_redis(redis):
        async with broadcast.subscribe() as messages:
            await broadcast.publish(ConfigChanged(version=1))
            assert (await anext(messages)).version == 1


@pytest.mark.parametrize("options", [{"name": "a b"}, {"max_queued": 0}, {"ping_seconds": 0}], ids=str)
def test_a_declaration_out_of_its_range_is_refused(options: dict[str, Any]) -> None:
    """Where it is declared, and not when it is used."""
    with pytest.raises(DeclarationError):
        Broadcast(options.pop("name", "config"), ConfigChanged, **options)


def test_a_broadcast_shows_its_name() -> None:
    """In logs and debuggers."""
    assert repr(Broadcast("config", ConfigChanged)) == "Broadcast('config')"
