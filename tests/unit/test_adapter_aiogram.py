"""No update is lost and none runs twice, seen by a real bot client against a fake Telegram over HTTP."""

import asyncio
from typing import Annotated, Any

import pytest
from aiogram import Bot, Dispatcher, F, Router
from aiogram.filters import Command, CommandObject
from aiogram.fsm.context import FSMContext
from aiogram.methods import SendMessage
from aiogram.types import Message, User
from structlog.testing import capture_logs

from hybridkit.adapters.aiogram import _connected_bot
from hybridkit.context import RequestContext, current
from hybridkit.errors import AccessDeniedError, DeclarationError, UnavailableError
from tests.helpers.bots import ADA, BEA, Menu, World, world

__all__ = ["world"]


@pytest.fixture
def dispatcher() -> Dispatcher:
    """Answers `echo …` at once, and `slow` when the event is set that it puts into its data."""
    made = Dispatcher()
    made["release"] = asyncio.Event()
    made["begun"] = asyncio.Event()

    @made.message(F.text == "slow")
    async def slow(message: Message, release: asyncio.Event, begun: asyncio.Event) -> None:
        begun.set()
        await release.wait()
        await message.answer("slow done")

    @made.message(F.text == "broken")
    async def broken(message: Message) -> None:
        raise RuntimeError("a bug in a handler")

    @made.message(F.text.startswith("echo"))
    async def echo(message: Message) -> SendMessage:
        return message.answer(f"{message.text}")

    return made


async def test_handlers_get_what_they_ask_for_by_type_and_by_name(world: World) -> None:
    """Types come from the providers, also through an alias, and names from the dispatcher's data."""
    dispatcher, router = Dispatcher(), Router()
    dispatcher.include_router(router)
    dispatcher["by_name"] = "kept"
    seen: list[object] = []

    @router.message(Command("start"))
    async def start(
        message: Message,
        menu: Annotated[Menu, "an alias"],
        bot: Bot,
        context: RequestContext,
        by_name: str,
    ) -> None:
        seen.extend([menu, bot.id, context.request_id == current().request_id, by_name])
        await message.answer("hello")

    router.message.register(lambda message: message.answer("no annotations"))
    async with world.polling(dispatcher):
        world.telegram.push_text("/start", from_user=ADA)
        world.telegram.push_text("anything", from_user=ADA)
        await world.telegram.wait_for_messages(2)
    assert seen == [world.menu, world.telegram.bot_id, True, "kept"]


async def test_an_annotation_that_cannot_be_resolved_is_refused_at_the_start(world: World) -> None:
    """The error names the parameter."""
    dispatcher = Dispatcher()

    @dispatcher.message()
    async def start(message: Message, menu: "Unknown") -> None: ...  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]

    with pytest.raises(DeclarationError, match="menu"):
        async with world.polling(dispatcher):
            pass


async def test_an_update_that_is_delivered_again_runs_once(world: World, dispatcher: Dispatcher) -> None:
    """A redelivered update is not handled again, and the next one is."""
    async with world.polling(dispatcher):
        first = world.telegram.push_text("echo 1", from_user=ADA)
        await world.telegram.wait_for_messages(1)
        await world.telegram.wait_until_confirmed(first)
        world.telegram.redeliver(first)
        world.telegram.push_text("echo 2", from_user=ADA)
        messages = await world.telegram.wait_for_messages(2)
    assert [message.text for message in messages] == ["echo 1", "echo 2"]


async def test_a_slow_update_stays_unconfirmed_and_holds_nobody_up(
    world: World, dispatcher: Dispatcher
) -> None:
    """Another chat is answered meanwhile, and neither update is confirmed before the handler ends."""
    async with world.polling(dispatcher):
        slow = world.telegram.push_text("slow", from_user=ADA)
        await dispatcher["begun"].wait()
        quick = world.telegram.push_text("echo", from_user=BEA)
        await world.telegram.wait_for_messages(1)
        assert world.telegram.confirmed_update_id < slow
        dispatcher["release"].set()
        await world.telegram.wait_until_confirmed(quick)
    assert [message.text for message in world.telegram.messages] == ["echo", "slow done"]


