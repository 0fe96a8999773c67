"""Connections that notice when their server isn't the master any more.

After a failover the old master is up and answers: it takes no writes, and redis-py keeps its connections. Its refusal
is taken for a broken connection here, so that every user of a client (commands, scripts, pipelines) comes to the same:
the connection is closed, the name is looked up again, and the command, which was not carried out, is sent once more.
"""

import re
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ClusterDownError, OutOfMemoryError, ReadOnlyError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

_CODE = re.compile(
    r"(?:^|-|: )(?:READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|LOADING|NOREPLICAS|UNBLOCKED|MISCONF|BUSY)\b"
)
"""The words of a refusal, at the beginning or in the middle: before Redis 7 a script's own error has that of its
command in it, and a transaction's always has that of what it was discarded for.
"""


def is_refused_for_now(error: BaseException) -> bool:
    """Return whether an error is an answer of Redis that another server, or this one later, wouldn't give."""
    return isinstance(error, OutOfMemoryError) or _takes_no_writes(error)


def takes_no_writes(message: str) -> bool:
    """Return whether an error reply says that the server takes no writes now, because another one is the master."""
    return bool(_CODE.search(message))


def _takes_no_writes(error: BaseException) -> bool:
    typed = isinstance(error, ReadOnlyError | ClusterDownError | TryAgainError)
    return typed or (isinstance(error, ResponseError) and takes_no_writes(str(error)))


class NotMasterError(RedisConnectionError):
    """The server takes no writes: it is a replica, has not enough replicas, or is still loading."""


def is_write_to_lost_connection(error: TypeError) -> bool:
    """Return whether an error is that of asyncio's `writelines` after the connection was lost, as in Python 3.12.1."""
    return str(error) == "'NoneType' object is not callable"


class _FollowingMaster(AbstractConnection):
    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*args, **options)  # pyright: ignore[reportUnknownMemberType]
        except TypeError as error:
            if not is_write_to_lost_connection(error):
                raise
            raise RedisConnectionError("the connection was lost before the command was written") from error

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # pyright: ignore[reportUnknownVariableType]
        except ResponseError as error:
            if not _takes_no_writes(error):
                raise
            await self.disconnect(nowait=True)
            raise NotMasterError(f"the server takes no writes: {error}") from error


class _Tcp(_FollowingMaster, Connection):
    pass


class _Tls(_FollowingMaster, SSLConnection):
    pass


class _Unix(_FollowingMaster, UnixDomainSocketConnection):
    pass


def following_master(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    """Make a subclass of a connection that gives up a server which isn't the master."""
    if issubclass(connection_class, SSLConnection):
        return _Tls
    return _Unix if issubclass(connection_class, UnixDomainSocketConnection) else _Tcp
