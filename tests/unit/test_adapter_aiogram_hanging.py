"""Handlers that do not end affect neither other chats nor the confirmation of updates."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from aiogram import Dispatcher, F
from aiogram.types import Message
from fakeredis import FakeAsyncRedis

from hybridkit.adapters._telegram import _handling as _telegram_handling
from hybridkit.adapters._telegram import _polling as _telegram_polling
from hybridkit.adapters._telegram import _running_updates
from hybridkit.errors import (
    UnavailableError,
)
from hybridkit.idempotency import claim_key
from hybridkit.testing import TelegramUser
from tests.helpers import until
from tests.helpers.bots import ADA, BEA, World, crowd, dispatcher, lines, texts, world

__all__ = ["dispatcher", "lines", "world"]

pytestmark = pytest.mark.usefixtures("lines")


async def test_handlers_that_do_not_end_starve_nobody(world: World, dispatcher: Dispatcher) -> None:
    """While three handlers wait, 250 other updates are answered; in the end the three are, too."""
    async with world.polling(dispatcher) as polling:
        for number in range(3):
            world.telegram.push_text("wait", from_user=TelegramUser(id=10 + number))
        crowd(world.telegram, 250)
        await world.telegram.wait_for_messages(250, timeout_seconds=30)
        await polling.probe()
        dispatcher["release"].set()
        await world.telegram.wait_for_messages(253)
    assert texts(world.telegram).count("wait") == 3
    assert len(dispatcher["seen"]) == 253


async def test_more_handlers_than_telegram_delivers_at_once_may_hang(
    world: World, dispatcher: Dispatcher
) -> None:
    """With 220 waiting handlers the next update is still delivered, and later all are answered."""
    async with world.polling(dispatcher):
        crowd(world.telegram, 220, "wait")
        world.telegram.push_text("next", from_user=ADA)
        await world.telegram.wait_for_messages(1, timeout_seconds=30)
        dispatcher["release"].set()
        await world.telegram.wait_for_messages(221, timeout_seconds=30)
    assert texts(world.telegram)[0] == "next"


async def test_what_telegram_has_forgotten_meanwhile_survives_a_crash(
    world: World, dispatcher: Dispatcher
) -> None:
    """An update that was confirmed from the shelf and then cancelled is handled by the next process."""
    async with world.polling(dispatcher):
        slow = world.telegram.push_text("wait", from_user=ADA)
        crowd(world.telegram, 120)
        await world.telegram.wait_for_messages(120, timeout_seconds=30)
        await world.telegram.wait_until_confirmed(slow)
    dispatcher["release"].set()
    for _ in range(2):
        async with world.polling(dispatcher):
            world.telegram.push_text("after", from_user=ADA)
            await world.telegram.wait_for_calls("getUpdates")
            await world.telegram.wait_for_messages(122, timeout_seconds=30)
    assert texts(world.telegram)[120:122] == ["wait", "after"], "the chat's order is kept"
    assert texts(world.telegram).count("wait") == 1


@pytest.mark.parametrize(
    ("number", "entry"),
    [
        ("x", "[9e9, {}]"),
        ("1", "no JSON"),
        ("1", "{}"),
        ("1", "[9e9]"),
        ("1", '["soon", {}]'),
        ("1", "[9e9, 7]"),
    ],
)
async def test_what_others_put_on_the_shelf_hides_nothing(
    world: World, dispatcher: Dispatcher, number: str, entry: str
) -> None:
    """Entries that the bot can't read keep it neither from starting nor from handling the others."""
    chat = {"id": 7, "type": "private"}
    message = {"message_id": 1, "date": 1_420_070_400, "chat": chat, "text": "kept"}
    kept = json.dumps([9e9, {"update_id": 900, "message": message}])
    async with FakeAsyncRedis(server=world.redis) as redis:
        shelf = f"hk:bot:{world.telegram.bot_id}:updates"
        await redis.hset(shelf, mapping={number: entry, "900": kept})  # pyright: ignore[reportUnknownMemberType]
    async with world.polling(dispatcher) as polling:
        await world.telegram.wait_for_messages(1)
        await polling.probe()
    assert texts(world.telegram) == ["kept"]


