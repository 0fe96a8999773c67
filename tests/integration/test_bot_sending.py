"""A bot's messages keep Telegram's limits over its processes, on a real Redis."""

import pytest
from aiogram import Dispatcher
from aiogram.filters import Command
from aiogram.types import Message
from pydantic import SecretStr

from hybridkit.adapters._telegram._holds import Holds
from hybridkit.adapters.aiogram import bot_lifespan
from hybridkit.context import RequestContext
from hybridkit.coordination import connect_redis, use_redis
from hybridkit.errors import DeclarationError
from hybridkit.settings import BotSettings, SecretUrl
from hybridkit.testing import FakeTelegram, TelegramUser
from tests.proofs.sending import prove

pytestmark = pytest.mark.real_server

ADA = TelegramUser(id=7)


def settings_of(telegram: FakeTelegram, redis_url: str, rabbitmq_url: str) -> BotSettings:
    return BotSettings(
        service_name="bot",
        port=0,
        redis_url=SecretUrl(redis_url),
        rabbitmq_url=SecretUrl(rabbitmq_url),
        bot_token=SecretStr(telegram.token),
        telegram_api_url=SecretUrl(telegram.url),
    )


async def test_two_processes_together_keep_telegrams_limits(redis_url: str) -> None:
    """A fake Telegram counts 60 messages to 30 chats, and finds none too many; `make sending` is the long form."""
    seconds = await prove(redis_url, chats=30, each=2)
    assert seconds >= 60 / 27


async def test_a_bots_answers_wait_for_telegrams_limits_and_its_429(
    redis_url: str, rabbitmq_url: str
) -> None:
    """`message.answer` waits as `bot.send_message` does, the answers come in order, and none comes too early."""
    dispatcher = Dispatcher()

    @dispatcher.message()
    async def answer(message: Message) -> None:
        for number in range(5):
            await message.answer(f"{number}")

    async with FakeTelegram(enforces_limits=True) as telegram:
        telegram.fail("sendMessage", status=429, retry_after_seconds=1)
        async with bot_lifespan(dispatcher, settings_of(telegram, redis_url, rabbitmq_url)) as resources:
            resources.started()
            update_id = telegram.push_text("hello", from_user=ADA)
            await telegram.wait_until_confirmed(update_id, timeout_seconds=60)
    assert [message.text for message in telegram.messages] == [f"{number}" for number in range(5)]
    assert telegram.calls.count("sendMessage") == 6
    assert telegram.violations == []


async def test_a_429_holds_up_the_chat_in_all_processes(redis_url: str) -> None:
    """The other process learns it from Redis; without Redis each knows what it was told itself."""
    async with (
        connect_redis(redis_url) as first,
        connect_redis(redis_url) as second,
        connect_redis("redis://127.0.0.1:1/0") as none,
    ):
        holds, others = Holds(first), Holds(second)
        await holds.put(4242, "7", 30)
        assert 29 < await others.left_seconds(4242, "7") <= 30
        assert await others.left_seconds(4242, "8") <= 0
        assert await others.left_seconds(4243, "7") <= 0
        with use_redis(second):
            assert await Holds(None).left_seconds(4242, "7") > 29
        alone = Holds(none)
        await alone.put(4242, "9", 30)
        assert await alone.left_seconds(4242, "9") > 29
        assert await others.left_seconds(4242, "9") <= 0
        assert repr(alone) == "Holds(1 chats)"


async def test_a_user_who_has_blocked_the_bot_is_noted(redis_url: str, rabbitmq_url: str) -> None:
    """The application's function gets the chat, and the update is done: nobody waits for an answer."""
    dispatcher, noted = Dispatcher(), list[tuple[int, bool, str]]()

    @dispatcher.message(Command("both"))
    async def answer(message: Message) -> None:
        await message.answer("hello")

    async def on_blocked(chat_id: int, settings: BotSettings, context: RequestContext) -> None:
        noted.append((chat_id, bool(context.request_id), settings.service_name))

    async with FakeTelegram() as telegram:
        telegram.block(ADA.id)
        settings = settings_of(telegram, redis_url, rabbitmq_url)
        async with bot_lifespan(dispatcher, settings, on_blocked=on_blocked) as resources:
            resources.started()
            await telegram.wait_until_confirmed(
                telegram.push_text("/both", from_user=ADA), timeout_seconds=60
            )
    assert noted == [(7, True, "bot")]
    assert telegram.calls.count("sendMessage") == 1


async def test_a_function_for_blocks_that_wants_what_nobody_has_ends_the_start(
    redis_url: str, rabbitmq_url: str
) -> None:
    """The error names the parameter."""

    async def on_blocked(chat_id: int, nobody: FakeTelegram) -> None: ...

    async with FakeTelegram() as telegram:
        settings = settings_of(telegram, redis_url, rabbitmq_url)
        with pytest.raises(DeclarationError, match="nobody: FakeTelegram"):
            async with bot_lifespan(Dispatcher(), settings, on_blocked=on_blocked):
                pass
