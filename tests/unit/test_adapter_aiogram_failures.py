"""A bot serves everybody: past what it can't read, beside a handler that doesn't end, after an outage."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import suppress
from typing import Any

import pytest
from aiogram import Bot, Dispatcher, F
from aiogram.exceptions import (
    TelegramBadRequest,
    TelegramEntityTooLarge,
    TelegramNetworkError,
    TelegramRetryAfter,
    TelegramServerError,
)
from aiogram.methods import GetMe
from aiogram.types import CallbackQuery, ErrorEvent, InlineQuery, Message, PreCheckoutQuery, TelegramObject
from fakeredis import FakeAsyncRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from structlog.testing import capture_logs

from hybridkit.adapters._telegram import _handling as _telegram_handling
from hybridkit.adapters._telegram import _polling as _telegram_polling
from hybridkit.adapters._telegram._failures import is_temporary
from hybridkit.adapters.aiogram import bot_lifespan
from hybridkit.errors import (
    ClaimLostError,
    DeadlineExceededError,
    DeclarationError,
    HybridkitError,
    InvalidRequestError,
    MisuseError,
    OverloadedError,
    RateLimitedError,
    UnavailableError,
)
from hybridkit.idempotency import claim_key
from hybridkit.observability import metrics
from hybridkit.retry import asked_seconds
from hybridkit.testing import FakeTelegram, TelegramUser
from tests.helpers import until
from tests.unit.test_adapter_aiogram import ADA, BEA, World, world

__all__ = ["world"]

SECRET = "what a person has written"
TOO_NEW_MESSAGE = {
    "message": {
        "message_id": 1,
        "date": 1_420_070_400,
        "chat": {"id": 5, "type": "private"},
        "text": SECRET,
        "forward_origin": {"type": "hidden_user", "date": 1_420_070_400},
    }
}
TOO_NEW: Mapping[str, dict[str, Any]] = {
    "a message of a later form": TOO_NEW_MESSAGE,
    "a type of update that is not known": {"telepathy": {"thought": SECRET}},
    "no type at all": {},
    "a known type that is null": {"message": None},
    "half a surrogate pair": {"message": {**TOO_NEW_MESSAGE["message"], "text": "\ud800"}},
    "a text where an object should be": {"message": SECRET},
    "a moment that no calendar has": {
        "message": {"message_id": 1, "date": 10**30, "chat": {"id": 5, "type": "private"}}
    },
}


@pytest.fixture
def lines() -> Generator[list[Any]]:
    """What is logged; also spares the time for drawing each stack."""
    with capture_logs() as found:
        yield found


pytestmark = pytest.mark.usefixtures("lines")


@pytest.fixture
def dispatcher() -> Dispatcher:
    """Echoes, after it has waited for the event `release` where the text says so; counts what it got as `seen`."""
    made = Dispatcher()
    made["release"], made["seen"] = asyncio.Event(), []

    @made.message(F.text.startswith("wait"))
    async def wait(message: Message, release: asyncio.Event, seen: list[str]) -> None:
        seen.append(f"{message.text}")
        await release.wait()
        await message.answer(f"{message.text}")

    @made.message(F.text)
    async def echo(message: Message, seen: list[str]) -> None:
        seen.append(f"{message.text}")
        await message.answer(f"{message.text}")

    return made


def texts(telegram: FakeTelegram) -> list[str]:
    return [message.text for message in telegram.messages]


def crowd(telegram: FakeTelegram, count: int, text: str = "hello") -> None:
    for number in range(count):
        telegram.push_text(text, from_user=TelegramUser(id=100 + number))


# ── what can't be read ───────────────────────────────────────────────────────────────────────────


async def test_updates_that_can_not_be_read_are_skipped_among_the_others(
    world: World, dispatcher: Dispatcher, lines: list[Any]
) -> None:
    """Each is logged once and confirmed, and those around it are handled once."""
    async with world.polling(dispatcher) as polling:
        last = 0
        for update in TOO_NEW.values():
            world.telegram.push_update(update)
            last = world.telegram.push_text("good", from_user=ADA)
        await world.telegram.wait_for_messages(len(TOO_NEW))
        await world.telegram.wait_until_confirmed(last)
        await polling.probe()
    skipped = [line for line in lines if "can't be read" in line["event"]]
    assert texts(world.telegram) == ["good"] * len(TOO_NEW)
    assert [line["telegram.update_id"] for line in skipped] == [1001 + 2 * n for n in range(len(TOO_NEW))]
    assert [line["telegram.update_type"] for line in skipped][:3] == ["message", "telepathy", "unknown"]
    assert SECRET not in str(lines)


async def test_a_crowd_of_unreadable_updates_is_passed(world: World, dispatcher: Dispatcher) -> None:
    """More than Telegram delivers at once are counted, and the update behind them is handled."""
    for _ in range(250):
        world.telegram.push_update(TOO_NEW_MESSAGE)
    world.telegram.push_text("good", from_user=ADA)
    skipped = metrics.bot_updates_skipped.labels("message")
    before = skipped._value.get()
    async with world.polling(dispatcher):
        await world.telegram.wait_for_messages(1)
    assert skipped._value.get() - before == 250


async def test_what_is_no_update_at_all_is_logged_once_and_passed(
    world: World, dispatcher: Dispatcher, lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an id it is delivered until an update behind it is confirmed."""
    oddities: list[Any] = [None, 7, SECRET, [SECRET], {"message": {}}, {"update_id": "7"}, {"update_id": -3}]
    asked = world.telegram._get_updates

    async def with_oddities(params: Mapping[str, str]) -> list[Any]:
        return [*oddities, *await asked({**params, "timeout": "0"})]

    monkeypatch.setattr(world.telegram, "_get_updates", with_oddities)
    async with world.polling(dispatcher) as polling:
        world.telegram.push_text("good", from_user=ADA)
        await world.telegram.wait_for_messages(1)
        await polling.probe()
        polls = world.telegram.calls.count("getUpdates")
        await world.telegram.wait_for_calls("getUpdates", count=polls + 2)
    assert len([line for line in lines if "can't be read" in line["event"]]) == len(oddities)
    assert SECRET not in str(lines)


