"""Loads under way in this process: one per key and generation, however many callers wait for it."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from hybridkit._tasks import TaskSet
from hybridkit.context import current
from hybridkit.errors import DeadlinePassedError, UnavailableError


@dataclass(frozen=True, slots=True)
class Loaded[T]:
    """A value that was loaded.

    Attributes:
        value: the value.
        body: its stored form, of which each further caller gets a value of its own; None where it has none.
    """

    value: T | None
    body: bytes | None


class Load[T]:
    """One load, by this process or by another one that it waits for.

    Attributes:
        key: the key in Redis.
        token: the claim under which the value is loaded; None while Redis can't be asked.
        epoch: the epoch of the cache in which it began; empty without tags, and for another process's load.
        result: gets the value, or the loader's error.
    """

    __slots__ = ("epoch", "key", "result", "token")

    def __init__(self, key: str, token: str | None) -> None:
        self.key = key
        self.token = token
        self.epoch = b""
        self.result: asyncio.Future[Loaded[T]] = asyncio.get_running_loop().create_future()
        # A refresh in the background has no caller that would look at its error.
        self.result.add_done_callback(lambda result: result.cancelled() or result.exception())

    def __repr__(self) -> str:
        return f"Load({self.key!r}, done={self.result.done()})"

    def fail(self, error: BaseException) -> None:
        """Give the waiting callers an error."""
        if not self.result.done():
            if isinstance(
                error, asyncio.CancelledError
            ):  # theirs would look like a cancellation of themselves
                error = UnavailableError("the load was cancelled: the process stops")
            self.result.set_exception(error)

    def succeed(self, loaded: Loaded[T]) -> None:
        """Give the waiting callers the value."""
        if not self.result.done():
            self.result.set_result(loaded)

    async def wait(self) -> Loaded[T]:
        """Wait for the value, until the caller's own deadline at the longest; its cancellation ends only the waiting.

        Raises:
            DeadlinePassedError: the caller's deadline has passed.
            Exception: the loader has raised it.
        """
        seconds = current().remaining_seconds()
        if seconds is None:
            return await asyncio.shield(self.result)
        await asyncio.wait({self.result}, timeout=max(seconds, 0))
        if not self.result.done():
            raise DeadlinePassedError("the deadline passed while a value was loaded; the load goes on")
        return self.result.result()


class Loads[T]:
    """The loads of one cache in this process."""

    def __init__(self) -> None:
        self._by_key: dict[str, Load[T]] = {}
        self._tasks = TaskSet()

    def __repr__(self) -> str:
        return f"Loads({len(self._by_key)} running)"

    def find(self, key: str, token: str | None) -> Load[T] | None:
        """Return the load of a key under this claim, or any load of it while Redis can't be asked."""
        load = self._by_key.get(key)
        if load is None or load.result.get_loop() is not asyncio.get_running_loop():
            return None
        return load if token is None or load.token == token else None

    def start(
        self, key: str, token: str | None, work: Callable[[Load[T]], Coroutine[Any, Any, None]]
    ) -> Load[T]:
        """Begin a load in a task of its own, which ends with the load's result set."""
        load: Load[T] = Load(key, token)
        self._by_key[key] = load
        self._tasks.start(self._run(load, work(load)), name="hybridkit cache load")
        return load

    def forget(self, key: str) -> None:
        """Let no further caller join the load of a key."""
        self._by_key.pop(key, None)

    def forget_all(self) -> None:
        """Let no further caller join any load of now."""
        self._by_key.clear()

    async def _run(self, load: Load[T], work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BaseException as error:
            load.fail(error)
            raise
        finally:
            if self._by_key.get(load.key) is load:
                del self._by_key[load.key]