async def died_on(world: World, update_id: int) -> int:
    """Leave the claim behind that two processes have had when they died; the update's number."""
    claim = f"hk:claim:{claim_key('telegram', str(world.telegram.bot_id), update_id)}"
    left: dict[Any, Any] = {"state": "P", "token": "dead", "lease_end": 0, "fence": 2, "takeovers": 1}
    async with FakeAsyncRedis(server=world.redis) as redis:
        await redis.hset(claim, mapping=left)  # pyright: ignore[reportUnknownMemberType]
    return update_id


async def test_what_processes_have_died_on_runs_alone(world: World) -> None:
    """Two updates that processes died on do not run together, so the next death takes only one with it."""
    dispatcher, running, seen, last = Dispatcher(), set[str](), list[set[str]](), 0

    @dispatcher.message()
    async def handle(message: Message) -> None:
        running.add(message.text or "")
        seen.append(running.copy())
        await asyncio.sleep(0)
        running.discard(message.text or "")

    for text, from_user in {"one": ADA, "two": BEA}.items():
        last = await died_on(world, world.telegram.push_text(text, from_user=from_user))
    async with world.polling(dispatcher):
        await world.telegram.wait_until_confirmed(last)
    assert sorted(map(sorted, seen)) == [["one"], ["two"]]


async def test_what_runs_alone_and_does_not_end_starves_nobody(
    world: World, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update that runs alone blocks others for a limited time only."""
    monkeypatch.setattr(_telegram_handling, "ALONE_SECONDS", 0.05)
    for number in range(3):
        await died_on(world, world.telegram.push_text("wait", from_user=TelegramUser(id=10 + number)))
    async with world.polling(dispatcher):
        world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_for_messages(1)
        assert texts(world.telegram) == ["hello"]
        dispatcher["release"].set()
        await world.telegram.wait_for_messages(4)


async def test_updates_of_a_chat_are_handled_in_their_order(world: World, dispatcher: Dispatcher) -> None:
    """The second update of a chat waits for the first one, and another chat's does not."""
    async with world.polling(dispatcher):
        world.telegram.push_text("wait 1", from_user=ADA)
        world.telegram.push_text("2", from_user=ADA)
        world.telegram.push_text("other", from_user=BEA)
        await world.telegram.wait_for_messages(1)
        dispatcher["release"].set()
        await world.telegram.wait_for_messages(3)
    assert texts(world.telegram) == ["other", "wait 1", "2"]


async def test_a_handler_that_takes_too_long_is_given_up_and_answered(
    world: World, dispatcher: Dispatcher
) -> None:
    """After its time limit the user gets the failure text, and the chat's next update runs."""
    async with world.polling(dispatcher, handler_seconds=0.05):
        world.telegram.push_text("wait", from_user=ADA)
        world.telegram.push_text("next", from_user=ADA)
        messages = await world.telegram.wait_for_messages(2)
    assert messages[0].text.startswith("Sorry")
    assert messages[1].text == "next"
    assert dispatcher["seen"] == ["wait", "next"]


class Odd(BaseException):
    """What a library written in Rust raises when it panics."""


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


async def be_cancelled() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.sleep(60)


async def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "end",
    [
        lambda: fail(Odd()),
        lambda: fail(BaseExceptionGroup("several", [Odd(), ValueError()])),
        lambda: fail(GeneratorExit()),
        lambda: fail(StopAsyncIteration()),
        lambda: fail(asyncio.CancelledError()),
        cancel_itself,
        be_cancelled,
    ],
    ids=[
        "panic",
        "group",
        "GeneratorExit",
        "StopAsyncIteration",
        "CancelledError",
        "cancels itself",
        "cancelled",
    ],
)
async def test_however_a_handler_ends_its_update_is_given_up_and_answered_once(
    world: World, end: Callable[[], Awaitable[object]]
) -> None:
    """The next update is handled also after a panic, a cancellation, or a handler that cancels itself."""
    dispatcher, seen = Dispatcher(), []

    @dispatcher.message()
    async def handle(message: Message) -> None:
        seen.append(message.text)
        if message.text == "bad":
            await end()
        await message.answer("good")

    async with world.polling(dispatcher):
        world.telegram.push_text("bad", from_user=ADA)
        last = world.telegram.push_text("good", from_user=ADA)
        await world.telegram.wait_until_confirmed(last)
    assert seen == ["bad", "good"]
    assert [text[:5] for text in texts(world.telegram)] == ["Sorry", "good"]


