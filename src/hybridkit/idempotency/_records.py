"""Ask Redis within bounds: a question ends in time, with an answer or with `UnavailableError`."""

import asyncio
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from hybridkit._tasks import TaskSet
from hybridkit.errors import UnavailableError
from hybridkit.idempotency._breaker import COOLDOWN_SECONDS, Breaker
from hybridkit.idempotency._scripts import Script
from hybridkit.observability import get_logger

__all__ = ["Argument", "Records"]

_log = get_logger("hybridkit.idempotency")

type Argument = str | bytes | int


class Records:
    """The records in Redis, and the scripts that change them, each in a task of its own.

    A caller that is cancelled doesn't stop a script half-way: the question gets its answer, and the connection stays
    usable.

    Args:
        redis: the client, whose time limits may be longer than ours.
        key_prefix: the prefix of every key.
        timeout_seconds: the time for one script, connecting included.
    """

    def __init__(self, redis: Redis, *, key_prefix: str, timeout_seconds: float) -> None:
        self._redis = redis
        self._key_prefix = key_prefix
        self._timeout_seconds = timeout_seconds
        self._running = TaskSet()
        self.breaker = Breaker()

    def start(self, script: Script, key: str, *arguments: Argument) -> asyncio.Task[Any]:
        """Ask without waiting for the answer."""
        return self._running.start(self._run(script, key, *arguments), name=f"hybridkit guard {script.name}")

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Keep a task that was started elsewhere until it is done."""
        self._running.keep(task)

    async def ask(self, script: Script, key: str, *arguments: Argument) -> list[Any]:
        """Run a script and return its answer: text first, the rest as it came.

        Raises:
            UnavailableError: Redis did not answer, or refuses to run the script (out of memory).
        """
        return await self.answer(self.start(script, key, *arguments))

    async def answer(self, task: asyncio.Task[Any]) -> list[Any]:
        """Wait for the answer of a script that was started, as `ask` does."""
        # wait() returns at its time even if the driver were to sit on a cancellation, which wait_for() would await.
        await asyncio.wait({task}, timeout=self._timeout_seconds)
        if not task.done():
            task.cancel()
            self._note_failure()
            raise _unavailable(f"no answer within {self._timeout_seconds} s")
        try:
            reply = task.result()
        except (RedisConnectionError, RedisTimeoutError) as error:
            self._note_failure()
            raise _unavailable(_words(error)) from error
        except RedisError as error:
            # It is there and says no (OOM, MISCONF, WRONGTYPE): quick, so no matter for the breaker.
            _log.warning("Redis refuses a script of the idempotency guard", reason=_words(error))
            raise _unavailable(_words(error)) from error
        if self.breaker.succeeded():
            _log.info("Redis answers the idempotency guard again")
        return _as_list(reply)

    async def _run(self, script: Script, key: str, *arguments: Argument) -> Any:
        return await script.run(self._redis, self._key_prefix + key, *arguments)

    def _note_failure(self) -> None:
        if self.breaker.failed():
            _log.warning("Redis does not answer the idempotency guard", next_try_seconds=COOLDOWN_SECONDS)

    def __repr__(self) -> str:
        return f"Records(key_prefix={self._key_prefix!r}, breaker={self.breaker!r})"


def _unavailable(words: str) -> UnavailableError:
    return UnavailableError(
        f"the idempotency guard can't reach Redis: {words}", retry_after_seconds=COOLDOWN_SECONDS
    )


def _words(error: RedisError) -> str:
    return f"{type(error).__name__}: {error}"


def _as_list(reply: Any) -> list[Any]:
    """Convert a reply to a list: it is text or bytes, one value or several, by the script and the client's settings."""
    first, *rest = cast("list[Any]", reply) if isinstance(reply, list) else [reply]
    return [first.decode() if isinstance(first, bytes) else first, *rest]
