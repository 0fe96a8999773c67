"""The shared connection as its users see it: commands and scripts with a deadline each."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection

from hybridkit.coordination._redis._commands import Command, Script
from hybridkit.coordination._redis._handshake import open_connection
from hybridkit.coordination._redis._node import NodeConnection
from hybridkit.coordination._redis._open_connection import Connection
from hybridkit.coordination._redis._resp import Part, encode
from hybridkit.errors import MisuseError


class Multiplexer:
    """Commands and scripts over one connection, which is opened with the first of them.

    Every command may be sent twice, when the first connection is lost before the reply. Its replies are bytes, numbers,
    None, and lists of these. A caller may be cancelled at any time; the command runs nevertheless.

    It belongs to the event loop of its first command. When that loop has ended, the next one gets a new connection.

    Args:
        make_connection: makes a connection of redis-py to the present address, not connected yet.
        name: the server in logs and errors, without credentials.
        timeout_seconds: the time from the call to the reply or an error, connecting included.
    """

    def __init__(
        self, make_connection: Callable[[], AbstractConnection], *, name: str, timeout_seconds: float
    ) -> None:
        self.name = name
        self.timeout_seconds = timeout_seconds
        self._make_connection = make_connection
        self._node: NodeConnection | None = None

    def __repr__(self) -> str:
        return f"Multiplexer({self.name!r}, timeout_seconds={self.timeout_seconds})"

    @property
    def is_away(self) -> bool:
        """Whether Redis can't be reached for longer than a command waits: commands fail at once."""
        return self._node is not None and self._node.is_away

    def run(
        self, script: Script, keys: Sequence[str], *arguments: Part, even_if_away: bool = False
    ) -> asyncio.Future[Any]:
        """Run a script; the future gets its reply.

        Args:
            script: the script; it may run twice.
            keys: its keys; on a cluster they have the same hash tag.
            arguments: its arguments.
            even_if_away: wait for the deadline also while Redis is away, rather than to fail at once.

        Errors of the future:
            UnavailableError: there was no reply before the deadline, or Redis is away. The script may have run.
            CommandRefusedError: Redis has answered with an error.
            OverloadedError: too many commands wait for a reply; this one was not sent.
        """
        node, loop = self._node, asyncio.get_running_loop()
        if node is None or node.loop is not loop:
            node = self._start()
        command = Command(
            encode(script.by_digest(keys, arguments)),
            loop.create_future(),
            loop.time() + self.timeout_seconds,
            (script, keys, arguments),
        )
        node.send(command, even_if_away=even_if_away)
        return command.reply

    def execute(self, *parts: Part, even_if_away: bool = False) -> asyncio.Future[Any]:
        """Send a command, as in `execute("GET", key)`; the future gets its reply, or an error as for `run`."""
        node, loop = self._node, asyncio.get_running_loop()
        if node is None or node.loop is not loop:
            node = self._start()
        command = Command(encode(parts), loop.create_future(), loop.time() + self.timeout_seconds)
        node.send(command, even_if_away=even_if_away)
        return command.reply

    def retire(self, reason: str) -> None:
        """Give up the present connection, and send what has no reply over the next one."""
        if self._node is not None:
            self._node.retire(reason)

    async def close(self) -> None:
        """Close the connection; commands without a reply fail with `UnavailableError`."""
        node, self._node = self._node, None
        if node is not None and not node.loop.is_closed():
            await node.close()

    def _start(self) -> NodeConnection:
        if self._node is not None and not self._node.loop.is_closed():
            raise MisuseError(
                "a Redis client belongs to one event loop: make one for each with connect_redis(url)"
            )
        self._node = NodeConnection(self._open, name=self.name, timeout_seconds=self.timeout_seconds)
        return self._node

    async def _open(self, owner: NodeConnection) -> Connection:
        return await open_connection(self._make_connection(), owner)