@pytest.mark.parametrize("answer", [None, {"message": 1}, "text"])
async def test_an_answer_that_is_no_list_does_not_end_the_asking(
    world: World, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    """The bot polls again, and handles the next update."""
    asked, odd = world.telegram._get_updates, [answer]

    async def first_odd(params: Mapping[str, str]) -> Any:
        return odd.pop() if odd else await asked(params)

    monkeypatch.setattr(world.telegram, "_get_updates", first_odd)
    async with world.polling(dispatcher):
        world.telegram.push_text("good", from_user=ADA)
        await world.telegram.wait_for_messages(1)


async def test_numbers_may_jump(world: World, dispatcher: Dispatcher) -> None:
    """Gaps between update ids, as after a quiet week, do not delay a confirmation."""
    async with world.polling(dispatcher):
        for jump in (1, 5000, 3):
            world.telegram._next_update_id += jump
            last = world.telegram.push_text("good", from_user=ADA)
        await world.telegram.wait_until_confirmed(last)
    assert texts(world.telegram) == ["good"] * 3


# ── what does not end ────────────────────────────────────────────────────────────────────────────


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
    monkeypatch.setattr(_telegram_polling, "STALLED_SECONDS", 0.05)
    async with world.polling(dispatcher) as polling:
        crowd(world.telegram, 9, "wait")
        await until(lambda: len(dispatcher["seen"]) == 9)
        await until(lambda: time.monotonic() - polling._progress_at > 0.1)
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


# ── what fails for a moment ──────────────────────────────────────────────────────────────────────

METHOD = GetMe()
TEMPORARY: list[BaseException] = [
    UnavailableError("down"),
    OverloadedError("busy"),
    RateLimitedError("slowly", retry_after_seconds=0.01),
    DeadlineExceededError("late"),
    ClaimLostError("a claim of the handler's own"),
    TelegramRetryAfter(METHOD, "slowly", 0),
    TelegramNetworkError(METHOD, "cut"),
    TelegramServerError(METHOD, "502"),
    RedisConnectionError("down"),
    ReadOnlyError("You can't write against a read only replica."),
    ResponseError("NOREPLICAS Not enough good replicas to write."),
    ResponseError("BUSY Redis is busy running a script."),
    OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
    ConnectionResetError("cut"),
    TimeoutError("late"),
    ExceptionGroup("both", [UnavailableError("down"), TelegramServerError(METHOD, "502")]),
]
MISTAKES: list[BaseException] = [
    ValueError("a mistake"),
    MisuseError("a mistake"),
    InvalidRequestError("a mistake"),
    TelegramBadRequest(METHOD, "a mistake"),
    ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    TelegramEntityTooLarge(METHOD, "a mistake"),
    ExceptionGroup("one of them", [UnavailableError("down"), ValueError("a mistake")]),
]


@pytest.mark.parametrize("error", TEMPORARY, ids=lambda error: f"{type(error).__name__} {str(error)[:6]}")
def test_what_waiting_cures_is_temporary(error: BaseException) -> None:
    """Errors of networks, servers and Redis are temporary, also within a group."""
    assert is_temporary(error)


@pytest.mark.parametrize("error", MISTAKES, ids=lambda error: type(error).__name__)
def test_a_mistake_is_not_temporary(error: BaseException) -> None:
    """A group with one permanent error is permanent as well."""
    assert not is_temporary(error)


def test_every_error_of_ours_is_temporary_exactly_when_it_is_retryable() -> None:
    """This holds for every class of the error tree."""
    kinds, pending = set[type[HybridkitError]](), [HybridkitError]
    while pending:
        kinds.add(kind := pending.pop())
        pending += kind.__subclasses__()
    assert all(is_temporary(kind.__new__(kind)) is kind.retryable for kind in kinds)


def test_the_longest_wait_that_is_asked_for_counts() -> None:
    """Of a group's errors the longest time decides, and an error without a time asks for none."""
    both = ExceptionGroup(
        "", [TelegramRetryAfter(METHOD, "", 6), UnavailableError("", retry_after_seconds=9.5)]
    )
    assert [asked_seconds(error) for error in (both, *both.exceptions, ValueError())] == [9.5, 6, 9.5, 0]


@pytest.mark.parametrize("error", [UnavailableError("down"), TelegramServerError(METHOD, "502")])
async def test_an_update_that_met_an_outage_is_handled_again_before_the_next_of_its_chat(
    world: World, error: Exception
) -> None:
    """The second update of the chat waits until the first one has succeeded."""
    dispatcher, seen = Dispatcher(), []

    @dispatcher.message()
    async def answer(message: Message) -> None:
        seen.append(message.text)
        if len(seen) < 3:
            raise error
        await message.answer(f"{message.text}")

    async with world.polling(dispatcher):
        world.telegram.push_text("first", from_user=ADA)
        world.telegram.push_text("second", from_user=ADA)
        await world.telegram.wait_for_messages(2)
    assert texts(world.telegram) == ["first", "second"]
    assert seen == ["first", "first", "first", "second"]


type Break = Callable[[Dispatcher, Callable[[], None]], object]


def _by_outer_middleware(dispatcher: Dispatcher, fail: Callable[[], None]) -> None:
    async def middleware(
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        fail()
        return await handler(event, data)

    dispatcher.update.outer_middleware(middleware)


def _by_inner_middleware(dispatcher: Dispatcher, fail: Callable[[], None]) -> None:
    async def middleware(
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        fail()
        return await handler(event, data)

    dispatcher.message.middleware(middleware)


def _by_filter(dispatcher: Dispatcher, fail: Callable[[], None]) -> None:
    async def passes(_: Message) -> bool:
        fail()
        return True

    dispatcher.message.filter(passes)


@pytest.mark.parametrize("breaks", [_by_outer_middleware, _by_inner_middleware, _by_filter])
@pytest.mark.parametrize("has_error_handler", [False, True])
async def test_an_outage_anywhere_on_the_way_to_a_handler_is_tried_again(
    world: World, dispatcher: Dispatcher, breaks: Break, *, has_error_handler: bool
) -> None:
    """This includes middleware and filters, and the application's error handler sees nothing."""
    failures, reported = [UnavailableError("down")], list[BaseException]()

    def fail() -> None:
        if failures:
            raise failures.pop()

    breaks(dispatcher, fail)
    if has_error_handler:

        @dispatcher.errors()
        async def on_error(event: ErrorEvent) -> None:
            reported.append(event.exception)

    async with world.polling(dispatcher):
        world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_for_messages(1)
    assert texts(world.telegram) == ["hello"]
    assert reported == []


async def test_an_outage_in_a_handler_of_errors_is_tried_again(world: World) -> None:
    """The whole update is retried, from its message handler on."""
    dispatcher, steps = Dispatcher(), list[str]()

    @dispatcher.message()
    async def broken(_: Message) -> None:
        steps.append("message")
        raise ValueError("a mistake")

    @dispatcher.errors()
    async def on_error(_: ErrorEvent) -> None:
        steps.append("error")
        if len(steps) < 3:
            raise UnavailableError("nobody to report to")

    async with world.polling(dispatcher):
        update = world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_until_confirmed(update)
    assert steps == ["message", "error", "message", "error"]
    assert texts(world.telegram) == [], "the application's handler of errors has dealt with it"


USER = {"id": 8, "is_bot": False, "first_name": "Bea", "language_code": "ru"}
QUERIES: Mapping[str, dict[str, Any]] = {
    "callback_query": {"id": "1", "from": USER, "chat_instance": "1", "data": "press"},
    "inline_query": {"id": "1", "from": USER, "query": "find", "offset": ""},
    "pre_checkout_query": {
        "id": "1",
        "from": USER,
        "currency": "EUR",
        "total_amount": 1,
        "invoice_payload": "x",
    },
}


@pytest.mark.parametrize("kind", QUERIES)
async def test_queries_are_tried_again_as_messages_are(world: World, kind: str) -> None:
    """A temporary error of a callback, inline or payment query is retried."""
    dispatcher, failures = Dispatcher(), [UnavailableError("down")]
    answered = asyncio.Event()

    @dispatcher.observers[kind]()
    async def answer(_: CallbackQuery | InlineQuery | PreCheckoutQuery) -> None:
        if failures:
            raise failures.pop()
        answered.set()

    async with world.polling(dispatcher):
        world.telegram.push_update({kind: QUERIES[kind]})
        await asyncio.wait_for(answered.wait(), 60)


async def test_telegrams_own_pause_is_kept(world: World, dispatcher: Dispatcher) -> None:
    """An answer with `retry_after` delays the retry for at least that long."""
    async with world.polling(dispatcher):
        world.telegram.fail("sendMessage", status=429, retry_after_seconds=1)
        started = time.monotonic()
        world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_for_messages(1)
        assert time.monotonic() - started >= 1


async def test_a_stop_gives_back_what_waits_to_be_tried_again(world: World) -> None:
    """A drain does not wait for a retry in an hour, and the next process handles both updates."""
    dispatcher, failures = Dispatcher(), [UnavailableError("down", retry_after_seconds=3600)]

    @dispatcher.message()
    async def answer(message: Message) -> None:
        if failures:
            raise failures.pop()
        await message.answer(f"{message.text}")

    async with world.polling(dispatcher) as polling:
        world.telegram.push_text("first", from_user=ADA)
        last = world.telegram.push_text("second", from_user=ADA)
        await until(lambda: not failures)
        await polling.stop_asking(1)
        await asyncio.wait_for(polling.drain(60), 60)
        assert world.telegram.confirmed_update_id < last - 1
    async with world.polling(dispatcher):
        await world.telegram.wait_until_confirmed(last)
    assert texts(world.telegram) == ["first", "second"]


# ── what is given up ─────────────────────────────────────────────────────────────────────────────


def failing(error: BaseException) -> Dispatcher:
    dispatcher = Dispatcher()
    dispatcher["seen"] = []

    async def fail(_: TelegramObject, seen: list[None]) -> None:
        seen.append(None)
        raise error

    for kind in ("message", *QUERIES):
        dispatcher.observers[kind].register(fail)
    return dispatcher


@pytest.mark.parametrize(
    ("error", "runs", "outcome"),
    [(ValueError("a mistake"), 1, "error"), (UnavailableError("down"), 3, "given_up")],
)
async def test_what_is_given_up_is_answered_in_the_persons_language_with_the_request_id(
    world: World, lines: list[Any], error: Exception, runs: int, outcome: str
) -> None:
    """The failed update is logged and counted once, with its outcome."""
    dispatcher = failing(error)
    counted = metrics.bot_update_duration.labels("message", outcome)
    before = counted._sum.get()
    async with world.polling(dispatcher):
        world.telegram.push_text("hello", from_user=BEA)
        [answer] = await world.telegram.wait_for_messages(1)
    request_id = answer.text.rpartition(" ")[2]
    assert answer.text.startswith("Не получилось")  # noqa: RUF001  # Russian
    assert len(request_id) > 20
    assert len(dispatcher["seen"]) == runs
    assert counted._sum.get() > before
    assert [line["event"] for line in lines].count("an update's handler failed") == 1


async def test_buttons_and_payments_get_the_answer_that_they_wait_for(world: World) -> None:
    """A button gets an alert of 200 characters at most, a payment its refusal, and no chat a message."""
    async with world.polling(failing(ValueError("a mistake"))):
        pushed = [world.telegram.push_update({kind: query}) for kind, query in QUERIES.items()]
        await world.telegram.wait_until_confirmed(max(pushed))
    [button] = world.telegram.parameters_of("answerCallbackQuery")
    [payment] = world.telegram.parameters_of("answerPreCheckoutQuery")
    assert button["text"].startswith("Не получилось")  # noqa: RUF001  # Russian
    assert button["show_alert"] == "true"
    assert len(button["text"]) <= 200
    assert payment["error_message"].startswith("Не получилось")  # noqa: RUF001  # Russian
    assert payment["ok"] == "false"
    assert world.telegram.messages == []


async def test_a_button_pressed_long_ago_is_answered_by_a_message(world: World) -> None:
    """When Telegram refuses the answer to a button as too old, the user gets a message."""
    async with world.polling(failing(ValueError("a mistake"))):
        world.telegram.fail("answerCallbackQuery", status=400, description="query is too old")
        world.telegram.push_update({"callback_query": QUERIES["callback_query"]})
        [answer] = await world.telegram.wait_for_messages(1)
    assert answer.chat_id == 8


@pytest.mark.parametrize(
    ("failure_texts", "said"), [({"de": "Leider nein ({request_id})"}, "Leider nein"), ({}, None)]
)
async def test_the_texts_can_be_replaced(
    world: World, failure_texts: Mapping[str, str], said: str | None
) -> None:
    """With an empty mapping nothing is said."""
    async with world.polling(failing(ValueError("a mistake")), failure_texts=failure_texts):
        update = world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_until_confirmed(update)
    assert [text.partition(" (")[0] for text in texts(world.telegram)] == ([said] if said else [])


async def test_a_text_that_can_not_be_filled_in_is_refused_at_the_start(world: World) -> None:
    """The error names the language."""
    with pytest.raises(DeclarationError, match="'en'"):
        async with bot_lifespan(Dispatcher(), world.settings, failure_texts={"en": "{name}"}):
            pass


async def test_a_person_who_has_blocked_the_bot_is_no_trouble(world: World, dispatcher: Dispatcher) -> None:
    """The failure text is tried once, and the update is confirmed."""
    dispatcher.message.middleware(_raising)
    async with world.polling(dispatcher):
        world.telegram.fail("sendMessage", status=403)
        update = world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_until_confirmed(update)
    assert world.telegram.calls.count("sendMessage") == 1


async def _raising(_: Any, __: TelegramObject, data: dict[str, Any]) -> None:
    assert isinstance(data["bot"], Bot)
    raise ValueError("a mistake")
