"""A bot on a fake Telegram and a fake Redis."""

import asyncio
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiogram import Bot, Dispatcher, F
from aiogram.types import Message
from fakeredis import FakeAsyncRedis, FakeServer
from pydantic import SecretStr
from structlog.testing import capture_logs

from hybridkit.adapters._telegram._chat_turns import ChatTurns
from hybridkit.adapters._telegram._handling import HANDLER_SECONDS, UpdateRunner
from hybridkit.adapters._telegram._polling import Polling
from hybridkit.adapters._telegram._webhook import Webhook
from hybridkit.adapters.aiogram import FAILURE_TEXTS, _connected_bot, _started
from hybridkit.coordination import Redis, connect_redis
from hybridkit.dev import free_port
from hybridkit.idempotency import IdempotencyGuard, RedisDown
from hybridkit.retry import Retry
from hybridkit.settings import BotSettings, SecretUrl
from hybridkit.testing import FakeTelegram, TelegramUser

ADA = TelegramUser(id=7)
BEA = TelegramUser(id=8, language_code="ru-RU")
QUICK = Retry.exponential(first_seconds=0.01, cap_seconds=0.02, attempts=3)


class Menu:
    """Stands for anything that a process provides."""


@dataclass
class World:
    telegram: FakeTelegram
    redis: FakeServer = field(default_factory=FakeServer)
    menu: Menu = field(default_factory=Menu)
    redis_url: str | None = None
    """A real Redis, where a fake one isn't enough: dialogues need one."""

    @property
    def settings(self) -> BotSettings:
        return BotSettings(
            service_name="bot",
            bot_token=SecretStr(self.telegram.token),
            telegram_api_url=SecretUrl(self.telegram.url),
            redis_url=SecretUrl("redis://127.0.0.1:1/0"),
            rabbitmq_url=SecretUrl("amqp://127.0.0.1:1/"),
        )

    @asynccontextmanager
    async def polling(
        self,
        dispatcher: Dispatcher,
        *,
        failure_texts: Mapping[str, str] = FAILURE_TEXTS,
        handler_seconds: float = HANDLER_SECONDS,
    ) -> AsyncGenerator[Polling]:
        async with (
            self._runner(
                dispatcher, self.settings, failure_texts=failure_texts, handler_seconds=handler_seconds
            ) as (updates, bot, redis),
            Polling(bot, updates, redis) as polling,
        ):
            yield polling

    @asynccontextmanager
    async def webhook(self, dispatcher: Dispatcher, **settings: Any) -> AsyncGenerator[Webhook]:
        """Run the bot with a webhook on a port of its own."""
        port = free_port()
        chosen: dict[str, Any] = {
            "updates": "webhook",
            "port": port,
            "webhook_url": f"http://127.0.0.1:{port}",
        }
        made = BotSettings(**{**self.settings.model_dump(), **chosen, **settings})
        async with (
            self._runner(dispatcher, made) as (updates, bot, _),
            Webhook(bot, updates, made) as webhook,
        ):
            yield webhook

    @asynccontextmanager
    async def _runner(
        self,
        dispatcher: Dispatcher,
        settings: BotSettings,
        *,
        failure_texts: Mapping[str, str] = FAILURE_TEXTS,
        handler_seconds: float = HANDLER_SECONDS,
    ) -> AsyncGenerator[tuple[UpdateRunner, Bot, Redis]]:
        async with AsyncExitStack() as stack:
            redis: Redis
            if self.redis_url is None:
                fake = FakeAsyncRedis(server=self.redis, decode_responses=True)
                redis = await stack.enter_async_context(fake)
            else:
                redis = await stack.enter_async_context(connect_redis(self.redis_url, timeout_seconds=10))
            guard = IdempotencyGuard(redis, when_down=RedisDown.EXTERNAL)
            bot = await stack.enter_async_context(_connected_bot(settings))
            await stack.enter_async_context(_started(dispatcher, bot, redis, {Menu: self.menu, Bot: bot}))
            updates = UpdateRunner(
                dispatcher,
                bot,
                guard,
                ChatTurns(redis),
                failure_texts=failure_texts,
                handler_seconds=handler_seconds,
                retry=QUICK,
            )
            yield updates, bot, redis


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    async with FakeTelegram() as telegram:
        yield World(telegram)


def texts(telegram: FakeTelegram) -> list[str]:
    return [message.text for message in telegram.messages]


def crowd(telegram: FakeTelegram, count: int, text: str = "hello") -> None:
    for number in range(count):
        telegram.push_text(text, from_user=TelegramUser(id=100 + number))


@pytest.fixture
def lines() -> Generator[list[Any]]:
    """What is logged; also spares the time for drawing each stack."""
    with capture_logs() as found:
        yield found


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
