"""Commands over a client that `connect_redis` has not made: slower, and the same errors."""

import asyncio

import pytest
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._redis import _plain
from hybridkit.coordination._redis._commands import CommandRefusedError, Script
from hybridkit.errors import UnavailableError
from tests.helpers.scripted_redis import ScriptedRedis, bulk

SCRIPT = Script("test", "return ARGV[1]")


def answer(command: list[bytes]) -> bytes | None:
    match command[0]:
        case b"EVALSHA":
            return b"-NOSCRIPT No matching script.\r\n"
        case b"LPOP":
            return b"-WRONGTYPE no list\r\n"
        case b"BLPOP":
            return None
        case _:
            return b"*3\r\n:1\r\n$-1\r\n" + bulk(command[1])


@pytest.mark.parametrize("decodes", [True, False])
async def test_replies_are_those_of_the_shared_connection(
    monkeypatch: pytest.MonkeyPatch, decodes: bool
) -> None:
    """Bytes, numbers, None and lists; errors, and an end to waiting."""
    async with ScriptedRedis(answer).open() as server:
        retry = Retry(NoBackoff(), 0)
        pool = ConnectionPool(
            host="127.0.0.1", port=server.port, protocol=2, decode_responses=decodes, retry=retry
        )
        async with Redis.from_pool(pool) as client:
            commands = multiplexer_of(client)
            assert not commands.is_away
            assert repr(commands) == "PlainCommands(Redis)"
            assert await commands.execute("GET", "key") == [1, None, b"key"]
            assert await commands.run(SCRIPT, ["key"], 1) == [1, None, SCRIPT.text.encode()]
            with pytest.raises(CommandRefusedError, match="no list"):
                await commands.execute("LPOP", "key")
            commands.execute("GET", "key").cancel()
            monkeypatch.setattr(_plain, "TIMEOUT_SECONDS", 0.02)
            with pytest.raises(UnavailableError):
                await asyncio.shield(commands.execute("BLPOP", "key"))
