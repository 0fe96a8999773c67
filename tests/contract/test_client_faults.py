"""The clients against servers that misbehave on a real socket, over each transport.

Whatever a server does, a call ends within its deadline with a result or a typed error.
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import BaseModel

from hybridkit.clients import ClientPolicy, PostgresDataClient, Request, ServiceClient
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._pipeline._pipeline import Pipeline
from hybridkit.clients._transports._aiohttp import AiohttpTransport
from hybridkit.clients._transports._httpx import open_transport
from hybridkit.contract import Problem
from hybridkit.errors import (
    DeadlineExceededError,
    DeadlinePassedError,
    HybridkitError,
    InProgressError,
    MisuseError,
    OutcomeUnknownError,
    RateLimitedError,
    ResponseError,
    UnavailableError,
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


@pytest.fixture(params=["httpx", "aiohttp"])
def transport(request: pytest.FixtureRequest) -> Callable[[], httpx.AsyncBaseTransport | None]:
    return httpx.AsyncHTTPTransport if request.param == "httpx" else lambda: None


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


# ── well-behaved, to see that the rest isn't green by accident ───────────────────────────────────


async def test_one_connection_serves_many_calls(transport: MakeTransport) -> None:
    """Five calls in a row keep one connection alive."""
    async with talking(transport, answering(RECORD)) as (client, server):
        for _ in range(5):
            assert (await client.get(USERS, ID)).id == ID
        assert server.connections == 1


async def test_a_chunked_answer_is_read(transport: MakeTransport) -> None:
    """A body without a length is read to its last chunk."""
    size = f"{len(RECORD):x}\r\n".encode()
    chunked = sending(head(None, extra="transfer-encoding: chunked\r\n"), size, RECORD, b"\r\n0\r\n\r\n")
    async with talking(transport, chunked) as (client, _):
        assert (await client.get(USERS, ID)).id == ID


async def test_a_redirect_is_not_followed(transport: MakeTransport) -> None:
    """It could lead a write, and its headers, anywhere."""
    away = answering(b"", status=307, extra="location: http://127.0.0.1:1/\r\n")
    async with talking(transport, away) as (client, _):
        error = await failure(client.get(USERS, ID))
    assert isinstance(error, ResponseError)
    assert error.response_status == 307


# ── no answer ────────────────────────────────────────────────────────────────────────────────────


async def test_nobody_listens(transport: MakeTransport) -> None:
    """For a write too it is certain that nothing happened."""
    async with listening(Server(hang)) as server:
        url = server.url
    async with PostgresDataClient(url, service="api", transport=transport(), policy=PATIENT) as client:
        for call in (client.get(USERS, ID), create(client)):
            error = await failure(call)
            assert type(error) is UnavailableError
            assert "not sent" in str(error)


async def test_an_unknown_host(transport: MakeTransport) -> None:
    """Resolvers may take their time; the deadline ends that too."""
    policy = replace(PATIENT, read_timeout_seconds=3)
    url = "http://nobody.invalid:8001"
    async with PostgresDataClient(url, service="api", transport=transport(), policy=policy) as client:
        error = await failure(client.get(USERS, ID), policy=policy)
    assert isinstance(error, UnavailableError | DeadlinePassedError)


async def test_a_host_that_takes_no_connections(transport: MakeTransport) -> None:
    """A full backlog answers no SYN: the connect timeout ends it long before the deadline."""
    policy = replace(PATIENT, connect_timeout_seconds=0.05, retry=Retry.immediate(attempts=1))
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        filling = [socket.socket() for _ in range(4)]
        try:
            for one in filling:
                one.setblocking(False)
                one.connect_ex(address)
            url = f"http://127.0.0.1:{address[1]}"
            async with PostgresDataClient(url, service="api", transport=transport(), policy=policy) as client:
                started = time.monotonic()
                error = await failure(create(client))
                assert time.monotonic() - started < SLACK_SECONDS
        finally:
            for one in filling:
                one.close()
    assert type(error) is UnavailableError


async def test_a_hung_service(transport: MakeTransport) -> None:
    """A read ends with nothing changed, a write with an unknown outcome, both at their deadline."""
    async with talking(transport, hang, policy=HURRIED) as (client, _):
        assert isinstance(await failure(client.get(USERS, ID), policy=HURRIED), DeadlinePassedError)
        assert isinstance(await failure(create(client), policy=HURRIED), DeadlineExceededError)


async def test_a_hung_connection_leaves_time_for_another(transport: MakeTransport) -> None:
    """One frozen replica behind a balancer, one that works."""
    policy = replace(PATIENT, write_timeout_seconds=3)
    async with talking(transport, hang, answering(RECORD), policy=policy) as (client, server):
        assert (await create(client)).id == ID
        assert server.connections == 2


async def test_a_dripping_service(transport: MakeTransport) -> None:
    """A byte now and then resets every timeout but the total one."""

    async def drip(connection: Connection) -> None:
        await connection.request()
        await connection.send(head(1000))
        while True:
            await connection.send(b" ")
            await asyncio.sleep(0.01)

    async with talking(transport, drip, policy=HURRIED) as (client, _):
        assert isinstance(await failure(client.get(USERS, ID), policy=HURRIED), DeadlinePassedError)


async def test_a_service_that_drips_its_headers(transport: MakeTransport) -> None:
    """Headers that never end are bounded by the deadline as well."""

    async def drip(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await connection.send(b"x: y\r\n")
            await asyncio.sleep(0.01)

    async with talking(transport, drip, policy=HURRIED) as (client, _):
        assert isinstance(await failure(create(client), policy=HURRIED), DeadlineExceededError)


async def test_a_service_that_reads_nothing(transport: MakeTransport) -> None:
    """Neither does a body that can't be sent hold anybody, nor is its connection used again."""

    async def ignore(_: Connection) -> None:
        await asyncio.Event().wait()

    upload = Intent(method="POST", path="/v1/files", body=bytes(32 * MIB))
    async with piping(transport, ignore, answering(RECORD), policy=HURRIED) as (pipeline, server):
        assert isinstance(await failure(pipeline.run(upload), policy=HURRIED), DeadlineExceededError)
        assert (await pipeline.run(LINES)).body == RECORD
        assert server.connections == 2


