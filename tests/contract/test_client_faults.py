"""The clients against servers that misbehave on a real socket, over each transport.

Whatever a server does, a call ends within its deadline with a result or a typed error.
"""

import asyncio
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from hybridkit.clients import PostgresDataClient, Request
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._transports._http1 import Http1Transport
from hybridkit.clients._transports._httpx import open_transport
from hybridkit.contract import Problem
from hybridkit.errors import (
    DeadlineExceededError,
    DeadlinePassedError,
    HybridkitError,
    InProgressError,
    MisuseError,
    RateLimitedError,
    ResponseError,
    UnavailableError,
)
from hybridkit.retry import Retry
from tests.helpers.faulty_service import (
    HURRIED,
    ID,
    LINES,
    MIB,
    PATIENT,
    RECORD,
    SLACK_SECONDS,
    USERS,
    Asked,
    Behaviour,
    Connection,
    MakeTransport,
    Server,
    answering,
    create,
    failure,
    hang,
    head,
    listening,
    piping,
    sending,
    talking,
)

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
    """A redirect raises with its status, as following it could lead a write anywhere."""
    away = answering(b"", status=307, extra="location: http://127.0.0.1:1/\r\n")
    async with talking(transport, away) as (client, _):
        error = await failure(client.get(USERS, ID))
    assert isinstance(error, ResponseError)
    assert error.response_status == 307


# ── no answer ────────────────────────────────────────────────────────────────────────────────────


async def test_nobody_listens(transport: MakeTransport) -> None:
    """A refused connection says for a write too that nothing happened."""
    async with listening(Server(hang)) as server:
        url = server.url
    async with PostgresDataClient(url, service="api", transport=transport(), policy=PATIENT) as client:
        for call in (client.get(USERS, ID), create(client)):
            error = await failure(call)
            assert type(error) is UnavailableError
            assert "not sent" in str(error)


async def test_an_unknown_host(transport: MakeTransport) -> None:
    """The deadline also ends a resolver that takes its time."""
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
    """The second attempt reaches a replica that works, within the time of the call."""
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
    """A body that can't be sent ends at the deadline, and its connection is not used again."""

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
    """The next attempt asks for the address again, without a restart."""
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


# ── a service in trouble ─────────────────────────────────────────────────────────────────────────


def problem(error: HybridkitError) -> tuple[int, bytes]:
    document = Problem.from_error(error, instance="/", request_id="r")
    return document.status, document.model_dump_json().encode()


async def test_a_503_and_then_a_200(transport: MakeTransport) -> None:
    """A 503 is repeated, also where a proxy sends it as HTML."""

    async def recover(connection: Connection) -> None:
        await connection.request()
        await connection.answer(b"<html>", status=503)
        await connection.request()
        await connection.answer(RECORD)

    async with talking(transport, recover) as (client, server):
        assert (await create(client)).id == ID
        assert server.connections == 1


async def test_too_many_requests(transport: MakeTransport) -> None:
    """The call waits as long as the service says; a wait beyond the deadline goes to the caller at once."""

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
    """While the same call still runs elsewhere, the attempt is repeated when the service says so."""
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
    """The same client goes on once the service is back on its port."""
    async with AsyncExitStack() as stack:
        async with listening(Server(answering(RECORD))) as server:
            client = PostgresDataClient(server.url, service="api", transport=transport(), policy=PATIENT)
            await stack.enter_async_context(client)
            await client.get(USERS, ID)
        assert isinstance(await failure(client.get(USERS, ID)), UnavailableError)
        async with listening(Server(answering(RECORD)), port=int(server.url.rpartition(":")[2])):
            assert (await client.get(USERS, ID)).id == ID


async def test_the_probe_names_the_breaker(transport: MakeTransport) -> None:
    """The probe of a service that answers says why calls to it are held back."""

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


async def test_many_calls_share_the_permits(transport: MakeTransport) -> None:
    """There are never more connections than permits; the other calls wait and are served."""
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
    """The socket counts at most a fifth more calls than were made, plus ten."""
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
    """A dead service sees no more calls than the breaker needs to open."""
    async with talking(transport, reset_each) as (client, server):
        for _ in range(300):
            await failure(client.get(USERS, ID))
        assert server.connections <= 20 * 1.2 + 10


# ── transports ───────────────────────────────────────────────────────────────────────────────────


async def test_a_client_without_a_transport_has_its_own() -> None:
    """A client that was given no transport speaks HTTP/1.1 by itself."""
    chosen = open_transport(None)
    assert isinstance(chosen, Http1Transport)
    assert repr(chosen) == "Http1Transport(0 connections)"
    await chosen.aclose()


async def test_a_transport_of_ones_own_is_used_as_it_is(transport: MakeTransport) -> None:
    """A `Transport` is not wrapped in another one."""
    own = open_transport(transport())
    assert open_transport(own) is own
    await own.aclose()


async def test_a_transport_that_is_closed_is_a_misuse(transport: MakeTransport) -> None:
    """Sending over a transport that another client has closed raises `MisuseError`."""
    shared = open_transport(transport())
    await shared.aclose()
    async with PostgresDataClient("http://127.0.0.1:9", service="api", transport=shared) as client:
        assert isinstance(await failure(client.get(USERS, ID)), MisuseError)
        with pytest.raises(MisuseError):
            async for _ in client.find(USERS).export():
                pass


async def test_what_http_cannot_carry_is_a_misuse(transport: MakeTransport) -> None:
    """A header that would end the header block raises and is never repeated."""
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
