"""Updates whose handlers fail: retried after an outage, otherwise given up with an answer to the user."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from aiogram import Bot, Dispatcher
from aiogram.exceptions import (
    TelegramBadRequest,
    TelegramEntityTooLarge,
    TelegramNetworkError,
    TelegramRetryAfter,
    TelegramServerError,
)
from aiogram.methods import GetMe
from aiogram.types import CallbackQuery, ErrorEvent, InlineQuery, Message, PreCheckoutQuery, TelegramObject
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

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
    RequirementNotMetError,
    StaleVersionError,
    UnavailableError,
)
from hybridkit.observability import metrics
from hybridkit.retry import asked_seconds
from tests.helpers import until
from tests.helpers.bots import ADA, BEA, World, dispatcher, lines, texts, world

__all__ = ["dispatcher", "lines", "world"]

pytestmark = pytest.mark.usefixtures("lines")


# ── what fails for a moment ──────────────────────────────────────────────────────────────────────

METHOD = GetMe()
TEMPORARY: list[BaseException] = [
    UnavailableError("down"),
    OverloadedError("busy"),
    RateLimitedError("slowly", retry_after_seconds=0.01),
    DeadlineExceededError("late"),
    ClaimLostError("a claim of the handler's own"),
    StaleVersionError("changed since it was read"),
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
    RequirementNotMetError("nothing is left"),
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
    """This holds for every class of the error tree but a stale version: the next run reads the record again."""
    kinds, pending = set[type[HybridkitError]](), [HybridkitError]
    while pending:
        kinds.add(kind := pending.pop())
        pending += kind.__subclasses__()
    temporary = {kind for kind in kinds if is_temporary(kind.__new__(kind))}
    assert temporary == {kind for kind in kinds if kind.retryable} | {StaleVersionError}


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


async def test_an_update_does_not_wait_for_longer_than_its_user(world: World) -> None:
    """With a pause of an hour it is given up at once, not tried before that hour is over."""
    attempts: list[str] = []
    dispatcher = Dispatcher()

    @dispatcher.message()
    async def slow(message: Message) -> None:
        attempts.append(f"{message.text}")
        raise RateLimitedError("come back in an hour", retry_after_seconds=3600)

    async with world.polling(dispatcher):
        update_id = world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_until_confirmed(update_id)
        [answer] = await world.telegram.wait_for_messages(1)
    assert attempts == ["hello"]
    assert answer.text.startswith("Sorry")


async def test_a_stop_gives_back_what_waits_to_be_tried_again(world: World) -> None:
    """A drain does not wait for a retry in four minutes, and the next process handles both updates."""
    dispatcher, failures = Dispatcher(), [UnavailableError("down", retry_after_seconds=240)]

    @dispatcher.message()
    async def answer(message: Message) -> None:
        if failures:
            raise failures.pop()
        await message.answer(f"{message.text}")

    async with world.polling(dispatcher) as polling:
        world.telegram.push_text("first", from_user=ADA)
        last = world.telegram.push_text("second", from_user=ADA)
        await until(lambda: not failures)
        await polling.stop_accepting(1)
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
    world: World,
    lines: list[Any],
    reported: list[BaseException],
    *,
    error: Exception,
    runs: int,
    outcome: str,
) -> None:
    """The failed update is logged, counted and reported once, with its outcome."""
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
    assert reported == [error]


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
