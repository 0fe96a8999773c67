"""The CPU time that an update costs through the adapter for Aiogram, beside Aiogram's own polling; and the start-up.

Both sides poll the same fake Telegram, a process of its own, and have a handler that does nothing. Ours claims each
update in Redis, so that it runs once, takes the turn of its chat and reads the chat's state there; Aiogram's own
polling promises none of that and keeps states in memory.
"""

import asyncio
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from json import dumps
from typing import Any

from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.types import Message
from pydantic import SecretStr

from benchmarks._report import Result, main
from hybridkit.adapters.aiogram import bot_lifespan
from hybridkit.dev import LocalServers, free_port
from hybridkit.observability import configure_logging
from hybridkit.settings import BotSettings, SecretUrl

TOKEN = "4242:fake-telegram-token"  # noqa: S105  # of the fake
UPDATES = 600
CHATS = 100
ROUNDS = 7
START_RUNS = 5
START_LIMIT_SECONDS = 1.5
UPDATE_GOAL = 1 / 1.5


def measure() -> Iterator[Result]:
    """All results, one after the other."""
    yield start_up()
    with LocalServers() as servers, _fake_telegram() as telegram_url:
        settings = BotSettings(
            service_name="bench_bot",
            bot_token=SecretStr(TOKEN),
            telegram_api_url=SecretUrl(telegram_url),
            redis_url=SecretUrl(servers.start("redis").url),
            rabbitmq_url=SecretUrl(servers.start("rabbitmq").url),
            management_port=0,
            log_level="WARNING",
        )
        configure_logging(settings)
        ours, peer = asyncio.run(_update_seconds(settings))
    yield Result(
        name="an update by polling",
        ours=ours * 1e6,
        peer=peer * 1e6,
        peer_name="aiogram",
        unit="us",
        goal=UPDATE_GOAL,
    )


def start_up() -> Result:
    """Import what a bot needs in a new interpreter, user and system CPU time."""
    seconds: list[float] = []
    for _ in range(START_RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = "import hybridkit.adapters.aiogram, hybridkit.settings"
        subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own interpreter
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return Result(
        name="import of a bot",
        ours=statistics.median(seconds),
        peer=START_LIMIT_SECONDS,
        peer_name="limit",
        unit="s",
        goal=1.0,
    )


async def _update_seconds(settings: BotSettings) -> tuple[float, float]:
    ours: list[float] = []
    peer: list[float] = []
    for _ in range(ROUNDS):
        for side, found in ((_ours, ours), (_peer, peer)):
            await asyncio.to_thread(_push, settings)
            found.append(await _seconds_of(side, settings))
    return statistics.median(ours), statistics.median(peer)


async def _seconds_of(
    side: Callable[[Dispatcher, BotSettings], AbstractAsyncContextManager[None]], settings: BotSettings
) -> float:
    """Return the CPU time per update between the first and the last one."""
    moments: list[float] = []
    done = asyncio.Event()
    dispatcher = Dispatcher()

    @dispatcher.message()
    async def handle(_: Message) -> None:
        moments.append(time.process_time())
        if len(moments) == UPDATES:
            done.set()

    async with side(dispatcher, settings):
        await done.wait()
    return (moments[-1] - moments[0]) / (UPDATES - 1)


@asynccontextmanager
async def _ours(dispatcher: Dispatcher, settings: BotSettings) -> AsyncGenerator[None]:
    async with bot_lifespan(dispatcher, settings) as resources:
        resources.started()
        yield


@asynccontextmanager
async def _peer(dispatcher: Dispatcher, settings: BotSettings) -> AsyncGenerator[None]:
    api = TelegramAPIServer.from_base(settings.telegram_api_url.get_secret_value())
    bot = Bot(TOKEN, session=AiohttpSession(api=api))
    start: Callable[..., Coroutine[Any, Any, None]] = getattr(dispatcher, "start_polling")  # noqa: B009 - half typed
    polling = asyncio.create_task(start(bot, handle_signals=False))
    try:
        yield
    finally:
        await dispatcher.stop_polling()
        await polling


@contextmanager
def _fake_telegram() -> Generator[str]:
    port = free_port()
    command = [sys.executable, "-m", "hybridkit.testing", "telegram", "--port", str(port), "--token", TOKEN]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own interpreter
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health").close()  # noqa: S310 - the fake's own address
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _push(settings: BotSettings) -> None:
    url = f"{settings.telegram_api_url.get_secret_value()}/control/updates"
    for number in range(UPDATES):
        order = {"text": "hello", "from_user": {"id": 1 + number % CHATS}}
        urllib.request.urlopen(url, data=dumps(order).encode()).close()  # noqa: S310 - the fake's


if __name__ == "__main__":
    main(__doc__ or "", measure)
