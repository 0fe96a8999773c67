"""The small HTTP/1.1 server of health and of the fakes, by bytes on a socket."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hybridkit._http_server import HttpLimits, HttpRequest, HttpResponse, HttpServer
from hybridkit._tasks import is_set_within

type Answer = Callable[[HttpRequest], Awaitable[HttpResponse | None]]
type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(request: HttpRequest) -> HttpResponse:
    words = f"{request.method} {request.target} {request.is_reusing} {request.body.decode()}"
    return HttpResponse(200, [(b"content-length", b"99")], words.encode())


@asynccontextmanager
async def connected(answer: Answer = echo, limits: HttpLimits | None = None) -> AsyncGenerator[Streams]:
    server = HttpServer(
        answer,
        refuse=lambda status, reason: HttpResponse(status, [], reason.encode()),
        name="test server",
        limits=limits or HttpLimits(),
    )
    port = await server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(60):
            yield reader, writer
    finally:
        writer.close()
        await server.close()


async def exchange(streams: Streams, request: bytes) -> tuple[int, bytes]:
    """The status and body of the response to a request."""
    reader, writer = streams
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length)


GET = b"GET /a?b=%20 HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"


async def test_a_connection_carries_one_request_after_another() -> None:
    """A client may send the next one before it has the response to the first."""
    async with connected() as streams:
        assert await exchange(streams, GET + GET) == (200, b"GET /a?b=%20 False ")
        assert await exchange(streams, b"") == (200, b"GET /a?b=%20 True ")
        chunks = b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
        assert await exchange(streams, POST + chunks) == (200, b"POST / True abc")


@pytest.mark.parametrize("request_", [GET.replace(b"1.1", b"1.0"), GET[:-2] + b"Connection: close\r\n\r\n"])
async def test_a_connection_ends_where_its_client_wants_no_other_response(request_: bytes) -> None:
    """HTTP/1.0 wants it by itself, and HTTP/1.1 by `Connection: close`."""
    async with connected() as streams:
        assert (await exchange(streams, request_))[0] == 200
        assert await streams[0].read() == b""


async def test_a_body_over_the_limit_is_refused() -> None:
    """Its size is counted, not believed: chunks announce none."""
    async with connected(limits=HttpLimits(body_bytes=3)) as streams:
        assert (await exchange(streams, POST + b"Content-Length: 3\r\n\r\nabc"))[0] == 200
        chunks = b"Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n"
        assert await exchange(streams, POST + chunks) == (413, b"the body has more than 3 bytes")
        assert await streams[0].read() == b""


async def test_a_head_may_be_as_large_as_the_limit() -> None:
    """One that is larger is refused, although it is whole and arrives at once."""
    limits = HttpLimits(head_bytes=200)
    largest = GET[:-2] + b"X: %b\r\n\r\n" % (b"x" * (200 - len(GET) - 5))
    assert len(largest) == 200
    async with connected(limits=limits) as streams:
        assert (await exchange(streams, largest))[0] == 200
        larger = largest.replace(b"X: ", b"X: xx")
        assert (await exchange(streams, larger))[0] == 431


async def test_the_response_to_head_has_no_body() -> None:
    """Its length is that of the response to GET, and the connection goes on."""
    async with connected() as streams:
        streams[1].write(GET.replace(b"GET", b"HEAD"))
        head = await streams[0].readuntil(b"\r\n\r\n")
        assert b"content-length: 99" in head.lower()
        assert (await exchange(streams, GET))[0] == 200


async def test_the_response_to_head_has_a_length_of_its_own_accord() -> None:
    """A response that names none has that of its body, also to HEAD."""

    async def answer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(405, [], request.method.encode())

    async with connected(answer) as streams:
        streams[1].write(GET.replace(b"GET", b"HEAD"))
        head = await streams[0].readuntil(b"\r\n\r\n")
        assert b"content-length: 4" in head
        assert b"transfer-encoding" not in head.lower()
        assert await exchange(streams, GET) == (405, b"GET")


async def test_a_tunnel_is_refused(logs: list[MutableMapping[str, Any]]) -> None:
    """Whatever would be answered: after a response of success, CONNECT speaks another protocol."""
    async with connected() as streams:
        refused = await exchange(streams, b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")
        assert refused == (501, b"CONNECT asks for a tunnel: this is no proxy")
        assert await streams[0].read() == b""
    assert logs == []


async def test_a_response_may_drip() -> None:
    """It comes byte by byte, for tests of clients that wait."""

    async def drip(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, [], b"slow", drip_seconds=0.001)

    async with connected(drip) as streams:
        assert await exchange(streams, GET) == (200, b"slow")


async def test_an_answer_that_fails_ends_its_connection_only(logs: list[MutableMapping[str, Any]]) -> None:
    """The error is logged, as nobody else could see it; without a response the connection ends in silence."""

    async def fail(request: HttpRequest) -> HttpResponse | None:
        if request.target == "/":
            return None
        raise LookupError(request.target)

    for request in (GET, POST + b"\r\n"):
        async with connected(fail) as (reader, writer):
            writer.write(request)
            assert await reader.read() == b""
    assert [line["event"] for line in logs] == ["a request was not answered"]


@pytest.mark.parametrize("request_", [b"", GET[:10], POST + b"Content-Length: 3\r\n\r\nab"])
async def test_a_connection_that_ends_before_its_request_is_not_answered(request_: bytes) -> None:
    """There is no request that could be refused."""
    async with connected() as (reader, writer):
        writer.write(request_)
        writer.write_eof()
        assert await reader.read() == b""


async def test_its_repr_names_what_it_is_for() -> None:
    """A server that never listened has no connection, and can be closed."""
    server = HttpServer(echo, refuse=lambda status, _: HttpResponse(status), name="test", limits=HttpLimits())
    await server.close()
    assert repr(server) == "HttpServer('test', connections=0)"


async def test_a_request_tells_the_address_of_its_sender() -> None:
    """It is the address of the connection's other side, without the port."""

    async def peer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, [], request.peer.encode())

    async with connected(peer) as streams:
        assert await exchange(streams, GET) == (200, b"127.0.0.1")