async def test_a_stop_waits_for_what_runs_and_confirms_it(world: World, dispatcher: Dispatcher) -> None:
    """Draining ends after the running handler, with its update confirmed."""
    async with world.polling(dispatcher) as polling:
        slow = world.telegram.push_text("slow", from_user=ADA)
        await dispatcher["begun"].wait()
        await polling.stop_accepting(1)
        draining = asyncio.create_task(polling.drain(30))
        dispatcher["release"].set()
        await draining
    assert world.telegram.confirmed_update_id == slow
    assert [message.text for message in world.telegram.messages] == ["slow done"]


async def test_what_a_stop_breaks_off_is_delivered_again_and_runs(
    world: World, dispatcher: Dispatcher
) -> None:
    """The update of a handler that a stop has cancelled is handled by the next process."""
    async with world.polling(dispatcher) as polling:
        slow = world.telegram.push_text("slow", from_user=ADA)
        await dispatcher["begun"].wait()
        await polling.stop_accepting(0)
        await polling.drain(0)
        assert world.telegram.confirmed_update_id < slow
    dispatcher["release"].set()
    async with world.polling(dispatcher):
        await world.telegram.wait_for_messages(1)
        await world.telegram.wait_until_confirmed(slow)
    assert [message.text for message in world.telegram.messages] == ["slow done"]


async def test_a_failing_handler_stops_nothing_and_does_not_run_again(
    world: World, dispatcher: Dispatcher
) -> None:
    """The failed update is confirmed and logged once, and the next one is handled."""
    with capture_logs() as lines:
        async with world.polling(dispatcher):
            broken = world.telegram.push_text("broken", from_user=ADA)
            await world.telegram.wait_until_confirmed(broken)
            world.telegram.redeliver(broken)
            world.telegram.push_text("echo", from_user=ADA)
            await world.telegram.wait_for_messages(2)
    assert [line["event"] for line in lines].count("an update's handler failed") == 1


@pytest.mark.parametrize("status", [429, 502, 409])
async def test_polling_goes_on_after_telegram_had_trouble(
    world: World, dispatcher: Dispatcher, status: int
) -> None:
    """A failed call is repeated, when Telegram wants it and never at once, and the bot is ready again after it."""
    asked_seconds = 1 if status == 429 else None
    world.telegram.fail("getUpdates", status=status, retry_after_seconds=asked_seconds)
    with capture_logs() as lines:
        async with world.polling(dispatcher) as polling:
            await world.telegram.wait_for_calls("getUpdates")
            world.telegram.push_text("echo", from_user=ADA)
            await world.telegram.wait_for_messages(1)
            await polling.probe()
    [pause_seconds] = [line["again_in_seconds"] for line in lines if line["event"] == "no updates"]
    assert pause_seconds >= (asked_seconds or 0.1)


async def test_readiness_says_that_telegram_gives_no_updates(world: World, dispatcher: Dispatcher) -> None:
    """While calls fail, the probe raises with the kind of the error."""
    world.telegram.fail("getUpdates", status=502, times=1000)
    async with world.polling(dispatcher) as polling:
        await world.telegram.wait_for_calls("getUpdates", count=2)
        with pytest.raises(UnavailableError, match="TelegramServerError"):
            await polling.probe()


async def test_a_token_that_stops_being_valid_ends_the_process(world: World, dispatcher: Dispatcher) -> None:
    """A 401 during polling ends the wait with an error that names BOT_TOKEN."""
    async with world.polling(dispatcher) as polling:
        await world.telegram.wait_for_calls("getUpdates")
        world.telegram.fail("getUpdates", status=401, times=1000)
        world.telegram.push_text("echo", from_user=ADA)
        with pytest.raises(AccessDeniedError, match="BOT_TOKEN"):
            await polling.until(asyncio.Event())
        with pytest.raises(UnavailableError):
            await polling.probe()


async def test_a_wrong_token_is_refused_at_the_start(world: World) -> None:
    """The error names BOT_TOKEN."""
    settings = world.settings
    world.telegram.token = "7:another"
    with pytest.raises(AccessDeniedError, match="BOT_TOKEN"):
        async with _connected_bot(settings):
            pass


