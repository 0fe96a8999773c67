"""What Aiogram offers works as ever: middleware, filters, routers, states, scenes and its own helpers."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from aiogram import Bot, Dispatcher, F, Router
from aiogram.dispatcher.event.bases import SkipHandler
from aiogram.filters import Command, CommandObject, Filter, StateFilter
from aiogram.filters.callback_data import CallbackData
from aiogram.fsm.context import FSMContext
from aiogram.fsm.scene import Scene, SceneRegistry, on
from aiogram.fsm.state import State, StatesGroup
from aiogram.fsm.storage.base import StorageKey
from aiogram.types import CallbackQuery, Message, TelegramObject, Update
from aiogram.utils.callback_answer import CallbackAnswerMiddleware
from aiogram.utils.chat_action import ChatActionMiddleware

from hybridkit.adapters.dependencies import Context
from hybridkit.testing import FakeTelegram
from tests.helpers.bots import ADA, BEA, Menu, World, texts

pytestmark = [pytest.mark.real_server, pytest.mark.usefixtures("logs")]


@pytest.fixture
async def world(redis_url: str) -> AsyncGenerator[World]:
    async with FakeTelegram() as telegram:
        yield World(telegram, redis_url=redis_url)


class Order(StatesGroup):
    dish = State()
    count = State()


class Choice(CallbackData, prefix="choice"):
    dish: str
    count: int


class IsShort(Filter):
    """Passes for short texts, and tells their length."""

    async def __call__(self, message: Message) -> bool | dict[str, Any]:
        length = len(message.text or "")
        return {"length": length} if length < 5 else False


def message_of(text: str, *, chat: int, user: int, kind: str = "group") -> dict[str, Any]:
    """Return an update with a text of a user's in any chat."""
    sender = {"id": user, "is_bot": False, "first_name": "Ada"}
    place = {"id": chat, "type": kind, "title": "Kitchen"} if kind == "group" else {"id": chat, "type": kind}
    return {"message": {"message_id": 1, "date": 1, "chat": place, "from": sender, "text": text}}


def button_of(data: str) -> dict[str, Any]:
    """Return an update with a button that Ada has pressed."""
    user = {"id": ADA.id, "is_bot": False, "first_name": ADA.first_name}
    message = {"message_id": 1, "date": 1, "chat": {"id": ADA.id, "type": "private"}}
    return {
        "callback_query": {"id": "1", "from": user, "chat_instance": "1", "data": data, "message": message}
    }


async def test_middleware_runs_in_aiograms_order_and_gives_arguments_by_name(world: World) -> None:
    """The outer ones before the filters, the inner ones around the handler; what is given by type comes beside it."""
    steps: list[str] = []
    dispatcher, router = Dispatcher(), Router()
    dispatcher.include_router(router)

    def noting(name: str) -> Any:
        async def middleware(
            handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
            event: TelegramObject,
            data: dict[str, Any],
        ) -> Any:
            steps.append(f"{name} {type(event).__name__}")
            data[name] = name
            try:
                return await handler(event, data)
            finally:
                steps.append(f"{name} ends")

        return middleware

    dispatcher.update.outer_middleware(noting("every"))
    dispatcher.message.outer_middleware(noting("outer"))
    router.message.middleware(noting("inner"))

    async def passes(message: Message) -> bool:
        steps.append("filter")
        return bool(message.text)

    @router.message(passes)
    async def answer(message: Message, outer: str, inner: str, menu: Menu, context: Context) -> None:
        steps.append("handler")
        assert (outer, inner, menu) == ("outer", "inner", world.menu)
        await message.answer(context.request_id)

    async with world.polling(dispatcher):
        world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_for_messages(1)
    assert steps[:5] == ["every Update", "outer Message", "filter", "inner Message", "handler"]
    assert steps[5:] == ["inner ends", "outer ends", "every ends"]


