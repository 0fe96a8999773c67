"""States and data of dialogues in a real Redis, by aiogram's own interface."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiogram import Dispatcher, F
from aiogram.fsm.context import FSMContext
from aiogram.fsm.state import State, StatesGroup
from aiogram.fsm.storage.base import StorageKey
from aiogram.fsm.storage.memory import DisabledEventIsolation, MemoryStorage, SimpleEventIsolation
from aiogram.types import Message

from hybridkit.adapters._telegram._fsm import fsm_in_redis
from hybridkit.adapters.aiogram import ChatIsolation, ChatStorage, _connected_bot, _started
from hybridkit.coordination import Redis, connect_redis
from hybridkit.dev import Server
from hybridkit.errors import MalformedPayloadError, PayloadTooLargeError, UnavailableError
from hybridkit.testing import FakeTelegram
from tests.helpers.bots import ADA, World

pytestmark = pytest.mark.real_server

KEY = StorageKey(bot_id=1, chat_id=-2, user_id=3)
STATE_KEY, DATA_KEY = "hk:fsm:1::-2::3:default:state", "hk:fsm:1::-2::3:default:data"


class Order(StatesGroup):
    size = State()


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, timeout_seconds=10) as redis:
        yield redis


@pytest.fixture
async def storage(redis: Redis) -> ChatStorage:
    return ChatStorage(redis, idle_seconds=60, max_data_bytes=1000)


async def test_a_state_is_kept_until_it_is_cleared(storage: ChatStorage, redis: Any) -> None:
    """As an object or by name; None clears it, and leaves nothing."""
    assert await storage.get_state(KEY) is None
    await storage.set_state(KEY, Order.size)
    assert await storage.get_state(KEY) == "Order:size"
    await storage.set_state(KEY, "by name")
    assert await storage.get_state(KEY) == "by name"
    assert await redis.keys("*") == [STATE_KEY]
    await storage.set_state(KEY)
    assert await storage.get_state(KEY) is None
    assert await redis.keys("*") == []


async def test_data_is_replaced_added_to_and_read(storage: ChatStorage, redis: Any) -> None:
    """Values are what JSON makes of them; an empty mapping leaves nothing."""
    assert await storage.get_data(KEY) == {}
    await storage.set_data(KEY, {"size": "L", "n": 2**60, "имя": [1, None, {"a": 1.5}]})
    assert await storage.update_data(KEY, {"size": "M", "pair": (1, 2)}) == {
        "size": "M",
        "n": 2**60,
        "имя": [1, None, {"a": 1.5}],
        "pair": [1, 2],
    }
    assert await storage.get_value(KEY, "n") == 2**60
    assert await storage.get_value(KEY, "none") is None
    assert await storage.get_value(KEY, "none", 7) == 7
    assert await storage.update_data(KEY, {}) == await storage.get_data(KEY)
    await storage.set_data(KEY, {"only": True})
    assert await storage.get_data(KEY) == {"only": True}
    await storage.set_data(KEY, {})
    assert await storage.get_data(KEY) == {}
    assert await redis.keys("*") == []
    await storage.close()


@pytest.mark.parametrize("use", ["get_state", "get_data", "get_value", "update_data"])
async def test_a_dialogue_lives_for_its_idle_time_after_each_use(
    storage: ChatStorage, redis: Any, use: str
) -> None:
    """Reading sets the time to live anew, as writing does."""
    await storage.set_state(KEY, "s")
    await storage.set_data(KEY, {"a": 1})
    key = STATE_KEY if use == "get_state" else DATA_KEY
    assert 0 < await redis.pttl(key) <= 60_000
    await redis.pexpire(key, 1000)
    arguments = {"get_value": ("a",), "update_data": ({"b": 2},)}.get(use, ())
    await getattr(storage, use)(KEY, *arguments)
    assert 1000 < await redis.pttl(key) <= 60_000


async def test_every_part_of_a_key_counts(storage: ChatStorage) -> None:
    """Dialogues in another thread, business connection, bot or destiny are others."""
    keys = [
        KEY,
        StorageKey(2, -2, 3),
        StorageKey(1, 2, 3),
        StorageKey(1, -2, 3, thread_id=4),
        StorageKey(1, -2, 3, business_connection_id="4"),
        StorageKey(1, -2, 3, destiny="a:b"),
        StorageKey(1, -2, 3, destiny="a"),
    ]
    for number, key in enumerate(keys):
        await storage.set_state(key, f"{number}")
        await storage.set_data(key, {"number": number})
    assert [await storage.get_state(key) for key in keys] == [f"{number}" for number in range(len(keys))]
    assert [await storage.get_value(key, "number") for key in keys] == list(range(len(keys)))


async def test_fifty_handlers_add_to_one_dialogue(storage: ChatStorage) -> None:
    """None of their names is lost."""
    await asyncio.gather(*(storage.update_data(KEY, {f"n{number}": number}) for number in range(50)))
    assert await storage.get_data(KEY) == {f"n{number}": number for number in range(50)}


async def test_data_has_a_bound(storage: ChatStorage) -> None:
    """Too many bytes or names at once, or together with what is there, change nothing."""
    await storage.set_data(KEY, {"a": "x" * 500})
    for data in ({"b": "x" * 500}, {"b": "x" * 2000}, {f"{number}": 1 for number in range(1001)}):
        with pytest.raises(PayloadTooLargeError):
            await storage.update_data(KEY, data)
    await storage.update_data(KEY, {"a": "y" * 900})
    assert await storage.get_data(KEY) == {"a": "y" * 900}
    with pytest.raises(MalformedPayloadError):
        await storage.set_data(KEY, {"b": object()})


async def test_a_thousand_names_fit(redis: Redis) -> None:
    """The script takes as many arguments, and one more name is refused."""
    storage = ChatStorage(redis)
    await storage.set_data(KEY, {f"{number}": number for number in range(1000)})
    assert len(await storage.get_data(KEY)) == 1000
    with pytest.raises(PayloadTooLargeError, match="1001 names"):
        await storage.update_data(KEY, {"one more": 1})


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_without_redis_a_dialogue_is_an_error_that_passes(own_redis_server: Server, how: str) -> None:
    """All calls end with the error after which an update is retried."""
    async with connect_redis(own_redis_server.url) as redis:
        storage = ChatStorage(redis)
        await storage.set_state(KEY, "s")
        getattr(own_redis_server, how)()
        calls = [
            storage.get_state(KEY),
            storage.set_state(KEY, "t"),
            storage.get_data(KEY),
            storage.get_value(KEY, "a"),
            storage.set_data(KEY, {"a": 1}),
            storage.update_data(KEY, {"a": 1}),
        ]
        async with asyncio.timeout(30):
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(each) for each in results} == {UnavailableError}
        if how == "freeze":
            own_redis_server.resume()


async def test_only_aiograms_defaults_are_replaced(redis: Redis) -> None:
    """A dispatcher with a storage or an isolation of its own keeps it, and all is as before afterwards."""

    class Own(MemoryStorage):
        pass

    def parts(dispatcher: Dispatcher) -> list[type]:
        return [type(dispatcher.storage), type(dispatcher.fsm.events_isolation)]

    plain, own = Dispatcher(), Dispatcher(storage=Own(), events_isolation=SimpleEventIsolation())
    with fsm_in_redis(plain, redis), fsm_in_redis(own, redis):
        assert parts(plain) == [ChatStorage, ChatIsolation]
        assert parts(own) == [Own, SimpleEventIsolation]
    assert parts(plain) == [MemoryStorage, DisabledEventIsolation]


def dialogue() -> Dispatcher:
    dispatcher = Dispatcher()

    @dispatcher.message(F.text == "order")
    async def begin(message: Message, state: FSMContext) -> None:
        await state.set_state(Order.size)
        await state.update_data(asked=[message.message_id])

    @dispatcher.message(Order.size)
    async def size(message: Message, state: FSMContext) -> None:
        await message.answer(f"{message.text} {await state.get_data()}")
        await state.clear()

    return dispatcher


async def test_a_dialogue_goes_on_in_another_replica(redis_url: str) -> None:
    """One has asked, and another one gets the answer; afterwards the dialogue is over in both."""
    async with FakeTelegram() as telegram, AsyncExitStack() as stack:
        bot = await stack.enter_async_context(_connected_bot(World(telegram).settings))
        replicas = [dialogue(), dialogue()]
        for dispatcher in replicas:
            client = await stack.enter_async_context(connect_redis(redis_url, timeout_seconds=10))
            await stack.enter_async_context(_started(dispatcher, bot, client, {}))
        for dispatcher, said in zip(replicas, ("order", "L"), strict=True):
            telegram.push_text(said, from_user=ADA)
            [update] = await bot.get_updates(offset=telegram.confirmed_update_id + 1)
            await bot.get_updates(offset=update.update_id + 1)
            await dispatcher.feed_update(bot, update)
        assert [message.text.partition(" ")[0] for message in telegram.messages] == ["L"]
        async with connect_redis(redis_url) as client:
            binary: Any = client
            assert await binary.keys("hk:fsm:*") == []
