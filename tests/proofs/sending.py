"""The proof of a bot's sender: `python -m tests.proofs.sending`.

Two processes of one bot send 500 messages to 50 chats at once, through a real Redis, to a fake Telegram that counts.
Not one may be over a limit of Telegram's, and each chat has to get its messages in order.
"""

import argparse
import asyncio
import sys
import time
from collections import defaultdict

from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer

from hybridkit.adapters.aiogram import Sender
from hybridkit.coordination import connect_redis
from hybridkit.dev import LocalServers
from hybridkit.testing import FakeTelegram

PROCESSES = 2


async def send(telegram_url: str, redis_url: str, token: str, *, chats: range, each: int) -> None:
    """Send the messages of one process, after a line that says that it is ready and one that tells it to begin."""
    session = AiohttpSession(api=TelegramAPIServer.from_base(telegram_url))
    async with Bot(token, session=session).context() as bot, connect_redis(redis_url) as redis:
        session.middleware(Sender(redis))
        await bot.me()
        print("ready", flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.readline)
        async with asyncio.TaskGroup() as group:
            for number in range(each):
                for chat in chats:
                    group.create_task(bot.send_message(chat, f"{number}"))


async def prove(redis_url: str, *, chats: int, each: int) -> float:
    """Have two processes send to their half of the chats, and return the seconds that it took.

    Raises:
        AssertionError: a limit was exceeded, or an order not kept.
    """
    async with FakeTelegram() as telegram:
        half = chats // PROCESSES
        senders = [
            await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "tests.proofs.sending",
                    "--send",
                    telegram.url,
                    redis_url,
                    telegram.token,
                ),
                *(str(number) for number in (1 + index * half, 1 + (index + 1) * half, each)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            for index in range(PROCESSES)
        ]
        try:
            for sender in senders:
                assert sender.stdout is not None
                assert await sender.stdout.readline() == b"ready\n"
            started = time.monotonic()
            for sender in senders:
                assert sender.stdin is not None
                sender.stdin.write(b"go\n")
            assert [await sender.wait() for sender in senders] == [0] * PROCESSES
            seconds = time.monotonic() - started
        finally:
            for sender in senders:
                if sender.returncode is None:
                    sender.kill()
                    await sender.wait()
        assert telegram.violations == [], telegram.violations
        sent: dict[int, list[str]] = defaultdict(list)
        for message in telegram.messages:
            sent[message.chat_id].append(message.text)
        assert dict(sent) == {chat: [f"{number}" for number in range(each)] for chat in range(1, chats + 1)}
        return seconds


def main() -> None:
    """Run the proof, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--send", nargs=6)
    parser.add_argument("--chats", type=int, default=50)
    parser.add_argument("--each", type=int, default=10)
    options = parser.parse_args()
    if options.send is not None:
        *texts, first, last, each = options.send
        asyncio.run(send(*texts, chats=range(int(first), int(last)), each=int(each)))
        return
    with LocalServers() as servers:
        redis_url = servers.start("redis").url
        seconds = asyncio.run(prove(redis_url, chats=options.chats, each=options.each))
    count = options.chats * options.each
    told = f"{count} messages to {options.chats} chats in {seconds:.1f} s: {count / seconds:.1f} a second"
    print(f"{told}, none too many")  # noqa: T201


if __name__ == "__main__":
    main()
