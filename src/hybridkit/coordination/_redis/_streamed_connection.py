"""One established connection, read and written by redis-py: several times dearer, and in need of no private name."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from hybridkit.coordination._redis._commands import Command
from hybridkit.coordination._redis._open_connection import Owner
from hybridkit.coordination._redis._resp import ReplyError

_CODES: Final[dict[type[Exception], str]] = {
    exceptions.NoScriptError: "NOSCRIPT",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.MovedError: "MOVED",
    exceptions.AskError: "ASK",
}
"""The codes that redis-py cuts off the messages of its own exceptions."""


class StreamedConnection:
    """What `OpenConnection` does, by two tasks over the public methods of redis-py's connection.

    Args:
        connection: one of redis-py that is connected.
        owner: gets errors and the end.
    """

    def __init__(self, connection: AbstractConnection, owner: Owner) -> None:
        self.sent: deque[Command] = deque()
        self.sent_bytes = 0
        self.takes_data = True
        self.is_open = True
        self._connection: Any = connection
        self._owner = owner
        self._has_sent = asyncio.Event()
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks = [
            asyncio.create_task(work(), name="hybridkit redis stream") for work in (self._read, self._write)
        ]

    def __repr__(self) -> str:
        return f"StreamedConnection(sent={len(self.sent)})"

    def write(self, commands: Iterable[Command]) -> None:
        """Send commands in one write."""
        commands = list(commands)
        self.sent.extend(commands)
        data = b"".join(command.payload for command in commands)
        self.sent_bytes += len(data)
        self._outgoing.put_nowait(data)
        self._has_sent.set()

    def close(self, reason: str) -> None:
        """Close the socket at once; the commands without a reply go back to the owner."""
        if not self.is_open:
            return
        self.is_open = False
        for task in self._tasks:
            task.cancel()
        self._closing = asyncio.create_task(self._connection.disconnect(nowait=True))
        self._owner.lost(self, reason)

    async def _write(self) -> None:
        while True:
            try:
                await self._connection.send_packed_command(await self._outgoing.get(), check_health=False)
            except (exceptions.RedisError, OSError) as error:
                self.close(f"{type(error).__name__}: {error}")

    async def _read(self) -> None:
        while True:
            if not self.sent:
                self._has_sent.clear()
                await self._has_sent.wait()
            try:
                reply = await self._connection.read_response(disable_decoding=True, timeout=float("inf"))
            except exceptions.ResponseError as error:
                code = _CODES.get(type(error))
                self._owner.refused(self._oldest(), ReplyError(f"{code} {error}" if code else str(error)))
            except (exceptions.RedisError, OSError) as error:
                self.close(f"{type(error).__name__}: {error}")
                return
            else:
                command = self._oldest()
                if not command.reply.done():
                    command.reply.set_result(reply)

    def _oldest(self) -> Command:
        command = self.sent.popleft()
        self.sent_bytes -= len(command.payload)
        return command
