"""The transport over HTTP/1.1: answers that need more than a plain head, and what becomes of their connections."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.clients import Request, Response
from hybridkit.clients._transports import _http1
from hybridkit.clients._transports._http1 import Http1Transport
from hybridkit.clients._transports._http1_connection import Http1Connection
from hybridkit.errors import MisuseError, OutcomeUnknownError, UnavailableError
from tests.helpers import until
from tests.helpers.faulty_service import (
    MIB,
    RECORD,
    Behaviour,
    Connection,
    Server,
    answering,
    listening,
    sending,
)


@asynccontextmanager
async def speaking(*behaviours: Behaviour) -> AsyncGenerator[tuple[Http1Transport, Request, Server]]:
    """A transport, a request to a server that behaves like that, and the server."""
    async with listening(Server(*behaviours)) as server:
        transport = Http1Transport()
        try:
            yield transport, asking(server.url), server
        finally:
            await transport.aclose()


def asking(url: str) -> Request:
    return Request(
        method="GET",
        url=f"{url}/v1/users",
        headers={},
        timeout_seconds=30,
        connect_timeout_seconds=10,
        max_response_bytes=MIB,
    )


async def streaming(transport: Http1Transport, request: Request) -> list[bytes]:
    """The pieces of the answer's body."""
    async with transport.stream(request) as opened:
        return [chunk async for chunk in opened.chunks]


def twice(*chunks: bytes) -> Behaviour:
    """Answers two requests with these bytes."""

    async def behave(connection: Connection) -> None:
        for _ in range(2):
            await connection.request()
            await connection.send(*chunks)
        await connection.request()

    return behave


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab", b"ab"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\nHTTP/1.1 204 X\r\n\r\n", b""),
        (b"HTTP/1.1 204 X\r\n\r\n", b""),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\nx: y\r\n\r\n",
            b"ab",
        ),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: a\r\nx: b\r\n\r\nab", b"ab"),
    ],
    ids=["continue", "early hints", "no content", "chunked", "two lines"],
)
async def test_an_answer_keeps_its_connection(answer: bytes, body: bytes) -> None:
    """An answer that was read to its end leaves the connection to the next request."""
    async with speaking(twice(answer)) as (transport, request, server):
        for _ in range(2):
            assert (await transport.send(request)).body == body
        assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nab", b"ab"),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nab", b"ab"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabHTTP/1.1 200 OK\r\n", b"ab"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1", b""),
    ],
    ids=["close", "1.0", "more than announced", "more than chunked"],
)
async def test_an_answer_ends_its_connection(answer: bytes, body: bytes) -> None:
    """A connection that ends, or that has bytes which nobody asked for, serves no other request."""
    async with speaking(twice(answer)) as (transport, request, server):
        for _ in range(2):
            assert (await transport.send(request)).body == body
        assert server.connections == 2


async def test_a_body_may_end_with_its_connection() -> None:
    """A body without a length is read until the server closes."""
    async with speaking(sending(b"HTTP/1.1 200 OK\r\n\r\n", b"a", b"b")) as (transport, request, _):
        assert (await transport.send(request)).body == b"ab"


@pytest.mark.parametrize("cut", [1, 5, 17, 30, 37, 38, 39])
async def test_an_answer_may_come_in_pieces(cut: int) -> None:
    """Wherever the network cuts an answer, it is the same one."""
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab"

    async def halves(connection: Connection) -> None:
        for _ in range(2):
            await connection.request()
            await connection.send(whole[:cut])
            await asyncio.sleep(0)
            await connection.send(whole[cut:])
        await connection.request()

    async with speaking(halves) as (transport, request, server):
        for _ in range(2):
            assert (await transport.send(request)).body == b"ab"
        assert server.connections == 1