async def test_a_telegram_that_is_not_there_yet_is_worth_waiting_for(world: World) -> None:
    """A 502 at the start is a retryable error, which the start waits out."""
    world.telegram.fail("getMe", status=502)
    with pytest.raises(UnavailableError, match="TelegramServerError"):
        async with _connected_bot(world.settings):
            pass


async def test_an_update_waits_while_redis_is_down(world: World, dispatcher: Dispatcher) -> None:
    """Without Redis nothing is handled or confirmed, and afterwards the update is answered."""
    async with world.polling(dispatcher):
        world.redis.connected = False
        update = world.telegram.push_text("echo", from_user=ADA)
        await world.telegram.wait_for_calls("getUpdates", count=3)
        assert world.telegram.messages == []
        assert world.telegram.confirmed_update_id < update
        world.redis.connected = True
        await world.telegram.wait_for_messages(1)


async def test_startup_and_shutdown_handlers_run_around_the_updates(
    world: World, dispatcher: Dispatcher
) -> None:
    """They also run in hybridkit's polling, which deletes a webhook first."""
    steps: list[str] = []

    @dispatcher.startup()
    async def on_startup(bot: Bot) -> None:
        steps.append(f"startup {bot.id}")

    @dispatcher.shutdown()
    async def on_shutdown() -> None:
        steps.append("shutdown")

    async with world.polling(dispatcher):
        assert steps == [f"startup {world.telegram.bot_id}"]
    assert steps[1:] == ["shutdown"]
    assert "deleteWebhook" in world.telegram.calls


class Nope:
    """Nobody provides it."""


@pytest.mark.parametrize("filters", [(), (F.text == "a",), (F.photo,), (Command("start"),)])
async def test_what_nobody_provides_is_found_at_the_start(world: World, filters: tuple[Any, ...]) -> None:
    """The error names the parameter, its type, the handler, and the types that are provided."""
    dispatcher = Dispatcher()

    @dispatcher.message(*filters)
    async def handle(message: Message, n: Nope) -> None: ...

    with pytest.raises(DeclarationError, match=r"nothing provides n: Nope for the handler .*handle.* Menu"):
        async with world.polling(dispatcher):
            pass


async def test_what_somebody_may_provide_is_no_mistake(world: World) -> None:
    """An argument that Aiogram, a filter, middleware, the startup or a default may provide is no error."""
    dispatcher, watched = Dispatcher(), Router()
    dispatcher.include_router(watched)

    @dispatcher.startup()
    async def begin(dispatcher: Dispatcher) -> None:
        dispatcher["late"] = Nope()

    @dispatcher.message(Command("start"))
    async def by_aiogram(
        message: Message, command: CommandObject, state: FSMContext, event_from_user: User, bots: list[Bot]
    ) -> None: ...

    @dispatcher.message(F.text.regexp("a").as_("found"))
    async def by_filter(message: Message, found: Nope) -> None: ...

    @dispatcher.message(lambda message: {"n": Nope()})
    async def by_function(message: Message, n: Nope) -> None: ...

    @dispatcher.message(Command("late"))
    async def by_startup(message: Message, late: Nope, n: Nope | None = None) -> None: ...

    async def give(handler: Any, event: Any, data: dict[str, Any]) -> Any:
        return await handler(event, {**data, "n": Nope()})

    watched.message.middleware.register(give)

    @watched.message()
    async def by_middleware(message: Message, n: Nope) -> None: ...

    async with world.polling(dispatcher):
        pass


async def test_what_a_filter_has_not_given_is_told_clearly(world: World) -> None:
    """When a filter could have passed the argument and did not, the logged error names the parameter."""
    dispatcher = Dispatcher()

    @dispatcher.message(lambda message: True)
    async def handle(message: Message, n: Nope) -> None: ...

    with capture_logs() as logs:
        async with world.polling(dispatcher):
            world.telegram.push_text("a", from_user=ADA)
            await world.telegram.wait_for_messages(1)
    [told] = [entry for entry in logs if entry["event"] == "an update's handler failed"]
    assert "nothing provides n: Nope" in str(told["exc_info"])
