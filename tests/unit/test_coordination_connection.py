"""The Redis client's limits, and what is checked before work is built on a server."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from hybridkit.coordination import check_noeviction, connect_redis, probe_redis
from hybridkit.errors import SettingsError, UnavailableError


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncGenerator[str]:
    """A server that gives this answer to everything but the handshake; None for no answer. Yields its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(4096):
            if b"SETINFO" in request.upper():
                writer.write(b"+OK\r\n" * request.upper().count(b"SETINFO"))
            elif answer is not None:
                writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


def info(text: str) -> bytes:
    return f"${len(text)}\r\n{text}\r\n".encode()


@pytest.mark.parametrize("url", ["http://127.0.0.1/0", "redis://user:s3cret@host:s3cret/0", "127.0.0.1:6379"])
def test_a_url_that_is_none_is_an_error_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="redis://user:password@host") as caught:
        connect_redis(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_nothing_listens_is_told_at_once() -> None:
    async with connect_redis("redis://127.0.0.1:1/0") as redis:
        with pytest.raises(UnavailableError, match="Redis does not answer"):
            await probe_redis(redis)
        with pytest.raises(UnavailableError, match="Redis does not answer"):
            await check_noeviction(redis)


async def test_a_silent_server_costs_fractions_of_a_second() -> None:
    async with answering(None) as url, connect_redis(url, timeout_seconds=0.05) as redis:
        since = time.monotonic()
        with pytest.raises(UnavailableError):
            await probe_redis(redis)
        assert time.monotonic() - since < 1.0


async def test_an_exhausted_pool_is_waited_for_only_so_long() -> None:
    async with answering(None) as url, connect_redis(url, timeout_seconds=0.1, max_connections=1) as redis:
        since = time.monotonic()
        results = await asyncio.gather(*(probe_redis(redis) for _ in range(5)), return_exceptions=True)
        assert all(isinstance(result, UnavailableError) for result in results)
        assert time.monotonic() - since < 2.0


async def test_a_server_that_evicts_is_refused_with_the_words_to_fix_it() -> None:
    async with (
        answering(info("# Memory\r\nmaxmemory_policy:allkeys-lru\r\n")) as url,
        connect_redis(url) as redis,
    ):
        with pytest.raises(SettingsError, match=r"allkeys-lru.*CONFIG SET maxmemory-policy noeviction"):
            await check_noeviction(redis)


async def test_a_server_that_evicts_nothing_is_taken() -> None:
    async with (
        answering(info("# Memory\r\nmaxmemory_policy:noeviction\r\n")) as url,
        connect_redis(url) as redis,
    ):
        await check_noeviction(redis)


@pytest.mark.parametrize(
    "answer", [info("# Memory\r\nused_memory:1\r\n"), b"-ERR unknown command 'INFO'\r\n"]
)
async def test_a_server_that_does_not_tell_is_taken_with_a_line_in_the_log(answer: bytes) -> None:
    with capture_logs() as lines:
        async with answering(answer) as url, connect_redis(url) as redis:
            await check_noeviction(redis)
    assert "make sure that it is noeviction" in lines[-1]["event"]