async def test_a_head_has_no_body_whatever_it_announces() -> None:
    """The answer to a HEAD announces the length of another answer."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 500000000\r\n\r\n"
    async with speaking(twice(answer)) as (transport, request, server):
        for _ in range(2):
            found = await transport.send(replace(request, method="HEAD"))
            assert (found.body, found.headers["content-length"]) == (b"", "500000000")
        assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nab",
        b"\r\n\r\n",
    ],
    ids=[
        "nothing",
        "half a head",
        "half a body",
        "another protocol",
        "a long head",
        "two lengths",
        "no head",
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_no_whole_answer_is_an_unknown_outcome(answer: bytes, *, streamed: bool) -> None:
    """A request whose answer is cut, or is none, may have been carried out."""
    async with speaking(sending(answer)) as (transport, request, _):
        call = streaming(transport, request) if streamed else transport.send(request)
        with pytest.raises(OutcomeUnknownError, match="no whole answer"):
            await call


async def test_a_broken_connection_is_an_unknown_outcome() -> None:
    """A reset in the middle of a body of unknown length doesn't count as its end."""

    async def reset(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nab")
        await more.wait()
        connection.reset()

    more = asyncio.Event()
    async with speaking(reset) as (transport, request, _), transport.stream(request) as opened:
        assert await anext(opened.chunks) == b"ab"
        more.set()
        with pytest.raises(OutcomeUnknownError):
            await anext(opened.chunks)


async def test_an_early_answer_ends_a_long_body() -> None:
    """A server that refuses a body before it has read it is answered no further, and its connection is closed."""

    async def refuse(connection: Connection) -> None:
        await connection.request_head()
        await connection.send(b"HTTP/1.1 413 X\r\ncontent-length: 0\r\n\r\n")
        await done.wait()

    done = asyncio.Event()
    async with speaking(refuse) as (transport, request, server):
        for expected in (1, 2):
            found = await transport.send(replace(request, method="POST", body=bytes(64 * MIB)))
            assert (found.status, server.connections) == (413, expected)
        done.set()


async def test_a_long_body_waits_for_its_reader() -> None:
    """A body that the server takes bit by bit arrives whole, and its connection goes on."""
    arrived: list[int] = []

    async def take(connection: Connection) -> None:
        while True:
            arrived.append(len((await connection.request()).body))
            await connection.send(b"HTTP/1.1 204 X\r\n\r\n")

    async with speaking(take) as (transport, request, server):
        for _ in range(2):
            await transport.send(replace(request, method="POST", body=bytes(32 * MIB)))
        assert arrived == [32 * MIB] * 2
        assert server.connections == 1


async def test_bytes_that_come_unasked_close_a_connection() -> None:
    """A connection on which the server speaks first serves no further request."""

    async def chatter(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await idle.wait()
        await connection.send(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        await connection.request()

    idle = asyncio.Event()
    async with speaking(chatter, answering(RECORD)) as (transport, request, server):
        await transport.send(request)
        idle.set()
        await until(lambda: repr(transport) == "Http1Transport(0 connections)")
        assert (await transport.send(request)).body == RECORD
        assert server.connections == 2


async def test_a_reader_that_is_slow_holds_the_server_back() -> None:
    """Of a long stream only a part waits in memory while the reader does something else."""
    sent = 0

    async def flood(connection: Connection) -> None:
        nonlocal sent
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (64 * MIB))
        for _ in range(64):
            await connection.send(bytes(MIB))
            sent += 1

    async with speaking(flood) as (transport, request, _):
        async with transport.stream(request) as opened:
            size_bytes = len(await anext(opened.chunks))
            seen = -1
            while sent != seen:  # until the server can send no more
                seen = sent
                for _ in range(100):
                    await asyncio.sleep(0)
            assert sent < 48
            size_bytes += sum([len(chunk) async for chunk in opened.chunks])
        assert size_bytes == 64 * MIB


async def test_a_connection_that_nobody_uses_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that has been idle for a while is closed, one that was used meanwhile only later."""
    monkeypatch.setattr(_http1, "KEEPALIVE_SECONDS", 0.05)
    async with speaking(answering(RECORD)) as (transport, request, _):
        await asyncio.gather(transport.send(request), transport.send(request))
        first, second = transport._connections
        second.idle_since += 60
        await until(lambda: not first.is_open)
        assert second.is_open
        second.idle_since -= 60
        await until(lambda: repr(transport) == "Http1Transport(0 connections)")
        assert (await transport.send(request)).body == RECORD


async def test_a_connection_that_opens_after_the_closing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a transport leaves no connection behind that was on its way."""
    loop = asyncio.get_running_loop()
    connect, closed, reached = loop.sock_connect, asyncio.Event(), asyncio.Event()

    async def sock_connect(raw: socket.socket, address: tuple[str, int]) -> None:
        reached.set()
        await closed.wait()
        await connect(raw, address)

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    async with speaking(answering(RECORD)) as (transport, request, _):
        call = asyncio.create_task(transport.send(request))
        await reached.wait()
        await transport.aclose()
        closed.set()
        with pytest.raises(UnavailableError, match="closed meanwhile"):
            await call


async def test_a_connection_that_closes_at_once_takes_no_request() -> None:
    """Asking on a connection that is gone raises, and its description says so."""
    connection = Http1Connection(lambda _: None)
    assert repr(connection) == "Http1Connection(is_open=False, is_busy=False)"
    with pytest.raises(ConnectionError, match="closed"):
        await connection.ask(b"", b"", limit_bytes=1)


async def test_closing_ends_what_is_under_way() -> None:
    """A request that has no answer yet ends with an unknown outcome, and no other is sent."""
    reached = asyncio.Event()

    async def silent(connection: Connection) -> None:
        await connection.request()
        reached.set()
        await connection.request()

    async with speaking(silent) as (transport, request, _):
        call = asyncio.create_task(transport.send(request))
        await reached.wait()
        await transport.aclose()
        with pytest.raises(OutcomeUnknownError):
            await call
        with pytest.raises(MisuseError, match="closed"):
            await transport.send(request)


@pytest.mark.parametrize(
    "url", ["ftp://a/", "http://user:word@a/", "http://a?b", "http:///a", "http://[::1/"]
)
async def test_a_url_that_names_no_server_is_a_misuse(url: str) -> None:
    """A URL with another scheme, a user or without a host raises before anything is sent."""
    transport = Http1Transport()
    with pytest.raises(MisuseError):
        await transport.send(replace(asking("http://a"), url=url))
    await transport.aclose()


async def test_writing_goes_on_once_however_often_it_is_told() -> None:
    """An event loop that lets a connection write again, which may write already, changes nothing."""
    connection = Http1Connection(lambda _: None)
    connection.pause_writing()
    connection.resume_writing()
    connection.resume_writing()
    assert not connection.is_open


# ── addresses and TLS ────────────────────────────────────────────────────────────────────────────


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    async def resolve(_self: object, _host: object, port: int, **_: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolve)


async def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is reached by its second address if nobody listens on the first."""
    resolving(monkeypatch, "127.0.0.2", "127.0.0.1")
    async with speaking(answering(RECORD)) as (transport, request, server):
        url = server.url.replace("127.0.0.1", "users.test")
        assert (await transport.send(replace(request, url=url))).body == RECORD


async def test_an_address_that_is_silent_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that drops what it is sent takes half of the time of the connection, not all of it."""
    loop = asyncio.get_running_loop()
    connect = loop.sock_connect

    async def sock_connect(raw: socket.socket, address: tuple[str, int]) -> None:
        if address[0] == "127.0.0.2":
            await asyncio.Event().wait()
        await connect(raw, address)

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    resolving(monkeypatch, "127.0.0.2", "127.0.0.1")
    async with speaking(answering(RECORD)) as (transport, request, server):
        url = server.url.replace("127.0.0.1", "users.test")
        found = await transport.send(replace(request, url=url, connect_timeout_seconds=0.2))
        assert found.body == RECORD


async def test_a_name_without_an_address_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was sent to a name that leads nowhere."""
    resolving(monkeypatch)
    transport = Http1Transport()
    with pytest.raises(UnavailableError, match="no address"):
        await transport.send(asking("http://users.test"))
    await transport.aclose()


@asynccontextmanager
async def secure(authority: trustme.CA, name: str) -> AsyncGenerator[str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    server = Server(answering(RECORD))
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://localhost:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        await server.aclose()


async def test_a_server_is_reached_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate of a trusted authority, made for the name in the URL, is taken."""
    resolving(monkeypatch, "127.0.0.1")
    authority = trustme.CA()
    with authority.cert_pem.tempfile() as trusted:
        monkeypatch.setenv("SSL_CERT_FILE", trusted)
        transport = Http1Transport()
        async with secure(authority, "localhost") as url:
            for _ in range(2):
                assert (await transport.send(asking(url))).body == RECORD
            assert repr(transport) == "Http1Transport(1 connections)"
            await transport.aclose()


@pytest.mark.parametrize("name", ["localhost", "another.test"])
async def test_a_server_that_is_not_trusted_is_sent_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An authority that nobody knows, or a certificate of another name, ends the connection before the request."""
    resolving(monkeypatch, "127.0.0.1")
    authority = trustme.CA()
    with authority.cert_pem.tempfile() as trusted:
        if name != "localhost":
            monkeypatch.setenv("SSL_CERT_FILE", trusted)
        transport = Http1Transport()
        async with secure(authority, name) as url:
            with pytest.raises(UnavailableError, match="not sent"):
                await transport.send(asking(url))
        await transport.aclose()


# ── cuts everywhere ──────────────────────────────────────────────────────────────────────────────


ANSWERS = {
    b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc": b"abc",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n": b"abc",
    b"HTTP/1.1 204 X\r\n\r\n": b"",
    b"HTTP/1.1 404 X\r\ncontent-length: 0\r\nx: 1\r\nx: 2\r\n\r\n": b"",
}


@given(
    answers=st.lists(st.sampled_from(list(ANSWERS)), min_size=1, max_size=5),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    left=st.integers(0, 5),
)
async def test_no_call_gets_the_answer_of_another(answers: list[bytes], cuts: list[int], left: int) -> None:
    """However answers are cut, and whichever call is given up halfway, each call has its own answer or an error."""
    number = 0

    async def serve(connection: Connection) -> None:
        nonlocal number
        while True:
            asked = await connection.request()
            given = answers[int(asked.headers["x-number"]) % len(answers)]
            rest = given.replace(
                b"\r\n\r\n", b"\r\nx-number: %b\r\n\r\n" % asked.headers["x-number"].encode(), 1
            )
            while rest:
                size = cuts[number % len(cuts)]
                number += 1
                await connection.send(rest[:size])
                await asyncio.sleep(0)
                rest = rest[size:]

    async def call(transport: Http1Transport, request: Request, own: int) -> None:
        asked = replace(request, headers={"x-number": str(own)})
        sending = asyncio.create_task(transport.send(asked))
        if own % 6 == left:  # given up somewhere on the way
            for _ in range(own):
                await asyncio.sleep(0)
            sending.cancel()
        found: Response | BaseException
        [found] = await asyncio.gather(sending, return_exceptions=True)
        if isinstance(found, Response):
            assert found.headers["x-number"] == str(own)
            assert found.body == ANSWERS[answers[own % len(answers)]]
        else:
            assert own % 6 == left

    async with speaking(serve) as (transport, request, _):
        await asyncio.gather(*(call(transport, request, own) for own in range(8)))
        for own in range(8, 20):
            await call(transport, request, own)
