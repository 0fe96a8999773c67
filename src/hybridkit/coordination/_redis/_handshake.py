"""Connections that redis-py opens and the shared connection takes over.

redis-py resolves the name, encrypts, authenticates and selects the database. Then its socket gets another protocol.
For that, two of redis-py's private names are used (`Connection._reader`, `_writer`); a check with each new connection
finds out whether they still mean the same, and without them redis-py's own reading and writing are used.
"""

import asyncio
import secrets
from typing import Any, cast

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from hybridkit.coordination._redis._commands import Command
from hybridkit.coordination._redis._open_connection import Connection, OpenConnection, Owner
from hybridkit.coordination._redis._resp import encode
from hybridkit.coordination._redis._streamed_connection import StreamedConnection
from hybridkit.errors import UnavailableError
from hybridkit.observability import get_logger

_log = get_logger("hybridkit.coordination")

_warned: set[str] = set()


async def open_connection(connection: AbstractConnection, owner: Owner) -> Connection:
    """Connect, take the socket over, and ask for a first reply, which a frozen server would not give.

    Args:
        connection: one of redis-py that is not connected yet.
        owner: gets the errors and the end.

    Raises:
        UnavailableError: the server can't be reached, refuses the credentials, or does not answer.
    """
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException as error:
        await connection.disconnect(nowait=True)
        if isinstance(error, RedisError):
            raise UnavailableError(f"Redis can't be reached: {type(error).__name__}: {error}") from error
        raise
    opened = _take_over(connection, owner)
    nonce = secrets.token_bytes(8)
    echo = Command(
        encode(("ECHO", nonce)), asyncio.get_running_loop().create_future(), float("inf"), is_final=True
    )
    try:
        if opened.is_open:
            opened.write([echo])
        is_usable = opened.is_open and await echo.reply == nonce
    except BaseException:
        echo.reply.cancel()
        opened.close("the first command has no reply")
        raise
    if not is_usable:
        opened.close("the first reply is not that of the first command")
        raise UnavailableError("Redis has answered another command than the one that it was sent")
    return opened


def _take_over(connection: AbstractConnection, owner: Owner) -> Connection:
    named: Any = connection
    try:
        writer: asyncio.StreamWriter = named._writer  # noqa: SLF001
        unread = bytes(named._reader._buffer)  # noqa: SLF001
        opened = OpenConnection(cast("asyncio.Transport", writer.transport), owner, keep=writer)
        named._reader = named._writer = None  # noqa: SLF001 - it would close the socket when it is collected
    except AttributeError as error:
        if str(error) not in _warned:
            _warned.add(str(error))
            _log.warning("this redis-py keeps its socket to itself: commands cost more", reason=str(error))
        return StreamedConnection(connection, owner)
    if unread:
        opened.data_received(unread)
    return opened
