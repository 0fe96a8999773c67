"""Beside each other or alone: a message that seems to kill its process must not take its neighbours along.

A process that dies on one message leaves the claims of all that ran beside it behind, and each of them is taken over.
From the claims alone nobody can tell which of them it was. So what was taken over more than once runs by itself, in a
process that does nothing else meanwhile: the next death then has one suspect.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from weakref import WeakKeyDictionary

__all__ = ["Turns"]


class Turns:
    """Of all handlers in one event loop, whichever consumer they belong to: a process dies as a whole."""

    def __init__(self) -> None:
        self._running = 0
        self._idle = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()
        self._one = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Turns(running={self._running}, is_open={self._open.is_set()})"

    @classmethod
    def here(cls) -> "Turns":
        """Those of the running loop."""
        loop = asyncio.get_running_loop()
        turns = _TURNS.get(loop)
        if turns is None:
            turns = _TURNS[loop] = cls()
        return turns

    @property
    def is_open(self) -> bool:
        """Whether nobody is or wants to be alone."""
        return self._open.is_set()

    async def begin(self) -> None:
        """Begin beside others; waits while one is or wants to be alone."""
        while not self._open.is_set():
            await self._open.wait()
        self._running += 1

    def end(self) -> None:
        """End what was begun."""
        self._running -= 1
        if not self._running:
            self._idle.set()

    @asynccontextmanager
    async def alone(self, *, seconds: float, most_seconds: float | None = None) -> AsyncGenerator[bool]:
        """The block runs with nothing beside it; with False if that could not be had in that time.

        Args:
            seconds: how long to wait for the end of the others.
            most_seconds: how long they wait; then they go on beside the block. None for as long as it takes.
        """
        is_alone = False
        try:
            async with asyncio.timeout(seconds):
                await self._one.acquire()
                try:
                    self._open.clear()
                    while self._running:
                        self._idle.clear()
                        await self._idle.wait()
                    is_alone = True
                finally:
                    if not is_alone:
                        self._leave()
        except TimeoutError:
            yield False
            return
        with ExitStack() as leaving:
            leaving.callback(self._leave)
            if most_seconds is not None:
                timer = asyncio.get_running_loop().call_later(most_seconds, leaving.close)
                leaving.callback(timer.cancel)
            yield True

    def _leave(self) -> None:
        self._open.set()
        self._one.release()


_TURNS: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()