async def test_a_drain_ends_idle_connections_and_waits_for_what_has_begun() -> None:
    """What has begun is answered, with the word that the connection ends; nothing new is accepted."""
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow(request: HttpRequest) -> HttpResponse:
        begun.set()
        await release.wait()
        return await echo(request)

    server = HttpServer(
        slow, refuse=lambda status, _: HttpResponse(status), name="test server", limits=HttpLimits()
    )
    port = await server.listen("127.0.0.1", 0)
    idle = await asyncio.open_connection("127.0.0.1", port)
    busy = await asyncio.open_connection("127.0.0.1", port)
    busy[1].write(GET)
    async with asyncio.timeout(60):
        await begun.wait()
        draining = asyncio.create_task(server.drain(60))
        assert await idle[0].read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert not draining.done()
        release.set()
        answer = (await busy[0].read()).lower()
        await draining
    assert answer.startswith(b"http/1.1 200")
    assert b"connection: close" in answer
    assert answer.endswith(b"get /a?b=%20 false ")
    for _, writer in (idle, busy):
        writer.close()
    await server.close()


async def test_a_drain_does_not_wait_for_longer_than_its_time() -> None:
    """A request that is not answered in time is left to `close`."""
    begun = asyncio.Event()

    async def never(_: HttpRequest) -> HttpResponse:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    server = HttpServer(
        never, refuse=lambda status, _: HttpResponse(status), name="test server", limits=HttpLimits()
    )
    port = await server.listen("127.0.0.1", 0)
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        await begun.wait()
        await server.drain(0.01)
        await server.close()
        assert await reader.read() == b""
    writer.close()


async def test_no_more_connections_are_kept_than_the_limit_allows() -> None:
    """The second one is closed at once, and the first one goes on."""
    server = HttpServer(
        echo,
        refuse=lambda status, _: HttpResponse(status),
        name="test server",
        limits=HttpLimits(connections=1),
    )
    port = await server.listen("127.0.0.1", 0)
    async with asyncio.timeout(60):
        first = await asyncio.open_connection("127.0.0.1", port)
        assert (await exchange(first, GET))[0] == 200
        second = await asyncio.open_connection("127.0.0.1", port)
        assert await second[0].read() == b""
        assert (await exchange(first, GET))[0] == 200
    for _, writer in (first, second):
        writer.close()
    await server.close()


async def test_a_request_that_does_not_come_whole_in_time_ends_its_connection() -> None:
    """A slow client is not waited for, and a handler may take longer than that."""

    async def slow(request: HttpRequest) -> HttpResponse:
        await is_set_within(asyncio.Event(), seconds=0.1)
        return await echo(request)

    async with connected(slow, HttpLimits(read_seconds=0.05)) as streams:
        reader, writer = streams
        assert (await exchange(streams, GET))[0] == 200
        writer.write(b"GET / HT")
        assert await reader.read() == b""
