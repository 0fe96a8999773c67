"""The server of `run_api` and bodies: their limits, slow clients, and responses that end early."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware
from structlog.testing import capture_logs

from hybridkit.adapters.fastapi import create_app
from hybridkit.errors import UnavailableError
from tests.helpers.raw_http import GET, POST, Served, Settings, connection, impatient, serve, served

__all__ = ["connection", "impatient", "served"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
