"""A random walk over the shared connection: every reply that a caller gets is the one to its own command."""

import asyncio
import random
from collections import Counter
from typing import Any, Protocol

from hybridkit.coordination._redis._commands import CommandRefusedError, Script
from hybridkit.coordination._redis._multiplexer import Multiplexer
from hybridkit.errors import UnavailableError

SCRIPT = Script("walk", "return ARGV[1]")
MOST_IN_FLIGHT = 500


class Faults(Protocol):
    """The network or the server, which a walk harms."""

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...

    def cut(self) -> None: ...

    def disturb(self, randomly: random.Random) -> None:
        """Change how replies are split, or delayed."""
        ...


class Walk:
    """Commands with a number each, some of them cancelled, while connections freeze, break and answer late.

    Args:
        shared: the shared connection.
        faults: the harm.
        seed: the walk; the moments at which replies arrive are not in it.
    """

    def __init__(self, shared: Multiplexer, faults: Faults, *, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.shifted: list[tuple[int, object]] = []
        self._shared = shared
        self._faults = faults
        self._random = random.Random(seed)
        self._pending: dict[asyncio.Future[Any], int] = {}
        self._asked = 0

    async def run(self, *, commands: int) -> None:
        steps = [self._ask, self._turn, self._cancel, self._disturb, self._cut, self._freeze]
        while self._asked < commands:
            [step] = self._random.choices(steps, weights=[60, 60, 10, 5, 1, 1])
            await step()
        self._faults.thaw()
        if self._pending:
            await asyncio.wait(self._pending)
        await asyncio.sleep(0)  # for the callbacks of the last ones

    async def _ask(self) -> None:
        for _ in range(self._random.randint(1, 20)):
            self._asked += 1
            future = (
                self._shared.run(SCRIPT, ["key"], self._asked, even_if_away=True)
                if self._random.random() < 0.3
                else self._shared.execute("ECHO", f"n{self._asked}", even_if_away=True)
            )
            self._pending[future] = self._asked
            future.add_done_callback(self._look)
        while len(self._pending) > MOST_IN_FLIGHT:
            await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)

    async def _turn(self) -> None:
        for _ in range(self._random.randint(1, 5)):
            await asyncio.sleep(0)

    async def _cancel(self) -> None:
        for future in self._random.sample(list(self._pending), min(3, len(self._pending))):
            future.cancel()

    async def _disturb(self) -> None:
        self._faults.disturb(self._random)

    async def _cut(self) -> None:
        self._faults.cut()

    async def _freeze(self) -> None:
        """Freeze, ask more, and thaw before the deadlines or after them."""
        self._faults.freeze()
        await self._ask()
        if self._pending and self._random.random() < 0.5:
            await asyncio.wait(self._pending, return_when=asyncio.FIRST_EXCEPTION)
        await self._ask()
        self._faults.thaw()

    def _look(self, future: asyncio.Future[Any]) -> None:
        number = self._pending.pop(future)
        if future.cancelled():
            self.outcomes["cancelled"] += 1
            return
        error = future.exception()
        if error is not None:
            assert isinstance(error, UnavailableError)
            assert not isinstance(error, CommandRefusedError)
            self.outcomes["failed"] += 1
            return
        self.outcomes["answered"] += 1
        if future.result() not in {b"n%d" % number, b"%d" % number}:
            self.shifted.append((number, future.result()))
