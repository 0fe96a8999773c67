"""One side of `benchmarks.bot`, a process of its own: it polls the fake Telegram, with a handler that does nothing.

    python -m benchmarks._bot_side ours 600

It prints the microseconds of CPU time per update, its threads included, from the first update to the last one.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import uvloop
from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.types import Message

from hybridkit.adapters.aiogram import run_bot
from hybridkit.settings import BotSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def run_ours(dispatcher: Dispatcher, _: asyncio.Event) -> None:
    """Run as a service does, with uvloop, until the signal of the last update."""
    run_bot(dispatcher, BotSettings)


def run_peer(dispatcher: Dispatcher, done: asyncio.Event) -> None:
    """Run aiogram's own polling, on the same loop."""

    async def poll() -> None:
        bot = Bot(os.environ["BOT_TOKEN"], session=AiohttpSession(api=_api()))
        start: Callable[..., Coroutine[Any, Any, None]] = getattr(dispatcher, "start_polling")  # noqa: B009 - half typed
        polling = asyncio.create_task(start(bot, handle_signals=False))
        await done.wait()
        await dispatcher.stop_polling()
        await polling

    uvloop.run(poll())


def _api() -> TelegramAPIServer:
    return TelegramAPIServer.from_base(os.environ["TELEGRAM_API_URL"])


def main() -> None:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(prog="benchmarks._bot_side", description=__doc__)
    parser.add_argument("side", choices=("ours", "aiogram"))
    parser.add_argument("updates", type=int)
    arguments = parser.parse_args()
    moments: list[float] = []
    done = asyncio.Event()
    dispatcher = Dispatcher()

    @dispatcher.message()
    async def handle(_: Message) -> None:  # pyright: ignore[reportUnusedFunction]
        moments.append(time.process_time())
        if len(moments) == arguments.updates:
            done.set()
            if arguments.side == "ours":
                os.kill(os.getpid(), signal.SIGTERM)

    (run_ours if arguments.side == "ours" else run_peer)(dispatcher, done)
    print((moments[-1] - moments[0]) / (len(moments) - 1) * 1e6, file=sys.stderr)


if __name__ == "__main__":
    main()
