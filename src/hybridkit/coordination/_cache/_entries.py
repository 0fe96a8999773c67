"""The scripts of one cache on the shared connection, each answered soon or failed."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis

from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._redis._commands import Script
from hybridkit.coordination._redis._resp import Part
from hybridkit.errors import UnavailableError

if TYPE_CHECKING:
    from hybridkit.coordination._redis._multiplexer import Multiplexer

QUIET_SECONDS: Final = 0.25
"""After a reply that did not come, nothing is asked for this long: of a frozen Redis few callers notice."""

_READ_ON_SECONDS: Final = 0.002
"""After a stall of the event loop its timers may run before it has read the replies that are there."""


class Entries:
    """Scripts with a wait that is shorter than that of the shared connection.

    Args:
        redis: returns the client.
        name: the cache's name, for errors.
        timeout_seconds: the time that a reply may take.
    """

    def __init__(self, redis: Callable[[], Redis], *, name: str, timeout_seconds: float) -> None:
        self._redis = redis
        self._client: Redis | None = None
        self._name = name
        self._timeout_seconds = timeout_seconds
        self._pending: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._quiet_until = 0.0

    def __repr__(self) -> str:
        return f"Entries({self._name!r}, pending={len(self._pending)})"

    def run(self, script: Script, key: str, *arguments: Part) -> "asyncio.Future[Any]":
        """Run a script on one key; the future gets its reply.

        Errors of the future:
            UnavailableError: Redis did not reply in time, did not a moment ago, or refuses the script.
        """
        return self._ask(lambda commands: commands.run(script, (key,), *arguments))

    def execute(self, *parts: Part) -> "asyncio.Future[Any]":
        """Send a plain command; the future gets its reply, or an error as for `run`."""
        return self._ask(lambda commands: commands.execute(*parts))

    def _ask(self, send: "Callable[[Multiplexer], asyncio.Future[Any]]") -> "asyncio.Future[Any]":
        loop = asyncio.get_running_loop()
        now = loop.time()
        if loop is not self._loop:  # a cache outlives the event loops of tests
            self._loop, self._timer, self._quiet_until = loop, None, 0.0
            self._pending.clear()
        if now < self._quiet_until:
            refused: asyncio.Future[Any] = loop.create_future()
            refused.set_exception(UnavailableError(f"cache {self._name}: Redis did not reply a moment ago"))
            return refused
        client = self._redis()
        if client is not self._client:
            self._client, self._commands = client, multiplexer_of(client)
        reply = send(self._commands)
        if isinstance(reply, asyncio.Task):  # of a client that connect_redis has not made
            reply = _result_of(reply)
        self._pending.append((now + self._timeout_seconds, reply))
        if self._timer is None:
            self._timer = loop.call_at(self._pending[0][0], self._look)
        return reply

    def _look(self) -> None:
        pending = self._pending
        while pending and pending[0][1].done():
            pending.popleft()
        loop = asyncio.get_running_loop()
        if not pending:
            self._timer = None
        elif pending[0][0] <= loop.time():
            self._timer = loop.call_later(_READ_ON_SECONDS, self._expire, loop.time())
        else:
            self._timer = loop.call_at(pending[0][0], self._look)

    def _expire(self, now: float) -> None:
        pending = self._pending
        while pending and pending[0][0] <= now:
            _, reply = pending.popleft()
            if not reply.done():
                self._quiet_until = asyncio.get_running_loop().time() + QUIET_SECONDS
                # The shared connection drops a reply whose future has a result already.
                reply.set_exception(
                    UnavailableError(f"cache {self._name}: no reply within {self._timeout_seconds} s")
                )
        self._look()


def _result_of(task: "asyncio.Task[Any]") -> "asyncio.Future[Any]":
    """Return a future that gets what the task returns, unless it has an error by then."""
    reply: asyncio.Future[Any] = task.get_loop().create_future()

    def copy(done: "asyncio.Task[Any]") -> None:
        error = UnavailableError("the command was cancelled") if done.cancelled() else done.exception()
        if reply.done():
            return
        if error is not None:
            reply.set_exception(error)
        else:
            reply.set_result(done.result())

    task.add_done_callback(copy)
    return reply


def forget(reply: "asyncio.Future[Any]") -> None:
    """Let a reply be lost, with its error."""
    reply.add_done_callback(lambda done: done.cancelled() or done.exception())