async def test_middleware_may_end_an_update(world: World) -> None:
    """Without a call of the handler the update is done, and isn't tried again."""
    dispatcher = Dispatcher()

    async def only_ada(
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        assert isinstance(event, Message)
        if event.from_user is not None and event.from_user.id == ADA.id:
            return await handler(event, data)
        return None

    dispatcher.message.outer_middleware(only_ada)

    @dispatcher.message()
    async def answer(message: Message) -> None:
        await message.answer("done")

    async with world.polling(dispatcher):
        await world.telegram.wait_until_confirmed(world.telegram.push_text("hello", from_user=BEA))
        await world.telegram.wait_until_confirmed(world.telegram.push_text("hello", from_user=ADA))
    assert [message.chat_id for message in world.telegram.messages] == [ADA.id]


async def test_filters_choose_the_handler_and_give_arguments(world: World) -> None:
    """Commands, magic filters, those of the application's own, routers in routers, and handlers that pass on."""
    dispatcher, outer, inner, last = Dispatcher(), Router(), Router(), Router()
    dispatcher.include_routers(outer, last)
    outer.include_router(inner)
    outer.message.filter(F.chat.type == "private")

    @inner.message(Command("say"))
    async def say(message: Message, command: CommandObject) -> None:
        await message.answer(f"said {command.args}")

    @inner.message(F.text.regexp(r"^number (\d+)$").group(1).as_("number"))
    async def number(message: Message, number: str) -> None:
        await message.answer(f"number is {number}")

    @outer.message(F.text == "pass on")
    async def pass_on(_: Message) -> None:
        raise SkipHandler

    @outer.message(IsShort())
    async def short(message: Message, length: int) -> None:
        await message.answer(f"short of {length}")

    @last.message()
    async def other(message: Message) -> None:
        await message.answer("other")

    async with world.polling(dispatcher):
        for text in ("/say it", "number 12", "ab", "pass on", "long enough"):
            await world.telegram.wait_until_confirmed(world.telegram.push_text(text, from_user=ADA))
        group = world.telegram.push_update(message_of("ab", chat=-5, user=ADA.id))
        await world.telegram.wait_until_confirmed(group)
    assert texts(world.telegram) == ["said it", "number is 12", "short of 2", "other", "other", "other"]


async def test_buttons_and_aiograms_helpers_work(world: World) -> None:
    """Data of buttons is parsed, buttons are answered by themselves, and the chat shows that the bot types."""
    dispatcher = Dispatcher()
    dispatcher.callback_query.middleware(CallbackAnswerMiddleware())
    dispatcher.message.middleware(ChatActionMiddleware())

    @dispatcher.callback_query(Choice.filter(F.count > 1))
    async def chosen(query: CallbackQuery, callback_data: Choice, bot: Bot) -> None:
        await bot.send_message(query.from_user.id, f"{callback_data.count} {callback_data.dish}")

    @dispatcher.message(flags={"chat_action": "upload_photo"})
    async def answer(message: Message) -> None:
        await world.telegram.wait_for_calls("sendChatAction")
        await message.answer("done")

    async with world.polling(dispatcher):
        world.telegram.push_update(button_of(Choice(dish="soup", count=1).pack()))
        world.telegram.push_update(button_of(Choice(dish="soup", count=2).pack()))
        await world.telegram.wait_for_calls("answerCallbackQuery")
        world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_for_messages(2)
    assert texts(world.telegram) == ["2 soup", "done"]
    assert world.telegram.parameters_of("sendChatAction")[0]["action"] == "upload_photo"
    assert world.telegram.calls.count("answerCallbackQuery") == 1


def ordering() -> Dispatcher:
    """Make a bot that asks for a dish and a number, each user in each chat by themselves."""
    dispatcher = Dispatcher()

    @dispatcher.message(Command("order"))
    async def order(message: Message, state: FSMContext) -> None:
        await state.set_state(Order.dish)
        await message.answer("what?")

    @dispatcher.message(StateFilter(Order.dish))
    async def dish(message: Message, state: FSMContext) -> None:
        await state.update_data(dish=message.text)
        await state.set_state(Order.count)
        await message.answer("how many?")

    @dispatcher.message(Order.count, F.text.isdecimal())
    async def count(message: Message, state: FSMContext) -> None:
        data = await state.get_data()
        await state.clear()
        await message.answer(f"{message.text} {data['dish']}")

    @dispatcher.message()
    async def other(message: Message) -> None:
        await message.answer("nothing is ordered")

    return dispatcher


async def test_each_user_has_a_dialogue_of_their_own_in_each_chat(world: World) -> None:
    """In a group two users order at once, and one of them also in private; no answer gets into another dialogue."""
    said = [
        ("/order", -5, ADA.id),
        ("/order", -5, BEA.id),
        ("soup", -5, ADA.id),
        ("hello", ADA.id, ADA.id),
        ("bread", -5, BEA.id),
        ("/order", ADA.id, ADA.id),
        ("2", -5, ADA.id),
        ("tea", ADA.id, ADA.id),
        ("3", -5, BEA.id),
        ("1", ADA.id, ADA.id),
        ("4", -5, ADA.id),
    ]
    async with world.polling(ordering()):
        for text, chat, user in said:
            update = message_of(text, chat=chat, user=user, kind="group" if chat < 0 else "private")
            await world.telegram.wait_until_confirmed(world.telegram.push_update(update))
    assert texts(world.telegram) == [
        "what?",
        "what?",
        "how many?",
        "nothing is ordered",
        "how many?",
        "what?",
        "2 soup",
        "how many?",
        "3 bread",
        "1 tea",
        "nothing is ordered",
    ]


async def test_updates_of_a_chat_do_not_overwrite_each_others_data(world: World) -> None:
    """Thirty that come at once each read the number of a dialogue and write one more; beside them another chat's."""
    dispatcher = Dispatcher()

    @dispatcher.message()
    async def count(message: Message, state: FSMContext) -> None:
        before = (await state.get_data()).get("count", 0)
        await state.set_data({"count": before + 1})
        if before + 1 == 30:
            await message.answer(f"{before + 1} of {message.chat.id}")

    async with world.polling(dispatcher):
        for _ in range(30):
            for user in (ADA, BEA):
                world.telegram.push_text("one more", from_user=user)
        await world.telegram.wait_for_messages(2)
    assert sorted(texts(world.telegram)) == [f"30 of {ADA.id}", f"30 of {BEA.id}"]


async def test_a_handler_that_is_tried_again_finds_its_state(world: World) -> None:
    """What the first try has stored in the dialogue is there in the second one."""
    dispatcher, tries = Dispatcher(), list[Any]()

    @dispatcher.message()
    async def answer(message: Message, state: FSMContext) -> None:
        tries.append(await state.get_value("seen"))
        await state.update_data(seen=len(tries))
        if len(tries) < 3:
            raise ConnectionError("a service is down")
        await message.answer("done")

    async with world.polling(dispatcher):
        world.telegram.push_text("hello", from_user=ADA)
        await world.telegram.wait_for_messages(1)
    assert tries == [None, 1, 2]


class Quiz(Scene, state="quiz"):
    """Asks once, and ends with the answer."""

    @on.message.enter()
    async def ask(self, message: Message) -> None:
        await message.answer("2 + 2?")

    @on.message(F.text)
    async def check(self, message: Message) -> None:
        await message.answer("right" if message.text == "4" else "wrong")
        await self.wizard.exit()


async def test_scenes_work(world: World) -> None:
    """Entered by a command and left by an answer; the state lies in Redis as any other."""
    dispatcher, last = Dispatcher(), Router()
    SceneRegistry(dispatcher).add(Quiz)
    dispatcher.message.register(Quiz.as_handler(), Command("quiz"))
    dispatcher.include_router(last)

    @last.message()
    async def other(message: Message) -> None:
        await message.answer("no quiz")

    async with world.polling(dispatcher):
        for text in ("/quiz", "4", "4"):
            await world.telegram.wait_until_confirmed(world.telegram.push_text(text, from_user=ADA))
        key = StorageKey(bot_id=world.telegram.bot_id, chat_id=ADA.id, user_id=ADA.id)
        assert await dispatcher.storage.get_state(key) is None
    assert texts(world.telegram) == ["2 + 2?", "right", "no quiz"]


async def test_a_handler_of_all_updates_works(world: World) -> None:
    """Middleware on updates sees each as Aiogram's type, with the bot that has received it."""
    dispatcher, seen = Dispatcher(), list[tuple[str, bool]]()

    async def note(
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        assert isinstance(event, Update)
        seen.append((event.event_type, event.bot is data["bot"]))
        return await handler(event, data)

    dispatcher.update.outer_middleware(note)

    @dispatcher.message()
    async def answer(message: Message) -> None:
        await message.answer("done")

    async with world.polling(dispatcher):
        await world.telegram.wait_until_confirmed(world.telegram.push_text("hello", from_user=ADA))
    assert seen == [("message", True)]
