"""Keep in Redis what must outlive the process that works on it."""

import json
import time
from collections.abc import Collection, Mapping
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from hybridkit.errors import UnavailableError
from hybridkit.observability import get_logger

__all__ = ["REDIS_IS_AWAY", "Shelf"]

REDIS_IS_AWAY: Final = (RedisConnectionError, RedisTimeoutError, ReadOnlyError, MasterDownError)
"""The errors of the Redis client while its server is down, starting, or being replaced by another."""


_log = get_logger("hybridkit.coordination")


class Shelf:
    """Numbered JSON values under one key.

    Args:
        redis: a client from `connect_redis`; it isn't closed here.
        key: the key of the Redis hash.
        retention_seconds: how long a value is kept that nobody takes away.
    """

    def __init__(self, redis: Redis, *, key: str, retention_seconds: int) -> None:
        # redis-py annotates its commands for its sync and its async client at once.
        self._redis: Any = redis
        self._key = key
        self._retention_seconds = retention_seconds

    def __repr__(self) -> str:
        return f"Shelf({self._key!r})"

    async def put(self, values: Mapping[int, object]) -> None:
        """Keep these values, all or none of them.

        Raises:
            UnavailableError: Redis did not answer.
        """
        now = time.time()
        # Not by the codec: what others have made may hold texts that are no Unicode, which this keeps as escapes.
        entries = {str(number): json.dumps([now, value]) for number, value in values.items()}
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(self._key, mapping=entries)
                pipeline.expire(self._key, self._retention_seconds)
                await pipeline.execute()
        except RedisError as error:
            raise _unavailable(error) from error

    async def take_away(self, numbers: Collection[int]) -> None:
        """Remove the values of these numbers.

        Raises:
            UnavailableError: Redis did not answer.
        """
        try:
            await self._redis.hdel(self._key, *map(str, numbers))
        except RedisError as error:
            raise _unavailable(error) from error

    async def values(self) -> list[Any]:
        """Return the kept values, by ascending number.

        Raises:
            UnavailableError: Redis did not answer.
        """
        try:
            entries: dict[str | bytes, str | bytes] = await self._redis.hgetall(self._key)
        except RedisError as error:
            raise _unavailable(error) from error
        since = time.time() - self._retention_seconds
        kept: dict[int, Any] = {}
        for number, text in entries.items():
            try:
                put_at, value = json.loads(text)
                if put_at > since:
                    kept[int(number)] = value
            except (ValueError, TypeError, RecursionError):  # one that isn't ours must not hide the others
                _log.warning("a value on a shelf can't be read", key=self._key)
        return [kept[number] for number in sorted(kept)]


def _unavailable(error: RedisError) -> UnavailableError:
    return UnavailableError(f"Redis does not answer: {type(error).__name__}: {error}")
