"""The backlog of delivered messages that wait for a handler, and the workers that take them from there."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, cast

from hybridkit._tasks import TaskSet
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.observability import get_logger

SLICE_SECONDS: Final = 0.005
"""The time after which the event loop does something else, where handlers never wait."""

_log = get_logger(__name__)


class Backlog(Protocol):
    """Decides which delivery is next. All methods are called in the event loop, `get` by one task."""

    def put(self, delivery: Delivery, /) -> None:
        """Add a delivery; those whose channel has closed may be dropped."""
        ...

    async def get(self) -> Delivery:
        """Return the next delivery that may run, as soon as there is one; a cancelled `get` takes none."""
        ...

    def done(self, delivery: Delivery, /) -> None:
        """Note that a delivery runs no more, however it ended."""
        ...

    def longest_wait_seconds(self) -> float:
        """Return for how long the oldest delivery that waits has done so; 0 where none does."""
        ...

    def __len__(self) -> int:
        """Return the number of deliveries that wait."""
        ...


class FifoBacklog:
    """A backlog that gives out deliveries in the order in which they came.

    Args:
        prefetch: the number of deliveries that there can be of one channel.
    """

    def __init__(self, *, prefetch: int) -> None:
        self._prefetch = prefetch
        self._waiting: deque[Delivery] = deque()
        self._filled = asyncio.Event()

    def __repr__(self) -> str:
        return f"FifoBacklog({len(self)} deliveries)"

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, delivery: Delivery) -> None:
        """Append a delivery."""
        if len(self._waiting) >= self._prefetch:  # some are of a channel that has closed, and come again
            self._waiting = deque(waiting for waiting in self._waiting if waiting.is_ours)
        self._waiting.append(delivery)
        self._filled.set()

    async def get(self) -> Delivery:
        """Return the oldest delivery, as soon as there is one."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        return self._waiting.popleft()

    def done(self, delivery: Delivery) -> None:
        """Do nothing: no delivery depends on another."""

    def longest_wait_seconds(self) -> float:
        """Return for how long the oldest delivery that waits has done so; 0 where none does."""
        return self._waiting[0].age_seconds() if self._waiting else 0.0


class Workers:
    """Processes several deliveries at the same time, each in a task and a context of its own.

    The tasks belong to us and not to aiormq: a connection that drops cancels none of them, and half-done work is
    finished. A task starts at once instead of in the loop's next turn, so a handler that never waits costs no turn.

    Args:
        backlog: the source of deliveries.
        process: sees one delivery through to its end.
        concurrency: the number of deliveries that are processed at the same time.
        name: the name of the tasks.
    """

    def __init__(
        self,
        backlog: Backlog,
        process: Callable[[Delivery], Coroutine[Any, Any, None]],
        *,
        concurrency: int,
        name: str,
    ) -> None:
        self._backlog = backlog
        self._process = process
        self._concurrency = concurrency
        self._name = name
        self._running = 0
        self._tasks = TaskSet()
        self._place_free = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Workers({self._name!r}, {len(self)} of {self._concurrency} running)"

    def __len__(self) -> int:
        return self._running

    @property
    def is_running(self) -> bool:
        """Whether deliveries are taken from the backlog."""
        return self._dispatcher is not None and not self._dispatcher.done()

    def start(self) -> None:
        """Process the deliveries that are in the backlog and those that come."""
        self._dispatcher = asyncio.create_task(self._dispatch(), name=f"{self._name} dispatcher")

    async def stop(self) -> None:
        """Take no more deliveries; those that are being processed go on."""
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None:
            dispatcher.cancel()
            await asyncio.wait({dispatcher})

    async def wait(self, *, seconds: float) -> bool:
        """Wait for the deliveries that are being processed, and return whether all of them ended in time."""
        return await self._tasks.wait(seconds=seconds)

    async def cancel(self, *, seconds: float) -> bool:
        """Cancel the tasks that run now, wait for their end, and return whether all of them ended in time."""
        return await self._tasks.cancel(seconds=seconds)

    async def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        pause_at = loop.time() + SLICE_SECONDS
        while True:
            while self._running >= self._concurrency:
                self._place_free.clear()
                await self._place_free.wait()
            self._start(await self._backlog.get(), loop)
            # Tasks start at once, so handlers that never wait would otherwise keep the socket from being read.
            if loop.time() >= pause_at:
                await asyncio.sleep(0)
                pause_at = loop.time() + SLICE_SECONDS

    def _start(self, delivery: Delivery, loop: asyncio.AbstractEventLoop) -> None:
        # Its context is a copy of the dispatcher's, as it was at the start: no message sees the variables of another.
        task = asyncio.Task(self._run(delivery), loop=loop, name=self._name, eager_start=True)
        if not task.done():
            self._tasks.hold(task)
        elif not task.cancelled():
            task.exception()  # logged by `_run`; asyncio warns of one that nobody has asked for

    async def _run(self, delivery: Delivery) -> None:
        self._running += 1
        task = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            await self._process(delivery)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            _log.error("a worker failed", name=self._name, exc_info=error)
            self._tasks.keep(task)  # asks for the error
            raise
        finally:
            # However it ended: a place that is not freed, or a key that is not released, would stop the others.
            self._tasks.release(task)
            self._running -= 1
            self._place_free.set()
            self._backlog.done(delivery)
