"""Bodies that are cut, garbage, too long, compressed or endless, on a real socket over each transport."""

import asyncio
from dataclasses import replace

import pytest

from hybridkit.clients import ServiceClient
from hybridkit.errors import (
    DeadlinePassedError,
    OutcomeUnknownError,
    RateLimitedError,
    ResponseError,
    UnavailableError,
)
from tests.helpers.faulty_service import (
    HURRIED,
    ID,
    LINES,
    MIB,
    PATIENT,
    RECORD,
    USERS,
    Behaviour,
    Connection,
    MakeTransport,
    Server,
    answering,
    create,
    failure,
    head,
    listening,
    piping,
    sending,
    talking,
)

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
    """A read with half an answer is unavailable, a write may have happened, and another attempt helps both."""
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
    """The attempt after a lost answer has the same key, body and id."""
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
    """A request that meets the closing of its connection is repeated on a new one, with the same key."""
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
    """The caller sees nothing of a connection that the server closed between two calls."""
    async with talking(transport, sending(head(len(RECORD)), RECORD), answering(RECORD)) as (client, _):
        await create(client)
        assert (await create(client)).id == ID


# ── garbage and too much ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body", [b"<html>502 Bad Gateway</html>", RECORD[:40], b'{"id": 7}', b"\xff\xfe", b""]
)
async def test_garbage(transport: MakeTransport, body: bytes) -> None:
    """HTML, cut JSON or another schema raises at once, as another attempt would get the same."""
    async with talking(transport, answering(body)) as (client, server):
        error = await failure(client.get(USERS, ID))
        assert isinstance(error, ResponseError)
        assert error.response_status == 200
        assert server.connections == 1


async def test_a_huge_announced_body_is_not_read(transport: MakeTransport) -> None:
    """An announced length over the limit raises before the first byte of the body."""

    async def announce(connection: Connection) -> None:
        await connection.request()
        await connection.send(head(500 * MIB))
        await asyncio.Event().wait()

    async with talking(transport, announce) as (client, _):
        error = await failure(client.get(USERS, ID))
    assert isinstance(error, ResponseError)
    assert str(16 * MIB) in str(error)


async def test_an_endless_body_is_cut_off(transport: MakeTransport) -> None:
    """A body without a length is read up to the limit, and then its connection is closed."""
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
    """Compression that was not asked for raises, as a thousand bytes can become a gigabyte."""
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
    """The coding `identity` is taken in any case of letters."""
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
    """Each transport joins the lines of a field, and reads bytes that are no ASCII as Latin-1."""
    answer = b"HTTP/1.1 200 X\r\nlink: <a>\r\nLink: <\xe9>\r\ncontent-length: 0\r\n\r\n"
    async with (
        listening(Server(sending(answer))) as server,
        ServiceClient(server.url, service="api", transport=transport(), policy=PATIENT) as client,
    ):
        assert (await client.get("/a")).headers["link"] == "<a>, <\xe9>"


async def test_no_cookie_goes_from_one_call_to_the_next(transport: MakeTransport) -> None:
    """A cookie of one answer is not sent with the next call, which may be another user's."""
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
    """The next call has a new connection, as the rest of the body is never read."""
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
