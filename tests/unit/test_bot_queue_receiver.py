"""The receiver that polls for a bot's queues, without a broker."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis

from hybridkit.adapters._telegram import _queued_updates
from hybridkit.adapters._telegram._queued_updates import UpdateStore, _PollingReceiver
from hybridkit.adapters.aiogram import _connected_bot
from hybridkit.errors import UnavailableError
from hybridkit.messaging import RobustPublisher
from tests.helpers import until
from tests.helpers.bots import ADA, World, lines, world

__all__ = ["lines", "world"]

pytestmark = pytest.mark.usefixtures("lines")


class Store(UpdateStore):
    """Keeps updates in a list, unless it is to fail."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.failures: list[Exception] = []

    async def put(self, raws: Sequence[object]) -> None:
        if raws and self.failures:
            raise self.failures.pop()
        self.kept += raws


@asynccontextmanager
async def receiving(world: World, store: Store) -> AsyncGenerator[_PollingReceiver]:
    async with (
        FakeAsyncRedis(server=world.redis, decode_responses=True) as redis,
        _connected_bot(world.settings) as bot,
        _PollingReceiver(bot, store, ["message"], redis) as receiver,
    ):
        yield receiver


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_queued_updates, "POLLER_PAUSE_SECONDS", 0.01)


async def test_an_update_that_was_not_stored_is_asked_for_again(world: World) -> None:
    """It is confirmed when it is stored, once, and the stop confirms the last one."""
    store = Store()
    store.failures.append(UnavailableError("no broker"))
    async with receiving(world, store) as receiver:
        sent = world.telegram.push_text("hello", from_user=ADA)
        await until(lambda: store.kept)
        await receiver.stop_accepting()
        await receiver.drain(1)
    assert world.telegram.confirmed_update_id == sent
    assert [raw["update_id"] for raw in store.kept] == [sent]


async def test_without_redis_nobody_polls(world: World) -> None:
    """Nobody can know whose turn it is; readiness is red until Redis is back."""
    store = Store()
    world.redis.connected = False
    async with receiving(world, store) as receiver:

        def is_red() -> bool:
            try:
                receiver.check()
            except UnavailableError as error:
                return "no updates" in str(error)
            return False

        await until(is_red)
        assert "getUpdates" not in world.telegram.calls
        world.redis.connected = True
        world.telegram.push_text("hello", from_user=ADA)
        await until(lambda: store.kept)
        receiver.check()


async def test_one_that_has_lost_its_lease_leaves_the_polling_to_the_holder(
    world: World, monkeypatch: pytest.MonkeyPatch, lines: list[Any]
) -> None:
    """It polls again when the other holder has gone."""
    monkeypatch.setattr(_queued_updates, "POLLER_LEASE_SECONDS", 0.5)
    store = Store()
    async with (
        FakeAsyncRedis(server=world.redis, decode_responses=True) as redis,
        receiving(world, store) as receiver,
    ):
        world.telegram.push_text("one", from_user=ADA)
        await until(lambda: store.kept)
        [key] = await redis.keys("hk:lock:telegram_poller:*")
        await redis.hset(key, mapping={"token": "other", "lease_end": "99999999999999"})
        await until(lambda: any("another replica polls" in line["event"] for line in lines))
        receiver.check()
        await redis.delete(key)
        world.telegram.push_text("two", from_user=ADA)
        await until(lambda: len(store.kept) == 2)


async def test_an_answer_without_ids_is_not_asked_for_without_a_pause(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be confirmed then, and Telegram would answer at once."""
    answers: list[list[object]] = [[{"message": {}}], [{"update_id": 5}]]
    offsets: list[int | None] = []
    asked = asyncio.Event()

    async def ask(_: Any, *, offset: int | None, **__: Any) -> list[object]:
        offsets.append(offset)
        if answers:
            return answers.pop(0)
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(_queued_updates, "ask_for_updates", ask)
    store = Store()
    async with receiving(world, store) as receiver:
        await asked.wait()
        assert repr(receiver) == "_PollingReceiver(problem='')"
    assert offsets[:3] == [None, None, 6]
    assert store.kept == [{"message": {}}, {"update_id": 5}]


async def test_a_store_shows_its_service(world: World) -> None:
    """Its representation has no secret."""
    publisher = RobustPublisher("amqp://127.0.0.1:1/", service="shop_bot")
    async with _connected_bot(world.settings) as bot:
        assert repr(UpdateStore(publisher, bot, "shop_bot")) == "UpdateStore('shop_bot')"
