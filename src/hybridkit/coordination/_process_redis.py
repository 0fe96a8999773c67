"""The Redis of the process, for what is declared at import, before there is a connection."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from redis.asyncio import Redis

from hybridkit.errors import MisuseError

_opened: Final[list[tuple[Redis, Redis]]] = []
"""The clients for everything and for caches, of each process that runs in this interpreter; tests run several."""


@contextmanager
def use_redis(redis: Redis, *, cache: Redis | None = None) -> Generator[None]:
    """Let caches and broadcasts that were declared without a client use these clients inside the block.

    The adapters do this with the connections that the settings name.

    Args:
        redis: a client from `connect_redis`.
        cache: the client for caches, where they have a Redis of their own that may evict.
    """
    pair = (redis, cache or redis)
    _opened.append(pair)
    try:
        yield
    finally:
        _opened.remove(pair)


def redis_of_process(what: str, *, cache: bool = False) -> Redis:
    """Return the client that was opened last.

    Args:
        what: the part that needs it, for the error.
        cache: return the client for caches.

    Raises:
        MisuseError: none is open.
    """
    if not _opened:
        raise MisuseError(
            f"{what} has no Redis: run it in a process whose settings have REDIS_URL, inside `with use_redis(redis):`,"
            " or declare it with redis="
        )
    return _opened[-1][cache]
