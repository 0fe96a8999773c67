"""Writers that go on through a fail-over, and what became of their writes."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

EVERY_SECONDS = 0.02

type Write = Callable[[str, int], Awaitable[object]]


@dataclass
class Writer:
    """Writes a numbered key every 20 ms, whether or not the earlier ones have ended.

    Attributes:
        write: writes a number under a key.
        prefix: the beginning of its keys.
        acknowledged: the numbers that were confirmed.
        confirmed_at: when the last one was confirmed, by the clock of the event loop.
        longest_call: the longest time of one call, in seconds.
        longest_gap: the longest time between two confirmations, in seconds.
        errors: how many calls failed, by the kind of error.
    """

    write: Write
    prefix: str
    acknowledged: list[int] = field(default_factory=list[int])
    confirmed_at: float = 0.0
    longest_call: float = 0.0
    longest_gap: float = 0.0
    errors: Counter[str] = field(default_factory=Counter[str])
    calls: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def key(self, number: int) -> str:
        return f"{self.prefix}:{number}"

    async def run(self) -> None:
        number = 0
        while True:
            number += 1
            call = asyncio.create_task(self._call(number))
            self.calls.add(call)
            call.add_done_callback(self.calls.discard)
            await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=EVERY_SECONDS)

    async def _call(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        since = loop.time()
        try:
            await self.write(self.key(number), number)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            self.errors[type(error).__name__] += 1
        else:
            now = loop.time()
            self.acknowledged.append(number)
            self.longest_gap = max(self.longest_gap, now - (self.confirmed_at or now))
            self.confirmed_at = now
        self.longest_call = max(self.longest_call, loop.time() - since)

    async def lost(self, read: Callable[[str], Awaitable[object]]) -> list[int]:
        """Return the confirmed numbers that are not there."""
        return [number for number in self.acknowledged if not await read(self.key(number))]

    def told(self) -> str:
        return (
            f"{self.prefix}: {len(self.acknowledged)} confirmed, outage {self.longest_gap:.2f} s,"
            f" longest call {self.longest_call:.2f} s, errors {dict(self.errors)}"
        )


@asynccontextmanager
async def writing(**writes: Write) -> AsyncGenerator[dict[str, Writer]]:
    """Write in several ways inside the block; at its end, every call has ended."""
    writers = {name: Writer(write, name) for name, write in writes.items()}
    tasks = {asyncio.create_task(writer.run()) for writer in writers.values()}
    try:
        yield writers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks | {call for writer in writers.values() for call in writer.calls})


class Lateness:
    """How late the event loop was at its worst: what a busy machine adds to every deadline."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.01)
            self.seconds = max(self.seconds, time.monotonic() - before - 0.01)
