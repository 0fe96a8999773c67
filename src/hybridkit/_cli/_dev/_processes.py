"""A process under development: it runs until it is stopped, and is started again whenever it ends."""

import asyncio
import math
import signal
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from hybridkit.dev import Service, Supervisor
from hybridkit.errors import ServerStartError

STOP_SECONDS: Final = 60.0
STABLE_SECONDS: Final = 60.0
"""After so long a process that ends is started again at once, and not after the longer pauses of one that can't run."""
FIRST_PAUSE_SECONDS: Final = 1.0
MAX_PAUSE_SECONDS: Final = 30.0
"""The pauses of one that ends again and again double from the first to this one."""


class State(StrEnum):
    """The state of a process."""

    STARTING = "starting"
    READY = "ready"
    ENDED = "ended"
    STOPPING = "stopping"
    STOPPED = "stopped"


class DevProcess:
    """Keeps one process running.

    Args:
        service: the process.
        supervisor: starts and stops it.
        tell: is given the name and a line about what happens to it.

    Attributes:
        state: the present state.
        restarts: the number of times that it has ended by itself.
    """

    def __init__(self, service: Service, supervisor: Supervisor, tell: Callable[[str, str], None]) -> None:
        self.service = service
        self.state = State.STOPPED
        self.restarts = 0
        self._supervisor = supervisor
        self._tell = tell
        self._keeper: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"DevProcess({self.name!r}, {self.state})"

    @property
    def name(self) -> str:
        """The name of the service."""
        return self.service.name

    async def start(self) -> None:
        """Start the process, and again whenever it ends; do nothing while it runs."""
        async with self._turn:
            self._start()

    async def stop(self) -> None:
        """Stop the process in order."""
        async with self._turn:
            await self._stop()

    async def restart(self) -> None:
        """Stop the process in order, and start it again; do nothing where it was stopped."""
        async with self._turn:
            if self._keeper is not None:
                await self._stop()
                self._start()

    def kill(self) -> None:
        """Send SIGKILL to the process, which is started again as after any other end unless it is being stopped."""
        if self._has_begun:
            self._supervisor.send_signal(self.name, signal.SIGKILL)

    async def until(self, *states: State) -> None:
        """Wait until the process is in one of these states."""
        while self.state not in states:
            self._changed.clear()
            await self._changed.wait()

    def _start(self) -> None:
        if self._keeper is None:
            self._is(State.STARTING)
            self._keeper = asyncio.create_task(self._keep(), name=f"hybridkit dev {self.name}")

    async def _stop(self) -> None:
        if self._keeper is None:
            return
        self._is(State.STOPPING)
        self._keeper.cancel()
        await asyncio.wait([self._keeper])
        self._keeper = None
        if self._has_begun:
            await self._supervisor.stop(self.name, timeout_seconds=STOP_SECONDS)
        self._is(State.STOPPED)

    async def _keep(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            self._is(State.STARTING)
            began = time.monotonic()
            await self._run()
            code = await self._supervisor.wait(self.name)
            seconds = time.monotonic() - began
            if seconds > STABLE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            self.restarts += 1
            self._is(State.ENDED)
            last = self._supervisor.log_tail(self.name, lines=1).strip()
            self._tell(
                self.name,
                f"ended with exit code {code} after {seconds:.1f} s; again in {pause:g} s. Its last words: {last}",
            )
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)

    async def _run(self) -> None:
        try:
            await self._supervisor.start(self.service, timeout_seconds=math.inf)
        except ServerStartError:
            return  # it has ended
        self._is(State.READY)
        self._tell(self.name, "is ready")

    @property
    def _has_begun(self) -> bool:
        return self.name in self._supervisor.logs

    def _is(self, state: State) -> None:
        self.state = state
        self._changed.set()