async def test_a_long_body_arrives(transport: MakeTransport) -> None:
    """A body that is sent in pieces has its length in the header and is whole."""
    arrived: list[tuple[str | None, int]] = []

    async def take(connection: Connection) -> None:
        asked = await connection.request()
        arrived.append((asked.headers.get("content-length"), len(asked.body)))
        await connection.answer(RECORD)

    async with piping(transport, take) as (pipeline, _):
        await pipeline.run(Intent(method="POST", path="/v1/files", body=bytes(3 * MIB)))
    assert arrived == [(str(3 * MIB), 3 * MIB)]


async def test_a_service_that_has_moved(transport: MakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name leads elsewhere now: found by the next attempt, without a restart."""
    address = "127.0.0.1"

    async def resolve(_self: object, _host: object, port: int, **_: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)
    async with AsyncExitStack() as stack:
        async with listening(Server(answering(RECORD))) as server:
            port = int(server.url.rpartition(":")[2])
            url = f"http://users.test:{port}"
            client = PostgresDataClient(url, service="api", transport=transport(), policy=PATIENT)
            await stack.enter_async_context(client)
            await client.get(USERS, ID)
        address = "127.0.0.2"
        async with listening(Server(answering(RECORD)), port=port, host=address):
            assert (await client.get(USERS, ID)).id == ID


# ── half an answer ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "behaviour",
    [
        sending(),
        sending(b"HTTP/1.1 2"),
        sending(head(len(RECORD)), RECORD[:40]),
        sending(head(None, extra="transfer-encoding: chunked\r\n"), b"40\r\n{"),
        sending(b"\x00\xff not HTTP \r\n\r\n"),
    ],
    ids=["closed", "cut head", "cut body", "cut chunk", "not HTTP"],
)
async def test_half_an_answer(transport: MakeTransport, behaviour: Behaviour) -> None:
    """A read is unavailable; a write may have happened, and says so; another attempt helps both."""
    async with talking(transport, behaviour) as (client, server):
        assert type(await failure(client.get(USERS, ID))) is UnavailableError
        assert type(await failure(create(client))) is OutcomeUnknownError
        assert server.connections >= 6
    async with talking(transport, behaviour, answering(RECORD)) as (client, _):
        assert (await create(client)).id == ID


async def test_a_connection_reset_in_mid_body(transport: MakeTransport) -> None:
    """A write whose answer is cut may have been done."""

    async def reset(connection: Connection) -> None:
        await connection.request()
        await connection.send(head(1000), b"{")
        connection.reset()

    async with talking(transport, reset) as (client, _):
        assert type(await failure(create(client))) is OutcomeUnknownError


async def test_a_reply_lost_after_the_effect(transport: MakeTransport) -> None:
    """The service did it and the connection died: the next attempt has the same key, body and id."""
    effects: dict[str, bytes] = {}

    async def lose(connection: Connection) -> None:
        asked = await connection.request()
        effects[asked.headers["idempotency-key"]] = asked.body

    async def replay(connection: Connection) -> None:
        asked = await connection.request()
        assert effects[asked.headers["idempotency-key"]] == asked.body
        assert asked.headers["x-retry-count"] == "1"
        await connection.answer(RECORD, extra="idempotency-replayed: true\r\n")

    async with talking(transport, lose, replay) as (client, _):
        assert (await create(client)).id == ID
    assert len(effects) == 1


async def test_a_stale_connection(transport: MakeTransport) -> None:
    """Closed by the server just as the next request goes out: repeated on a new one, with the same key."""
    keys: list[str] = []

    async def close_on_second(connection: Connection) -> None:
        keys.append((await connection.request()).headers["idempotency-key"])
        await connection.answer(RECORD)
        keys.append((await connection.request()).headers["idempotency-key"])

    async def fresh(connection: Connection) -> None:
        keys.append((await connection.request()).headers["idempotency-key"])
        await connection.answer(RECORD)

    async with talking(transport, close_on_second, fresh) as (client, server):
        await create(client)
        await create(client)
        assert server.connections == 2
    first, second, again = keys
    assert first != second == again


async def test_a_connection_closed_while_idle(transport: MakeTransport) -> None:
    """Noticed, or repeated; either way the caller sees nothing of it."""
    async with talking(transport, sending(head(len(RECORD)), RECORD), answering(RECORD)) as (client, _):
        await create(client)
        assert (await create(client)).id == ID


# ── garbage and too much ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body", [b"<html>502 Bad Gateway</html>", RECORD[:40], b'{"id": 7}', b"\xff\xfe", b""]
)
async def test_garbage(transport: MakeTransport, body: bytes) -> None:
    """HTML, cut JSON, another schema: a typed error at once, for nothing would get better."""
    async with talking(transport, answering(body)) as (client, server):
        error = await failure(client.get(USERS, ID))
        assert isinstance(error, ResponseError)
        assert error.response_status == 200
        assert server.connections == 1


async def test_a_huge_announced_body_is_not_read(transport: MakeTransport) -> None:
    """500 MB, of which the first byte isn't even waited for."""

    async def announce(connection: Connection) -> None:
        await connection.request()
        await connection.send(head(500 * MIB))
        await asyncio.Event().wait()

    async with talking(transport, announce) as (client, _):
        error = await failure(client.get(USERS, ID))
    assert isinstance(error, ResponseError)
    assert str(16 * MIB) in str(error)


async def test_an_endless_body_is_cut_off(transport: MakeTransport) -> None:
    """Without a length: reading stops at the limit and the connection is closed, so the server can't go on."""
    sent = 0
    stopped = asyncio.Event()

    async def flood(connection: Connection) -> None:
        nonlocal sent
        await connection.request()
        try:
            await connection.send(head(None, extra="connection: close\r\n"))
            while True:
                await connection.send(b" " * 65536)
                sent += 65536
        finally:
            stopped.set()

    policy = replace(PATIENT, max_response_bytes=MIB)
    async with talking(transport, flood, policy=policy) as (client, _):
        assert isinstance(await failure(client.get(USERS, ID)), ResponseError)
        await stopped.wait()
    assert sent < 32 * MIB


async def test_a_compressed_answer_is_refused(transport: MakeTransport) -> None:
    """A thousand bytes can become a gigabyte, and nobody asked for compression."""
    zipped = answering(b"\x1f\x8b" + bytes(100), extra="content-encoding: gzip\r\n")
    async with talking(transport, zipped) as (client, _):
        error = await failure(client.get(USERS, ID))
    assert isinstance(error, ResponseError)
    assert "compressed" in str(error)


async def test_a_compressed_answer_is_refused_on_whichever_line_it_says_so(transport: MakeTransport) -> None:
    """A second line that names no coding takes nothing back."""
    extra = "content-encoding: gzip\r\ncontent-encoding: identity\r\n"
    async with talking(transport, answering(RECORD, extra=extra)) as (client, _):
        assert isinstance(await failure(client.get(USERS, ID)), ResponseError)


@pytest.mark.parametrize("coding", ["Identity", ""])
async def test_an_answer_may_say_that_it_is_not_compressed(transport: MakeTransport, coding: str) -> None:
    """In whatever case."""
    async with talking(transport, answering(RECORD, extra=f"content-encoding: {coding}\r\n")) as (client, _):
        assert (await client.get(USERS, ID)).id == ID


async def test_a_field_that_comes_twice_counts_once(transport: MakeTransport) -> None:
    """A proxy that adds what is there already changes nothing."""
    extra = "retry-after: 3000\r\n" * 2
    async with talking(transport, answering(b"", status=429, extra=extra)) as (client, _):
        error = await failure(client.get(USERS, ID))
    assert isinstance(error, RateLimitedError)
    assert error.retry_after_seconds == 3000


async def test_the_lines_of_a_field_are_one_list(transport: MakeTransport) -> None:
    """Over every transport alike, with bytes that are no ASCII as Latin-1."""
    answer = b"HTTP/1.1 200 X\r\nlink: <a>\r\nLink: <\xe9>\r\ncontent-length: 0\r\n\r\n"
    async with (
        listening(Server(sending(answer))) as server,
        ServiceClient(server.url, service="api", transport=transport(), policy=PATIENT) as client,
    ):
        assert (await client.get("/a")).headers["link"] == "<a>, <\xe9>"


async def test_no_cookie_goes_from_one_call_to_the_next(transport: MakeTransport) -> None:
    """The next call may be another user's."""
    cookies: list[str | None] = []

    async def set_cookie(connection: Connection) -> None:
        while True:
            cookies.append((await connection.request()).headers.get("cookie"))
            await connection.answer(RECORD, extra="set-cookie: session=ann\r\n")

    async with talking(transport, set_cookie) as (client, _):
        await client.get(USERS, ID)
        await client.get(USERS, ID)
    assert cookies == [None, None]


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_may_be_longer_than_any_answer(transport: MakeTransport) -> None:
    """The limit is for what is held in memory; the connection is used again afterwards."""
    long = answering(b"x" * (3 * MIB), RECORD)
    async with piping(transport, long, policy=replace(PATIENT, max_response_bytes=MIB)) as (pipeline, server):
        async with pipeline.stream(LINES) as answer:
            assert sum([len(chunk) async for chunk in answer.chunks]) == 3 * MIB
        assert (await pipeline.run(LINES)).body == RECORD
        assert server.connections == 1


async def test_a_stream_cut_in_mid_body(transport: MakeTransport) -> None:
    """The chunks of a read raise where the connection ends before the length."""
    async with (
        piping(transport, sending(head(1000), b"{")) as (pipeline, _),
        pipeline.stream(LINES) as answer,
    ):
        with pytest.raises(UnavailableError):
            [chunk async for chunk in answer.chunks]


async def test_streams_that_break_off_open_the_breaker(transport: MakeTransport) -> None:
    """A target that begins every answer and ends none is no healthy one."""
    async with piping(transport, sending(head(1000), b"{")) as (pipeline, _):
        for _ in range(10):
            async with pipeline.stream(LINES) as answer:
                with pytest.raises(UnavailableError):
                    [chunk async for chunk in answer.chunks]
        assert pipeline.breaker_state == "open"


async def test_a_stream_that_stops(transport: MakeTransport) -> None:
    """Each chunk has to come in time, however long they take together."""

    async def stop(connection: Connection) -> None:
        await connection.request()
        await connection.send(head(1000), b"{")
        await asyncio.Event().wait()

    async with piping(transport, stop, policy=HURRIED) as (pipeline, _), pipeline.stream(LINES) as answer:
        assert await anext(answer.chunks) == b"{"
        with pytest.raises(DeadlinePassedError):
            await anext(answer.chunks)


async def test_a_stream_left_early_closes_its_connection(transport: MakeTransport) -> None:
    """Otherwise the rest would have to be read before the connection can be used again."""
    gone = asyncio.Event()

    async def flood(connection: Connection) -> None:
        await connection.request()
        try:
            await connection.send(head(500 * MIB))
            while True:
                await connection.send(b" " * 65536)
        finally:
            gone.set()

    async with piping(transport, flood, answering(RECORD)) as (pipeline, server):
        async with pipeline.stream(LINES) as answer:
            await anext(answer.chunks)
        await gone.wait()
        assert (await pipeline.run(LINES)).body == RECORD
        assert server.connections == 2


async def test_a_compressed_stream_is_refused(transport: MakeTransport) -> None:
    """A compressed body raises before its first chunk."""
    zipped = answering(b"\x1f\x8b" + bytes(100), extra="content-encoding: gzip\r\n")
    async with piping(transport, zipped) as (pipeline, _):
        with pytest.raises(ResponseError, match="compressed"):
            async with pipeline.stream(LINES):
                raise AssertionError


# ── a service in trouble ─────────────────────────────────────────────────────────────────────────


def problem(error: HybridkitError) -> tuple[int, bytes]:
    document = Problem.from_error(error, instance="/", request_id="r")
    return document.status, document.model_dump_json().encode()


async def test_a_503_and_then_a_200(transport: MakeTransport) -> None:
    """Also when the 503 comes from a proxy, in HTML."""

    async def recover(connection: Connection) -> None:
        await connection.request()
        await connection.answer(b"<html>", status=503)
        await connection.request()
        await connection.answer(RECORD)

    async with talking(transport, recover) as (client, server):
        assert (await create(client)).id == ID
        assert server.connections == 1


async def test_too_many_requests(transport: MakeTransport) -> None:
    """Later, as the service says; where that is too late, its word goes to the caller at once."""

    async def limit(connection: Connection) -> None:
        await connection.request()
        await connection.answer(b"", status=429, extra="retry-after: 0.01\r\n")
        await connection.request()
        await connection.answer(RECORD)
        await connection.request()
        await connection.answer(b"", status=429, extra="retry-after: 3000\r\n")

    async with talking(transport, limit) as (client, server):
        assert (await create(client)).id == ID
        error = await failure(create(client))
        assert isinstance(error, RateLimitedError)
        assert error.retry_after_seconds == 3000
        assert server.connections == 1


async def test_a_key_in_flight_is_waited_for(transport: MakeTransport) -> None:
    """The twin of this call is still running: the service says when to come back."""
    status, body = problem(InProgressError("running", retry_after_seconds=0.02))

    async def twin(connection: Connection) -> None:
        await connection.request()
        await connection.send(
            f"HTTP/1.1 {status} X\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode(),
            body,
        )
        await connection.request()
        await connection.answer(RECORD)

    async with talking(transport, twin) as (client, _):
        assert (await create(client)).id == ID


async def test_a_dead_service_recovers_without_a_restart(transport: MakeTransport) -> None:
    """Down for a while, then back on the same port: the same client goes on."""
    async with AsyncExitStack() as stack:
        async with listening(Server(answering(RECORD))) as server:
            client = PostgresDataClient(server.url, service="api", transport=transport(), policy=PATIENT)
            await stack.enter_async_context(client)
            await client.get(USERS, ID)
        assert isinstance(await failure(client.get(USERS, ID)), UnavailableError)
        async with listening(Server(answering(RECORD)), port=int(server.url.rpartition(":")[2])):
            assert (await client.get(USERS, ID)).id == ID


async def test_the_probe_names_the_breaker(transport: MakeTransport) -> None:
    """So that `/ready` says why calls fail although the service answers."""

    async def reset(connection: Connection) -> None:
        await connection.request()
        connection.reset()

    policy = replace(PATIENT, retry=Retry.immediate(attempts=1))
    broken = [reset] * 20
    async with talking(transport, *broken, reset, answering(b"{}"), policy=policy) as (client, _):
        for _ in range(20):
            await failure(client.get(USERS, ID))
        assert "(breaker: open)" in str(await failure(client.probe()))
        assert await client.probe() == "breaker: open"


async def test_many_calls_share_the_places(transport: MakeTransport) -> None:
    """Never more connections than places; the others wait and are served."""
    policy = replace(PATIENT, max_in_flight=4)
    async with talking(transport, answering(RECORD), policy=policy) as (client, server):
        users = await asyncio.gather(*(client.get(USERS, ID) for _ in range(50)))
        assert len(users) == 50
        assert server.connections <= 4


async def test_a_cancelled_call_leaves_the_client_usable(transport: MakeTransport) -> None:
    """The permit of a cancelled call is free, and the next call has another connection."""
    reached = asyncio.Event()

    async def silent(connection: Connection) -> None:
        await connection.request()
        reached.set()
        await asyncio.Event().wait()

    policy = replace(PATIENT, max_in_flight=1, max_queued=0)
    async with talking(transport, silent, answering(RECORD), policy=policy) as (client, _):
        task = asyncio.create_task(client.get(USERS, ID))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await client.get(USERS, ID)).id == ID


