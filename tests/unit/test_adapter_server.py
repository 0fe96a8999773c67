"""The server of `run_api`, asked by raw sockets: what a peer may send, how slowly, and how the server ends."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware
from structlog.testing import capture_logs

from hybridkit.adapters import _connection, _server
from hybridkit.adapters._connection import H11Connection
from hybridkit.adapters._httptools_connection import HttpToolsConnection
from hybridkit.adapters._running import StopSignals
from hybridkit.adapters._server import Server
from hybridkit.adapters.fastapi import create_app
from hybridkit.errors import UnavailableError
from hybridkit.observability import metrics
from hybridkit.settings import ServiceSettings

pytestmark = pytest.mark.asyncio(loop_scope="module")

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


CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (GET, b"X-A: b\r\n" * 8192),
        (GET + b"X-A: ", b"b" * 65536),
        (GET, b"a" * 65536),
        (b"GET /", b"a" * 65536),
        (b"", b"a" * 65536),
        (CHUNKED + b"0\r\n", b"X-A: b\r\n" * 8192),
        (CHUNKED + b"0\r\nX-A: ", b"b" * 65536),
        (CHUNKED + b"1;", b"b" * 65536),
    ],
    ids=["fields", "value", "name", "URL", "method", "trailer", "trailer value", "chunk extension"],
)
async def test_a_head_without_end_takes_no_memory(served: Served, begin: bytes, piece: bytes) -> None:
    """Whichever part of a request does not end, the connection is closed early."""
    async with served.peer() as peer:
        await peer.send(begin)
        assert await peer.pour(piece, up_to_bytes=64 * 2**20) < 16 * 2**20  # the kernel's buffers hold some


async def test_what_never_becomes_a_request_leaves_a_line_and_a_count(served: Served) -> None:
    """Neither has anything that was sent."""
    counted = metrics.http_server_refused.labels(400)
    before = counted._value.get()
    with capture_logs() as lines:
        async with served.peer() as peer:
            await peer.send(b"hunter2 hunter2\r\n\r\n")
            assert (await peer.answer()).status == 400
    [line] = [line for line in lines if line["event"] == "a connection was refused"]
    assert (line["log_level"], line["http.response.status_code"]) == ("info", 400)
    assert "hunter2" not in str(line)
    assert counted._value.get() == before + 1


async def test_a_head_without_end_is_told_so(served: Served) -> None:
    """The client gets a problem with the reason."""
    async with served.peer() as peer:
        await peer.send(GET + b"X-A: " + b"b" * 70_000)
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (431, "REQUEST_HEADER_FIELDS_TOO_LARGE")


@pytest.mark.parametrize(
    "fields",
    [b"X-A: b\r\n" * 100, b"X-A: " + b"b" * 65_530 + b"\r\n"],
    ids=["one field too many", "one byte too many"],
)
async def test_a_complete_head_has_the_same_limits(served: Served, fields: bytes) -> None:
    """A head in one piece is refused from the same size on as one in many."""
    answer = await served.ask(GET + fields + b"\r\n")
    assert (answer.status, answer.problem["code"]) == (431, "REQUEST_HEADER_FIELDS_TOO_LARGE")


async def test_a_large_head_within_the_limits_is_served(served: Served) -> None:
    """48 KiB of cookies and tokens in 99 fields pass, also in small pieces."""
    fields = b"".join(b"X-%d: %b\r\n" % (number, b"b" * 500) for number in range(98))
    head = GET + fields + b"\r\n"
    async with served.peer() as peer:
        for start in range(0, len(head), 5000):
            await peer.send(head[start : start + 5000])
        assert (await peer.answer()).status == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"NO HTTP AT ALL\r\n\r\n",
        b"BREW /health HTTP/1.1\r\nHost: api\r\n\r\n\x00",
        POST + b"transfer-encoding: chunked\r\n\r\nno size\r\n",
        b"GET /health HTTP/1.1\r\nHost : api\r\n\r\n",
    ],
    ids=["no HTTP", "unknown method", "no chunk", "space before the colon"],
)
async def test_what_is_no_http_is_a_problem_or_no_answer(served: Served, request_: bytes) -> None:
    """The connection ends, and nothing but a problem is sent."""
    async with served.peer() as peer:
        await peer.send(request_)
        told = await peer.rest()
    assert told == b"" or (told.startswith(b"HTTP/1.1 4") and b"application/problem+json" in told)


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"], ids=["none", "two"])
async def test_a_request_names_its_host_exactly_once(served: Served, hosts: bytes) -> None:
    """Anything else is a 400 (RFC 9112, section 3.2)."""
    answer = await served.ask(b"GET /health HTTP/1.1\r\n" + hosts + b"\r\n")
    assert (answer.status, answer.problem["status"]) == (400, 400)


async def test_http_1_0_needs_no_host(served: Served) -> None:
    """Health checks of old load balancers have none."""
    assert (await served.ask(b"GET /health HTTP/1.0\r\n\r\n")).status == 200


@pytest.mark.parametrize("target", [b"/%FF", b"/a%C3", b"/health?a=%FF", b"/health?%C0%80=1"])
async def test_a_url_that_is_no_utf_8_is_refused(served: Served, target: bytes) -> None:
    """Two such URLs would be one to the application."""
    answer = await served.ask(b"GET %b HTTP/1.1\r\nHost: api\r\n\r\n" % target)
    assert (answer.status, answer.problem["status"]) == (400, 400)


@pytest.mark.parametrize("target", [b"/%EF%BF%BD", b"/health?a=%E2%82%AC&b=100%"])
async def test_a_url_in_utf_8_is_served(served: Served, target: bytes) -> None:
    """The replacement character of decoders may itself be in a URL."""
    answer = await served.ask(b"GET %b HTTP/1.1\r\nHost: api\r\n\r\n" % target)
    assert answer.status in (200, 404)


UNCLEAR = [
    b"POST /echo HTTP/1.1\r\nHost: api\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\nContent-Length: 30\r\n\r\n0\r\n\r\n",
    b"POST /echo HTTP/1.0\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: api\r\n\r\n",
    b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: api\r\n\r\n",
]


@pytest.mark.parametrize(
    "unclear",
    UNCLEAR,
    ids=["length and chunks", "chunks and length", "chunks of 1.0", "another coding", "all", "authority"],
)
async def test_a_head_that_can_be_read_in_two_ways_ends_its_connection(
    served: Served, unclear: bytes
) -> None:
    """What a proxy takes for the next request is not served as one (RFC 9112, section 6.3)."""
    async with served.peer() as peer:
        await peer.send(unclear + GET + b"\r\n")
        told = await peer.rest()
    assert told.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
    assert b"application/problem+json" in told
    assert b"alive" not in told


async def test_a_host_is_named_in_every_version_from_1_1_on(served: Served) -> None:
    """HTTP/1.2 does not bypass the rule."""
    async with served.peer() as peer:
        await peer.send(b"GET /health HTTP/1.2\r\n\r\n")
        assert (await peer.answer()).status == 400


async def test_fields_behind_a_body_are_no_fields_of_the_head(served: Served) -> None:
    """A proxy that removes `X-User-ID` from a head passes trailers (RFC 9110, section 6.5.1)."""
    head = POST.replace(b"/echo", b"/seen") + b"transfer-encoding: chunked\r\n\r\n"
    answer = await served.ask(head + b"3\r\nabc\r\n0\r\nX-User-ID: root\r\nAuthorization: Bearer x\r\n\r\n")
    seen = json.loads(answer.body)
    assert seen["body"] == "abc"
    assert not {"x-user-id", "authorization"} & set(seen["fields"])


@pytest.mark.parametrize("is_split", [False, True], ids=["in one piece", "in two"])
@pytest.mark.parametrize(
    "body",
    [b"content-length: 3\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"],
    ids=["length", "chunks"],
)
async def test_a_wish_for_another_protocol_costs_no_body(
    served: Served, body: bytes, *, is_split: bool
) -> None:
    """With `Upgrade: h2c`, as Java and curl send it, a POST keeps its body."""
    wish = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n"
    head = POST.replace(b"/echo", b"/seen") + wish
    begin, end, rest = body.partition(b"\r\n\r\n")
    async with served.peer() as peer:
        if is_split:
            await peer.send(head + begin)
            await peer.send(end)
            await peer.send(rest + GET + b"\r\n")
        else:
            await peer.send(head + body + GET + b"\r\n")
        assert json.loads((await peer.answer()).body)["body"] == "abc"
        assert json.loads((await peer.answer()).body) == {"status": "alive"}


async def test_many_wishes_at_once_are_many_requests(served: Served) -> None:
    """A pipeline of requests with `Upgrade` is answered one by one."""
    wish = GET + b"connection: Upgrade\r\nupgrade: h2c\r\n\r\n"
    async with served.peer() as peer:
        await peer.send(wish * 1500)
        for _ in range(1500):
            assert (await peer.answer()).status == 200


async def test_requests_that_come_before_the_answers_wait_unparsed(served: Served) -> None:
    """Thousands of pipelined requests take no memory, and each is answered in order."""
    most = 0
    head = POST.replace(b"/echo", b"/seen")
    requests = [
        head + (b"content-length: %d\r\n\r\n%d" % (len(str(number)), number)) for number in range(1000)
    ]
    async with served.peer() as peer:
        await peer.send(b"".join(requests))
        for number in range(1000):
            assert json.loads((await peer.answer()).body)["body"] == str(number)
            most = max(most, served.most_queued)
    assert most < 250  # what one piece holds


async def test_a_slash_too_many_leads_nowhere(served: Served) -> None:
    """No redirect is made of the `Host` field."""
    answer = await served.ask(b"GET /health/ HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n")
    assert (answer.status, answer.fields.get("location")) == (404, None)


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────


def posting(path: bytes, size_bytes: int, *, chunked: bool) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: api\r\ncontent-type: application/octet-stream\r\n" % path
    if chunked:
        return head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
            size_bytes,
            b"x" * size_bytes,
        )
    return head + b"content-length: %d\r\n\r\n%b" % (size_bytes, b"x" * size_bytes)


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
@pytest.mark.parametrize(
    ("path", "size_bytes", "status"),
    [
        (b"/echo", 2**20, 200),
        (b"/echo", 2**20 + 1, 413),
        (b"/large/echo", 4 * 2**20, 200),
        (b"/large/echo", 4 * 2**20 + 1, 413),
    ],
)
async def test_a_body_has_a_limit_by_its_path(
    served: Served, path: bytes, size_bytes: int, status: int, *, chunked: bool
) -> None:
    """Beyond 1 MiB, or what the application declares for a path, it is a 413."""
    answer = await served.ask(posting(path, size_bytes, chunked=chunked))
    assert answer.status == status


@pytest.mark.usefixtures("impatient")
async def test_a_body_that_goes_on_after_its_answer_is_not_read_for_ever(served: Served) -> None:
    """It is read for a moment, so that the response arrives, and then the connection ends."""
    async with served.peer() as peer:
        await peer.send(POST + b"transfer-encoding: chunked\r\n\r\n")
        taken = await peer.pour(b"10000\r\n%b\r\n" % (b"x" * 65536), up_to_bytes=2**31)
        assert taken < 2**31


async def test_a_caller_waits_no_longer_for_its_own_body_than_it_said(served: Served) -> None:
    """`X-Request-Timeout` applies while the body is read, too."""
    async with served.peer() as peer:
        await peer.send(POST + b"x-request-timeout: 0.2\r\ncontent-length: 10\r\n\r\n1")
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (504, "DEADLINE_PASSED")


# ── slow peers ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "begin", [b"", b"GE", GET, GET + b"X-A"], ids=["nothing", "method", "fields", "name"]
)
async def test_a_head_that_does_not_come_is_a_408(served: Served, begin: bytes) -> None:
    """Nothing and half a head are not waited for."""
    async with served.peer() as peer:
        await peer.send(begin)
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (408, "REQUEST_TIMEOUT")
        assert await peer.rest() == b""


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("begin", [b"\r\n", b"GE"], ids=["empty line", "method"])
async def test_a_second_head_that_does_not_come_ends_the_connection(served: Served, begin: bytes) -> None:
    """The limit applies after a response as well."""
    async with served.peer() as peer:
        await peer.send(GET + b"\r\n")
        assert (await peer.answer()).status == 200
        await peer.send(begin)
        assert (await peer.answer()).status in (400, 408)  # h11 takes no empty line


@pytest.mark.usefixtures("impatient")
async def test_a_body_that_does_not_come_closes_the_connection(served: Served) -> None:
    """There is no response, as the application is already at work on one."""
    async with served.peer() as peer:
        await peer.send(POST + b"content-length: 10\r\n\r\n1")
        await peer.rest()
        assert peer.reader.at_eof()


@pytest.mark.usefixtures("connection", "impatient")
async def test_a_peer_is_not_punished_for_a_slow_application() -> None:
    """A body may wait until the application reads it."""
    app = create_app(Settings, title="Slow", body_limits={"/": 2**24})
    go = asyncio.Event()

    @app.post("/slow")
    async def slow(request: Request) -> int:
        await go.wait()
        return len(await request.body())

    async with serve(app) as served, served.peer() as peer:
        await peer.send(b"POST /slow HTTP/1.1\r\nHost: api\r\ncontent-length: 4000000\r\n\r\n")
        sending = asyncio.create_task(peer.send(b"x" * 4_000_000))
        asyncio.get_running_loop().call_later(1.0, go.set)  # three times as long as a peer may take
        answer = await peer.answer()
        await sending
        assert (answer.status, answer.body) == (200, b"4000000")


@pytest.mark.usefixtures("connection", "impatient")
async def test_a_reader_that_takes_nothing_loses_its_connection() -> None:
    """A response in many pieces ends, and the application gets a disconnect."""
    app = create_app(Settings, title="Endless")
    ended = asyncio.Event()

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)
            finally:
                ended.set()

        return StreamingResponse(pieces())

    async with serve(app) as served, served.peer(buffer_bytes=1024) as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await peer.send(b"GET /endless HTTP/1.1\r\nHost: api\r\n\r\n")
        async with asyncio.timeout(60):
            await ended.wait()


# ── the end of an answer ─────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("connection")
@pytest.mark.parametrize(
    ("error", "level"),
    [
        (lambda: RuntimeError("secret"), "error"),
        (TimeoutError, "error"),
        (lambda: UnavailableError("the source is away"), "warning"),
    ],
    ids=["mistake", "timeout", "outage"],
)
async def test_half_an_answer_is_cut_and_logged_once(
    error: Callable[[], Exception], level: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client sees that the response is incomplete, and one line says why."""
    app = create_app(Settings, title="Half")

    @app.get("/half")
    async def half() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first"
            raise error()

        return StreamingResponse(pieces())

    with capture_logs() as logs:
        async with serve(app) as served, served.peer() as peer:
            await peer.send(b"GET /half HTTP/1.1\r\nHost: api\r\n\r\n")
            assert not (await peer.rest()).endswith(b"0\r\n\r\n")
    assert [it["log_level"] for it in logs if it["event"] == "answer cut"] == [level]
    assert "Exception in ASGI application" not in caplog.text


@pytest.mark.usefixtures("connection")
@pytest.mark.parametrize("has_middleware", [False, True])
async def test_open_event_streams_do_not_hold_up_a_stop(
    caplog: pytest.LogCaptureFixture, has_middleware: bool
) -> None:
    """They end in time without an error, also through a middleware's task group."""
    app = create_app(Settings, title="Events")
    if has_middleware:
        app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))

    @app.get("/events")
    async def events() -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            await asyncio.Event().wait()

        return StreamingResponse(pieces(), media_type="text/event-stream")

    with capture_logs() as logs:
        async with serve(app) as served, served.peer() as peer:
            await peer.send(b"GET /events HTTP/1.1\r\nHost: api\r\n\r\n")
            await peer.reader.readuntil(b"data: 1\n\n")
            served.stop.asked.set()
            assert (await peer.rest()).endswith(b"0\r\n\r\n")
    assert [it for it in logs if it["log_level"] in ("warning", "error")] == []
    assert "Exception" not in caplog.text
