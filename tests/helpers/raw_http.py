"""A served API and its clients on raw sockets."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from fastapi import FastAPI, Request

from hybridkit.adapters import _server
from hybridkit.adapters._http import _connection
from hybridkit.adapters._http._connection import H11Connection
from hybridkit.adapters._http._httptools_connection import HttpToolsConnection
from hybridkit.adapters._running import StopSignals
from hybridkit.adapters._server import Server
from hybridkit.adapters.fastapi import create_app
from hybridkit.settings import ServiceSettings

GET = b"GET /health HTTP/1.1\r\nHost: api\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: api\r\ncontent-type: application/json\r\n"


class Settings(ServiceSettings):
    service_name: str = "api"


@dataclass
class Answered:
    """An answer as it came."""

    status: int
    fields: dict[str, str] = field(repr=False)
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.fields["content-type"] == "application/problem+json"
        problem: dict[str, Any] = json.loads(self.body)
        return problem


class Peer:
    """A client that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def pour(self, piece: bytes, *, up_to_bytes: int) -> int:
        """Send the same again and again until the server has enough; the bytes that it took."""
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < up_to_bytes and not self.reader.at_eof():
                await self.send(piece)
                sent += len(piece)
        return sent

    async def answer(self) -> Answered:
        async with asyncio.timeout(60):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status_line, *lines = head.rstrip().split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (it.partition(":") for it in lines)}
            body = await self.reader.readexactly(int(fields.get("content-length", "0")))
        return Answered(int(status_line.split()[1]), fields, body)

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        async with asyncio.timeout(60):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


class Served:
    """An application on a loopback port."""

    def __init__(self, server: Server, stop: StopSignals) -> None:
        self.stop = stop
        self._server = server

    @property
    def port(self) -> int:
        port: int = self._server.servers[0].sockets[0].getsockname()[1]
        return port

    @property
    def most_queued(self) -> int:
        """How many requests wait parsed on one connection; h11 parses none ahead."""
        return max(len(getattr(each, "pipeline", ())) for each in self._server.server_state.connections)

    @asynccontextmanager
    async def peer(self, *, buffer_bytes: int = 2**16) -> AsyncGenerator[Peer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=buffer_bytes)
        try:
            yield Peer(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(self, request: bytes) -> Answered:
        async with self.peer() as peer:
            await peer.send(request)
            return await peer.answer()


@asynccontextmanager
async def serve(app: FastAPI) -> AsyncGenerator[Served]:
    settings = Settings(environment="test", port=0, host="127.0.0.1", shutdown_seconds=5)
    app.state.settings = settings
    async with app.router.lifespan_context(app):
        stop = StopSignals()
        server = Server(app, settings, stop)
        serving = asyncio.create_task(server.serve())
        async with asyncio.timeout(60):
            while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
                await asyncio.sleep(0)
        try:
            yield Served(server, stop)
        finally:
            stop.asked.set()
            stop.hurried.set()
            await serving


def echoing() -> FastAPI:
    app = create_app(Settings, title="Echo", body_limits={"/large": 4 * 2**20})

    @app.post("/echo")
    @app.post("/large/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    @app.post("/seen")
    async def seen(request: Request) -> dict[str, Any]:
        body = await request.body()
        return {"body": body.decode(), "fields": sorted(request.headers)}

    return app


@pytest.fixture(scope="module", params=[HttpToolsConnection, H11Connection], ids=["httptools", "h11"])
def connection(request: pytest.FixtureRequest) -> Generator[None]:
    """Both of uvicorn's parsers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_server, "_connection_class", lambda: request.param)
        patch.setattr(_server, "CHECK_SECONDS", 0.02)
        yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time runs a hundred times as fast for slow peers."""
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "WRITE_STALL_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(_connection, name, 0.3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(connection: None) -> AsyncGenerator[Served]:
    async with serve(echoing()) as service:
        yield service
