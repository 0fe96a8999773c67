"""The supervised loop of connections and channels: what is lost is opened again, with growing pauses."""

import asyncio
import sys
import time
from abc import ABC, abstractmethod
from typing import Final

from hybridkit.errors import NotConnectedError
from hybridkit.retry import Retry

REOPEN: Final = Retry.exponential(first_seconds=0.2, cap_seconds=10.0, attempts=sys.maxsize)
STABLE_SECONDS: Final = 10.0
"""A resource that lasted shorter than this doesn't make the pauses short again: the broker may end each one at once."""


class Supervised[T](ABC):
    """Keeps one resource open: a subclass opens it, waits for its end, and hears of that.

    Args:
        task_name: the name of the supervising task, for debuggers.
    """

    def __init__(self, task_name: str) -> None:
        self._task_name = task_name
        self._opened: T | None = None
        self._is_opened = asyncio.Event()
        self._supervision: asyncio.Task[None] | None = None
        self._last_error = ""

    async def opened(self) -> T:
        """Wait until the resource is open, and return it."""
        while (opened := self._opened) is None or self._has_ended(opened):
            self._is_opened.clear()
            await self._is_opened.wait()
        return opened

    async def _start(self, *, seconds: float, failure: str) -> None:
        """Open the resource for the first time, and supervise it from then on.

        Args:
            seconds: how long that may take; attempts go on until then.
            failure: what to say when it was not opened in that time.

        Raises:
            NotConnectedError: the resource was not opened in that time.
            Exception: trying again can't help (`_may_pass`).
        """
        first = asyncio.get_running_loop().create_future()
        self._supervision = asyncio.create_task(self._supervise(first), name=self._task_name)
        try:
            await asyncio.wait({first}, timeout=seconds)
        except asyncio.CancelledError:  # whoever gives up starting leaves nothing behind that connects later
            await self._stop()
            raise
        if first.done() and first.exception() is None:
            return
        await self._stop()
        if first.done():
            first.result()
        raise NotConnectedError(f"{failure}: {self._last_error or 'no answer'}")

    async def _stop(self) -> T | None:
        """End the supervision, and return the resource if it is still open; closing it is the caller's part."""
        supervision, self._supervision = self._supervision, None
        if supervision is not None:
            supervision.cancel()
            await asyncio.wait({supervision})
        opened, self._opened = self._opened, None
        return opened

    async def _supervise(self, first: asyncio.Future[None]) -> None:
        pauses = REOPEN.pauses()
        while True:
            try:
                opened = await self._open()
            except Exception as error:  # noqa: BLE001 - whatever spoils one attempt must not end the supervision
                self._last_error = str(error)
                if not (first.done() or self._may_pass(error)):
                    first.set_exception(error)
                    return
                self._failed(error)
            else:
                if not first.done():
                    first.set_result(None)
                opened_at = time.monotonic()
                # Cancelled from here on, it stays open: `_stop` returns it to whoever closes it.
                self._opened = opened
                self._is_opened.set()
                await self._live_through(opened)
                self._opened = None
                self._lost(opened)
                if time.monotonic() - opened_at >= STABLE_SECONDS:
                    pauses = REOPEN.pauses()
            await asyncio.sleep(next(pauses))

    @abstractmethod
    async def _open(self) -> T:
        """Open the resource once."""

    @abstractmethod
    def _may_pass(self, error: Exception) -> bool:
        """Return whether another attempt can help, where the first one has failed with this error."""

    @abstractmethod
    def _failed(self, error: Exception) -> None:
        """Log an attempt that failed and is followed by another."""

    @abstractmethod
    async def _live_through(self, opened: T) -> None:
        """Return when the resource has ended, or is to be replaced."""

    @abstractmethod
    def _lost(self, opened: T) -> None:
        """Give up the resource, which `opened` no longer returns."""

    def _has_ended(self, opened: T) -> bool:
        """Return whether the resource has ended, although `_live_through` hasn't noticed yet."""
        del opened
        return False
