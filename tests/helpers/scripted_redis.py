"""A server that speaks the protocol of Redis and answers as a test says."""

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Self

import pytest

from hybridkit.coordination._redis._multiplexer import Multiplexer
from hybridkit.coordination._redis._resp import INCOMPLETE, PythonReplyReader
from hybridkit.errors import UnavailableError
from tests.helpers._waiting import until

type Answer = Callable[[list[bytes]], bytes | None]


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)


def echo_last(command: list[bytes]) -> bytes:
    """Answer with the command's last part, which tells whose reply it is."""
    return bulk(command[-1])


class Client:
    """One connection of a client, as the server sees it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.held: list[bytes] = []
        """Answers that a frozen server has not sent."""
        self.is_subscribed = False
        self._unsent = bytearray()

    def send(self, data: bytes, piece: int | None) -> None:
        """Write at once, or in pieces of this size, one in each turn of the event loop."""
        if piece is None and not self._unsent:
            self.writer.write(data)
            return
        is_sending = bool(self._unsent)
        self._unsent += data
        if not is_sending:
            self._send_piece(piece or len(data))

    def _send_piece(self, size: int) -> None:
        if self._unsent:
            self.writer.write(bytes(self._unsent[:size]))
            del self._unsent[:size]
            asyncio.get_running_loop().call_soon(self._send_piece, size)

    def cut(self) -> None:
        self.writer.transport.abort()


class ScriptedRedis:
    """The server: what a client says to set itself up is answered as Redis does, the rest by `answer`.

    Args:
        answer: gives the reply to a command, or None for none.
    """

    def __init__(self, answer: Answer = echo_last) -> None:
        self.answer = answer
        self.commands: list[list[bytes]] = []
        self.set_up: list[list[bytes]] = []
        """The commands with which clients set their connections up."""
        self.reads: list[int] = []
        """How many commands came with each read."""
        self.clients: list[Client] = []
        self.connections = 0
        self.is_frozen = False
        self.piece: int | None = None
        """The size of the pieces in which answers are sent; None for whole ones."""
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(
        self, *, path: str | None = None, tls: ssl.SSLContext | None = None
    ) -> AsyncGenerator[Self]:
        if path is not None:
            server = await asyncio.start_unix_server(self._accept, path)
            self.url = f"unix://{path}"
        else:
            server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls)
            self.url = f"redis{'s' * bool(tls)}://localhost:{server.sockets[0].getsockname()[1]}/0"
        try:
            yield self
        finally:
            server.close()
            self.cut()
            if self._tasks:
                await asyncio.wait(self._tasks)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].partition("/")[0])

    def freeze(self) -> None:
        """Answer nothing any more; the connections stay open."""
        self.is_frozen = True

    def thaw(self) -> None:
        """Go on, and answer what was not answered meanwhile."""
        self.is_frozen = False
        for client in self.clients:
            held, client.held = client.held, []
            client.send(b"".join(held), self.piece)

    def cut(self) -> None:
        """End every connection."""
        for client in self.clients:
            client.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        client = Client(writer)
        self.connections += 1
        self.clients.append(client)
        requests = PythonReplyReader()
        try:
            while data := await reader.read(65536):
                requests.feed(data)
                self._reply(client, requests)
        except OSError:
            pass
        finally:
            self.clients.remove(client)
            writer.close()

    def _reply(self, client: Client, requests: PythonReplyReader) -> None:
        count = 0
        while (command := requests.gets()) is not INCOMPLETE:
            answer = self._set_up(command)
            client.is_subscribed |= command[0] == b"SUBSCRIBE"
            if answer is None:
                count += 1
                self.commands.append(command)
                answer = self.answer(command)
            else:
                self.set_up.append(command)
            if answer is None:
                continue
            if self.is_frozen:
                client.held.append(answer)
            else:
                client.send(answer, self.piece)
        if count:
            self.reads.append(count)

    def _set_up(self, command: Sequence[bytes]) -> bytes | None:
        match [part.upper() for part in command[:2]]:
            case [b"CLIENT", _] | [b"AUTH", _] | [b"SELECT", _]:
                return b"+OK\r\n"
            case [b"ECHO", _]:
                return bulk(command[1])
            case _:
                return None


async def until_told(shared: Multiplexer, words: str) -> None:
    """Ask until the error says why: on a busy machine the first deadline may pass before there is a reason.

    It never has the password of the URL.
    """

    async def is_told() -> bool:
        with pytest.raises(UnavailableError) as caught:
            await shared.execute("GET", "b")
        assert "s3cret" not in str(caught.value)
        return re.search(words, str(caught.value)) is not None

    await until(is_told)
