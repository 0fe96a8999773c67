"""A service that answers on a real socket as a test says, byte by byte, and clients that call it."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import BaseModel

from hybridkit.clients import ClientPolicy, PostgresDataClient
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._pipeline._pipeline import Pipeline
from hybridkit.clients._transports._httpx import open_transport
from hybridkit.errors import (
    HybridkitError,
)
from hybridkit.resources import Record, Resource
from hybridkit.retry import Retry

ID = UUID("1f1e5477-3fd3-6f83-be8e-f44fe982b401")
MIB = 1024 * 1024


class NewUser(BaseModel):
    email: str


class User(NewUser, Record):
    pass


USERS = Resource("users", record=User, create=NewUser, update=NewUser)
MOMENT = "2026-01-15T10:30:00Z"
STORED: dict[str, Any] = {
    "id": str(ID),
    "version": 1,
    "created_at": MOMENT,
    "updated_at": MOMENT,
    "etag": '"1-a"',
    "email": "a@example.com",
}
RECORD = json.dumps(STORED).encode()

AT_ONCE = Retry.exponential(first_seconds=0.001, cap_seconds=0.01, attempts=3)
PATIENT = ClientPolicy(
    read_timeout_seconds=30, write_timeout_seconds=30, connect_timeout_seconds=10, retry=AT_ONCE
)
"""For what ends by itself, however busy the machine is."""
HURRIED = replace(PATIENT, read_timeout_seconds=0.3, write_timeout_seconds=0.3)
"""For what only a deadline ends."""
SLACK_SECONDS = 5.0
"""What a busy machine may add to a deadline."""


# ── a server of which the test decides every byte ────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came off the socket."""

    line: str
    headers: dict[str, str]
    body: bytes


class Connection:
    """One accepted connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def request(self) -> Asked:
        """The next request, whole."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        headers = {
            name.lower(): value for name, value in (header.split(": ", maxsplit=1) for header in lines)
        }
        return Asked(line, headers, await self._reader.readexactly(int(headers.get("content-length", "0"))))

    async def request_head(self) -> None:
        """Read a request up to its body."""
        await self._reader.readuntil(b"\r\n\r\n")

    async def send(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self._writer.write(chunk)
            await self._writer.drain()

    async def answer(self, body: bytes, *, status: int = 200, extra: str = "") -> None:
        await self.send(head(len(body), status=status, extra=extra), body)

    def reset(self) -> None:
        """An RST instead of a FIN."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self._writer.transport.abort()


def head(length: int | None, *, status: int = 200, extra: str = "") -> bytes:
    size = "" if length is None else f"content-length: {length}\r\n"
    return f"HTTP/1.1 {status} X\r\n{size}content-type: application/json\r\n{extra}\r\n".encode()


type Behaviour = Callable[[Connection], Awaitable[None]]


class Server:
    """Behaves on its first connection as the first behaviour says, and so on; the last one repeats."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self._behaviours = behaviours
        self._serving: set[asyncio.Task[None]] = set()  # asyncio itself only remembers tasks weakly
        self.connections = 0
        self.url = ""

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behaviour = self._behaviours[min(self.connections, len(self._behaviours) - 1)]
        self.connections += 1
        self._serving.add(asyncio.create_task(self._serve(behaviour, reader, writer)))

    async def aclose(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(
        self, behaviour: Behaviour, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await behaviour(Connection(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone, which is what most of these tests are about
        finally:
            writer.close()


@asynccontextmanager
async def listening(server: Server, *, port: int = 0, host: str = "127.0.0.1") -> AsyncGenerator[Server]:
    listener = await asyncio.start_server(server.accept, host, port)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        await server.aclose()


def answering(*bodies: bytes, status: int = 200, extra: str = "") -> Behaviour:
    """Keeps the connection open and answers each request with the next body, then with the last one."""

    async def behave(connection: Connection) -> None:
        answered = 0
        while True:
            await connection.request()
            await connection.answer(bodies[min(answered, len(bodies) - 1)], status=status, extra=extra)
            answered += 1

    return behave


def sending(*chunks: bytes) -> Behaviour:
    """Answers with these bytes as they are, then closes."""

    async def behave(connection: Connection) -> None:
        await connection.request()
        await connection.send(*chunks)

    return behave


async def hang(connection: Connection) -> None:
    """Takes the request and says nothing."""
    await connection.request()
    await asyncio.Event().wait()


# ── the client under test ────────────────────────────────────────────────────────────────────────


type MakeTransport = Callable[[], httpx.AsyncBaseTransport | None]


@asynccontextmanager
async def talking(
    transport: MakeTransport, *behaviours: Behaviour, policy: ClientPolicy = PATIENT
) -> AsyncGenerator[tuple[PostgresDataClient, Server]]:
    async with (
        listening(Server(*behaviours)) as server,
        PostgresDataClient(server.url, service="api", transport=transport(), policy=policy) as client,
    ):
        yield client, server


LINES = Intent(method="GET", path="/v1/users", safe=True)


@asynccontextmanager
async def piping(
    transport: MakeTransport, *behaviours: Behaviour, policy: ClientPolicy = PATIENT
) -> AsyncGenerator[tuple[Pipeline, Server]]:
    async with listening(Server(*behaviours)) as server:
        wire = open_transport(transport())
        yield Pipeline(wire, base_url=server.url, target="users", service="api", policy=policy), server
        await wire.aclose()


async def failure(call: Awaitable[object], *, policy: ClientPolicy = PATIENT) -> HybridkitError:
    """The error of that call, which has to come within its deadline."""
    started = time.monotonic()
    with pytest.raises(HybridkitError) as caught:
        await call
    assert time.monotonic() - started < policy.write_timeout_seconds + SLACK_SECONDS
    return caught.value


def create(client: PostgresDataClient) -> Awaitable[User]:
    return client.create(USERS, NewUser(email="a@example.com"))