async def test_a_handler_that_can_not_be_cancelled_is_left_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its update is given up, and its chat goes on without it."""
    monkeypatch.setattr(_telegram_handling, "CANCELLED_SECONDS", 0.05)
    dispatcher, goes_on = Dispatcher(), asyncio.Event()

    @dispatcher.message(F.text == "stubborn")
    async def stubborn(_: Message) -> None:
        while not goes_on.is_set():
            with suppress(asyncio.CancelledError):
                await goes_on.wait()

    @dispatcher.message()
    async def echo(message: Message) -> None:
        await message.answer(f"{message.text}")

    async with world.polling(dispatcher, handler_seconds=0.05):
        world.telegram.push_text("stubborn", from_user=ADA)
        last = world.telegram.push_text("next", from_user=ADA)
        await world.telegram.wait_until_confirmed(last)
        assert [text[:5] for text in texts(world.telegram)] == ["Sorry", "next"]
        goes_on.set()


async def test_what_fails_beside_the_handlers_has_an_end(
    world: World, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update with an unexpected error is retried five times, and then dropped."""
    asked = 0

    async def broken(*_: object, **__: object) -> None:
        nonlocal asked
        asked += 1
        raise RuntimeError("a bug")

    monkeypatch.setattr(_telegram_polling, "BUSY_POLL_SECONDS", 0.0)
    monkeypatch.setattr("hybridkit.idempotency.IdempotencyGuard.begin", broken)
    async with world.polling(dispatcher):
        await world.telegram.wait_until_confirmed(world.telegram.push_text("hello", from_user=ADA))
    assert asked == 5


async def test_a_bot_that_has_no_room_left_says_that_it_is_not_ready(
    world: World, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the limit of running handlers the probe raises, until one has ended."""
    monkeypatch.setattr(_telegram_polling, "MAX_RUNNING", 3)
    async with world.polling(dispatcher) as polling:
        crowd(world.telegram, 3, "wait")
        await until(lambda: len(dispatcher["seen"]) == 3 and polling._problem)
        with pytest.raises(UnavailableError, match="in hand"):
            await polling.probe()
        dispatcher["release"].set()
        await world.telegram.wait_for_messages(3)
        await world.telegram.wait_for_calls("getUpdates", count=2)
        await polling.probe()


async def test_a_bot_whose_handlers_all_wait_says_that_it_is_not_ready(
    world: World, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe raises for ten waiting chats, but not for nine, whose handlers may just be slow."""
    monkeypatch.setattr(_running_updates, "STALLED_SECONDS", 0.05)
    async with world.polling(dispatcher) as polling:
        crowd(world.telegram, 9, "wait")
        await until(lambda: len(dispatcher["seen"]) == 9)
        await until(lambda: time.monotonic() - polling._running._progress_at > 0.1)
        await polling.probe()
        crowd(world.telegram, 9, "wait for the first one")
        world.telegram.push_text("wait", from_user=ADA)
        await until(lambda: len(dispatcher["seen"]) == 10)
        with pytest.raises(UnavailableError, match="10 chats wait"):
            await polling.probe()
        dispatcher["release"].set()
        await world.telegram.wait_for_messages(19)
        await polling.probe()


async def test_without_redis_for_the_shelf_the_bot_says_that_it_is_not_ready(
    world: World, dispatcher: Dispatcher
) -> None:
    """The probe names Redis, and afterwards all updates are handled."""
    async with world.polling(dispatcher) as polling:
        world.redis.connected = False
        crowd(world.telegram, 120)
        await until(lambda: polling._problem)
        with pytest.raises(UnavailableError, match="Redis"):
            await polling.probe()
        world.redis.connected = True
        await world.telegram.wait_for_messages(120, timeout_seconds=30)
