"""FaultProxy in front of a plain echo server: each fault as a client feels it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from hybridkit.testing import FaultProxy

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def echo_port() -> AsyncIterator[int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def proxy(echo_port: int) -> AsyncIterator[FaultProxy]:
    async with FaultProxy("127.0.0.1", echo_port) as proxy:
        yield proxy


@pytest.fixture
async def connection(proxy: FaultProxy) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    yield reader, writer
    writer.transport.abort()


async def echoed(connection: Connection, data: bytes) -> bytes:
    reader, writer = connection
    writer.write(data)
    return await reader.readexactly(len(data))


async def stays_silent(reader: asyncio.StreamReader) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read(1)
            return False
    return True


async def test_passes_bytes_both_ways(connection: Connection) -> None:
    """More than one buffer's worth arrives whole and in order."""
    data = bytes(range(256)) * 4000
    assert await echoed(connection, data) == data


async def test_end_of_stream_passes(connection: Connection) -> None:
    """A client that only ends its own direction still gets the answer, then the server's end."""
    reader, writer = connection
    writer.write(b"last")
    writer.write_eof()
    assert await reader.read() == b"last"


async def test_url_for_keeps_all_but_the_address(proxy: FaultProxy) -> None:
    """User, password, path and query stay."""
    url = proxy.url_for("amqp://guest:p%40ss@broker:5672/host?heartbeat=5")
    assert url == f"amqp://guest:p%40ss@127.0.0.1:{proxy.port}/host?heartbeat=5"


async def test_frozen_bytes_wait(proxy: FaultProxy, connection: Connection) -> None:
    """Nothing arrives while frozen, nothing is lost, and the connection stays open."""
    reader, writer = connection
    await echoed(connection, b"before")
    proxy.freeze()
    writer.write(b"held")
    assert await stays_silent(reader)
    proxy.let_pass()
    assert await reader.readexactly(4) == b"held"


async def test_new_connection_is_accepted_while_frozen(proxy: FaultProxy) -> None:
    """The connection opens, and then nothing comes, as with a process under SIGSTOP."""
    proxy.freeze()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"hello")
    assert await stays_silent(reader)
    proxy.let_pass()
    assert await reader.readexactly(5) == b"hello"
    writer.transport.abort()


async def test_frozen_sender_feels_full_buffers(proxy: FaultProxy, connection: Connection) -> None:
    """The proxy does not drink what a frozen server would not."""
    _, writer = connection
    await echoed(connection, b"before")
    proxy.freeze()
    writer.write(bytes(64 * 1024 * 1024))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await writer.drain()


async def test_swallowed_bytes_are_lost(proxy: FaultProxy, connection: Connection) -> None:
    """The sender notices nothing; when the fault ends, the spoiled connection is reset."""
    reader, writer = connection
    await echoed(connection, b"before")
    proxy.swallow()
    writer.write(b"gone")
    assert await stays_silent(reader)
    proxy.let_pass()
    with pytest.raises(ConnectionResetError):
        await reader.read(1)


async def test_connection_without_losses_survives_swallow(proxy: FaultProxy, connection: Connection) -> None:
    """One that was silent meanwhile goes on."""
    await echoed(connection, b"before")
    proxy.swallow()
    proxy.let_pass()
    assert await echoed(connection, b"after") == b"after"


async def test_delay_holds_each_byte_once(proxy: FaultProxy, connection: Connection) -> None:
    """There and back is twice the delay, for many writes as for one: latency, not a rate."""
    loop = asyncio.get_running_loop()
    await echoed(connection, b"before")
    proxy.delay(0.3)
    started = loop.time()
    answers = await asyncio.gather(
        *(write_and_pause(connection, pause) for pause in (n / 1000 for n in range(50)))
    )
    assert await connection[0].readexactly(len(answers)) == b"." * len(answers)
    assert 0.6 <= loop.time() - started < 4  # a rate takes 6


async def write_and_pause(connection: Connection, pause_seconds: float) -> None:
    await asyncio.sleep(pause_seconds)
    connection[1].write(b".")


async def test_reset_is_felt_as_reset(proxy: FaultProxy, connection: Connection) -> None:
    """Open connections get RST, not an end of stream; the next one works."""
    await echoed(connection, b"before")
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await connection[0].read(1)
    second = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await echoed(second, b"again") == b"again"
    second[1].transport.abort()


@pytest.mark.parametrize("at_byte", [0, 1, 7, 100_000])
async def test_cut_delivers_exactly_that_many_bytes(
    proxy: FaultProxy, connection: Connection, at_byte: int
) -> None:
    """The answer breaks off at the byte that was asked for."""
    await echoed(connection, b"before")
    proxy.cut("to_client", at_byte=at_byte)
    reader, writer = connection
    writer.write(bytes(200_000))
    assert len(await reader.read()) == at_byte


async def test_cut_towards_the_server(proxy: FaultProxy, connection: Connection) -> None:
    """The server never sees the rest of the request, so it can't echo it."""
    proxy.cut("to_server", at_byte=3)
    reader, writer = connection
    writer.write(b"abcdef")
    assert len(await reader.read()) <= 3


async def test_dead_server_resets_the_client(unused_tcp_port: int) -> None:
    """The proxy accepts, finds nobody behind it, and says so."""
    async with FaultProxy("127.0.0.1", unused_tcp_port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()


async def test_leaving_ends_what_is_open(echo_port: int) -> None:
    """A client of a proxy that has gone is not left hanging."""
    async with FaultProxy("127.0.0.1", echo_port) as proxy:
        connection = await asyncio.open_connection("127.0.0.1", proxy.port)
        await echoed(connection, b"before")
        assert proxy.connections == 1
    with suppress(ConnectionResetError):
        assert await connection[0].read(1) == b""
    assert proxy.connections == 0
    connection[1].close()
