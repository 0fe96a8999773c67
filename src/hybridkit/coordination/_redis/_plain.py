"""Commands and scripts by a client that `connect_redis` has not made, such as that of fakeredis: one at a time."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from hybridkit._tasks import TaskSet
from hybridkit.coordination._redis._commands import CommandRefusedError, Script
from hybridkit.coordination._redis._resp import Part
from hybridkit.errors import UnavailableError

TIMEOUT_SECONDS: Final = 0.5


class PlainCommands:
    """The methods of `Multiplexer`, over the public ones of any client of redis-py.

    Args:
        redis: the client.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis
        self._running = TaskSet()

    def __repr__(self) -> str:
        return f"PlainCommands({type(self._redis).__name__})"

    @property
    def is_away(self) -> bool:
        """False: each command finds out for itself."""
        return False

    def run(
        self,
        script: Script,
        keys: Sequence[str],
        *arguments: Part,
        even_if_away: bool = False,  # noqa: ARG002 - it is never away
    ) -> "asyncio.Future[Any]":
        """Run a script, as `Multiplexer.run` does."""
        return self._start(self._run(script, keys, arguments))

    def execute(self, *parts: Part, even_if_away: bool = False) -> "asyncio.Future[Any]":  # noqa: ARG002
        """Send a command, as `Multiplexer.execute` does."""
        return self._start(self._redis.execute_command(*parts))

    def _start(self, answer: Awaitable[Any]) -> "asyncio.Future[Any]":
        # The command goes on when its caller is cancelled, as on the shared connection.
        return asyncio.ensure_future(
            _shielded(self._running.start(_bounded(answer), name="hybridkit redis command"))
        )

    async def _run(self, script: Script, keys: Sequence[str], arguments: Sequence[Part]) -> Any:
        try:
            return await self._redis.execute_command(*script.by_digest(keys, arguments))
        except NoScriptError:
            return await self._redis.execute_command(*script.in_full(keys, arguments))


async def _shielded(task: "asyncio.Task[Any]") -> Any:
    return await asyncio.shield(task)


async def _bounded(answer: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return _as_bytes(await answer)
    except (RedisConnectionError, RedisTimeoutError, TimeoutError) as error:
        raise UnavailableError(f"no reply from Redis: {type(error).__name__}: {error}") from error
    except RedisError as error:
        raise CommandRefusedError(f"Redis refuses a command: {error}") from error


def _as_bytes(reply: Any) -> Any:
    """Undo `decode_responses`."""
    if isinstance(reply, list):
        return [_as_bytes(item) for item in cast("list[Any]", reply)]
    return reply.encode() if isinstance(reply, str) else reply
