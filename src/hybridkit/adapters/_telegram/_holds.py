"""The chats that Telegram wants to be left alone for a time, as all processes of a bot know them."""

import asyncio
import math
from contextlib import suppress
from typing import Final

from hybridkit.coordination import Redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._process_redis import redis_of_process
from hybridkit.coordination._redis._multiplexer import Multiplexer
from hybridkit.errors import UnavailableError

MANY_CHATS: Final = 3
"""With so many chats on hold at once in a process, Telegram means the bot, so that all others wait too."""


class Holds:
    """Times before which nothing goes to a chat. Without Redis, a process knows only those that it was told itself.

    Args:
        redis: the client that all processes share; by default that of the process.
    """

    def __init__(self, redis: Redis | None) -> None:
        self._shared = None if redis is None else multiplexer_of(redis)
        self._until: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Holds({len(self._until)} chats)"

    async def put(self, bot_id: int, chat: str, seconds: float) -> None:
        """Leave a chat alone for a time that Telegram has named."""
        self._until[chat] = _now() + seconds
        with suppress(UnavailableError):
            milliseconds = math.ceil(seconds * 1000)
            await self._multiplexer().execute("SET", _key(bot_id, chat), "1", "PX", milliseconds)

    async def left_seconds(self, bot_id: int, chat: str) -> float:
        """Return the time for which a chat has still to be left alone, 0 or less for none."""
        now = _now()
        self._until = {each: until for each, until in self._until.items() if until > now}
        until = self._until.get(chat, 0.0)
        if len(self._until) >= MANY_CHATS:
            until = max(until, min(self._until.values()))
        milliseconds = 0
        with suppress(UnavailableError):
            milliseconds = await self._multiplexer().execute("PTTL", _key(bot_id, chat))
        return max(until - now, milliseconds / 1000)

    def _multiplexer(self) -> Multiplexer:
        return self._shared or multiplexer_of(redis_of_process("the sender of a bot"))


def _key(bot_id: int, chat: str) -> str:
    return f"hk:bot:{bot_id}:hold:{chat}"


def _now() -> float:
    return asyncio.get_running_loop().time()
