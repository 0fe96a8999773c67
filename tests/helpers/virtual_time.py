"""An event loop whose clock jumps over every pause, for code that only waits for time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Selector(selectors.DefaultSelector):
    """Takes no time: where the loop would wait for a timer, its clock goes on by that time."""

    loop: "VirtualTimeLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        self.loop.now += timeout
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop in which an hour of `asyncio.sleep` takes no time, and whose clock shows that hour afterwards."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = 1_000_000.0
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run_in_virtual_time[T](work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine, and return its result."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