# ── a storm of retries ───────────────────────────────────────────────────────────────────────────


async def reset_each(connection: Connection) -> None:
    await connection.request()
    connection.reset()


async def close_each(connection: Connection) -> None:
    await connection.request()


async def busy(connection: Connection) -> None:
    while True:
        await connection.request()
        await connection.answer(b"", status=503)


@pytest.mark.parametrize("dead", [reset_each, close_each, busy])
async def test_a_dead_service_sees_few_calls_more(
    transport: MakeTransport, dead: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most a fifth more than were made, and ten at once: counted at the socket, in one burst and one by one."""
    monkeypatch.setattr("hybridkit.clients._pipeline._breaker.MIN_CALLS", 10_000)  # it would hide the budget
    asked = 0

    async def counted(connection: Connection) -> None:
        ask = connection.request

        async def request() -> Asked:
            nonlocal asked
            found = await ask()
            asked += 1
            return found

        connection.request = request  # type: ignore[method-assign]
        await dead(connection)

    policy = replace(PATIENT, max_queued=1000)
    async with talking(transport, counted, policy=policy) as (client, _):
        for _ in range(100):
            await failure(client.get(USERS, ID))
        await asyncio.gather(*(failure(client.delete(USERS, ID)) for _ in range(200)))
    assert 300 < asked <= 300 * 1.2 + 10


async def test_the_breaker_ends_the_storm(transport: MakeTransport) -> None:
    """With it a dead service sees no more than it takes to notice."""
    async with talking(transport, reset_each) as (client, server):
        for _ in range(300):
            await failure(client.get(USERS, ID))
        assert server.connections <= 20 * 1.2 + 10


# ── transports ───────────────────────────────────────────────────────────────────────────────────


async def test_aiohttp_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And httpx where it is not."""
    chosen = open_transport(None)
    assert isinstance(chosen, AiohttpTransport)
    await chosen.aclose()
    assert repr(chosen) == "AiohttpTransport(closed=True)"
    monkeypatch.setattr("hybridkit.clients._transports._httpx.find_spec", lambda _name: None)
    fallback = open_transport(None)
    assert repr(fallback) == "HttpxTransport(owned=True)"
    await fallback.aclose()


async def test_a_transport_of_ones_own_is_used_as_it_is(transport: MakeTransport) -> None:
    """A `Transport` is not wrapped in another one."""
    own = open_transport(transport())
    assert open_transport(own) is own
    await own.aclose()


async def test_a_transport_that_is_closed_is_a_misuse(transport: MakeTransport) -> None:
    """Such as one that two clients share, of which the first has ended."""
    shared = open_transport(transport())
    await shared.aclose()
    async with PostgresDataClient("http://127.0.0.1:9", service="api", transport=shared) as client:
        assert isinstance(await failure(client.get(USERS, ID)), MisuseError)
        with pytest.raises(MisuseError):
            async for _ in client.find(USERS).export():
                pass


async def test_what_http_cannot_carry_is_a_misuse(transport: MakeTransport) -> None:
    """A header that would end the header block: refused by the protocol, and never repeated."""
    wire = open_transport(transport())
    async with listening(Server(hang)) as server:
        request = Request(
            method="GET",
            url=server.url,
            headers={"x": "a\r\nb: c"},
            timeout_seconds=1,
            connect_timeout_seconds=1,
            max_response_bytes=1,
        )
        with pytest.raises(MisuseError):
            await wire.send(request)
    await wire.aclose()
