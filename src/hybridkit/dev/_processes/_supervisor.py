"""The processes of a stack: started until they are ready, stopped in the reverse order."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from hybridkit.dev._processes._logs import readable
from hybridkit.errors import MisuseError, ServerStartError

POLL_SECONDS: Final = 0.05
PROBE_TIMEOUT_SECONDS: Final = 2.0

# Runs in the child before it becomes the service. Its parent may have died before prctl was called.
_DIE_WITH_PARENT: Final = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, int(sys.argv[1]));"
    " os.getppid() == int(sys.argv[2]) or sys.exit(1); os.execvp(sys.argv[3], sys.argv[3:])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One process of a stack.

    Attributes:
        name: unique in its `Supervisor`; its log is `NAME.log`.
        argv: the command with its arguments.
        environment: variables that the process gets in addition to those of its parent; None removes one of these.
        ready_url: an HTTP URL that answers 200 when the service is ready. Without one it is ready as soon as it runs.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str | None] = field(default_factory=dict[str, str | None], repr=False)
    ready_url: str | None = None


class Supervisor:
    """Starts the processes of a stack, watches them, and stops those that still run when the block ends.

    ```text
    async with Supervisor(log_directory) as supervisor:
        await supervisor.start(Service(name="api_service", argv=[...], ready_url="http://127.0.0.1:8000/ready"))
        ...
        exit_codes = await supervisor.stop()
    ```

    The processes do not outlive this one: when it dies, in whatever way, Linux sends them SIGTERM (prctl(2),
    PR_SET_PDEATHSIG). Ctrl-C in the terminal does not reach them.

    Args:
        log_directory: the folder that gets one `NAME.log` per service, with its standard output and error. It is
            created when it does not exist.
    """

    def __init__(self, log_directory: Path) -> None:
        self.log_directory = log_directory
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._stopped: set[str] = set()

    def __repr__(self) -> str:
        running = [name for name, child in self._children.items() if child.returncode is None]
        return f"Supervisor({str(self.log_directory)!r}, running={running})"

    async def __aenter__(self) -> Self:
        self.log_directory.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def logs(self) -> dict[str, Path]:
        """The log file of each service that has been started, by name."""
        return {name: self._log(name) for name in self._children}

    async def start(self, *services: Service, timeout_seconds: float = 30) -> None:
        """Start services at the same time and wait until all of them are ready.

        Args:
            services: what to start.
            timeout_seconds: how long all of them together have to become ready.

        A service that has ended may be started again; its log goes on.

        Raises:
            MisuseError: a service of the same name is running.
            ServerStartError: a service ended or was not ready in time; the message has the end of its log.
        """
        for service in services:
            await self._spawn(service)
        waiting = list(services)
        ends_at = time.monotonic() + timeout_seconds
        while waiting := [service for service in waiting if not await _is_ready(service)]:
            self.check_running(*(service.name for service in services))
            if time.monotonic() > ends_at:
                raise ServerStartError(
                    f"{', '.join(service.name for service in waiting)} not ready after {timeout_seconds:g} s;"
                    f" the log ends with:\n{self.log_tail(waiting[0].name)}"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def stop(self, *names: str, timeout_seconds: float = 15) -> dict[str, int]:
        """Send SIGTERM to one service after the other, the last one started first, and wait until each has ended.

        Args:
            names: the services to stop; all by default.
            timeout_seconds: how long all of them together have to end; those that still run then get SIGKILL.

        Returns:
            The exit code of each service by name; of one that a signal ended, the negative number of the signal.
        """
        chosen = [name for name in self._children if name in names or not names]
        self._stopped.update(chosen)
        try:
            async with asyncio.timeout(timeout_seconds):
                for name in reversed(chosen):
                    self.send_signal(name, signal.SIGTERM)
                    self.thaw(name)  # a frozen one gets no signal before it
                    await self.wait(name)
        except TimeoutError:
            pass  # the exit codes tell
        finally:
            for name in chosen:
                self._signal_group(name, signal.SIGKILL)
        return {name: await self.wait(name) for name in chosen}

    async def kill(self, name: str) -> None:
        """Send SIGKILL to a service and its own processes, and wait until it has ended."""
        self._stopped.add(name)
        self._signal_group(name, signal.SIGKILL)
        await self.wait(name)

    def freeze(self, name: str) -> None:
        """Send SIGSTOP to a service and its own processes: connections stay open, and nothing answers."""
        self._signal_group(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Send SIGCONT to a service and its own processes, which go on where they were frozen."""
        self._signal_group(name, signal.SIGCONT)

    def send_signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a service; do nothing when it has ended."""
        if self._children[name].returncode is None:
            with suppress(ProcessLookupError):
                self._children[name].send_signal(number)

    async def wait(self, name: str) -> int:
        """Wait until a service has ended, and return its exit code."""
        return await self._children[name].wait()

    def check_running(self, *names: str) -> None:
        """Check that no service has ended without having been stopped.

        Args:
            names: the services to check; all by default.

        Raises:
            ServerStartError: a service has ended; the message has its exit code and the end of its log.
        """
        for name in names or self._children:
            child = self._children[name]
            if child.returncode is not None and name not in self._stopped:
                raise ServerStartError(
                    f"{name} ended with exit code {child.returncode}; its log ends with:\n{self.log_tail(name)}"
                )

    def log_tail(self, name: str, *, lines: int = 20) -> str:
        """Return the last lines of a service's log, with JSON formatted for people."""
        log = self._log(name)
        words = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join(map(readable, words[-lines:]))

    def _signal_group(self, name: str, number: signal.Signals) -> None:
        # Each service leads a session, and so a group, of its own; until it is waited for, no other has its number.
        if self._children[name].returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._children[name].pid, number)

    async def _spawn(self, service: Service) -> None:
        if service.name in self._children and self._children[service.name].returncode is None:
            raise MisuseError(f"{service.name} is running already")
        self._stopped.discard(service.name)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **service.environment}
        with self._log(service.name).open("ab") as log:
            self._children[service.name] = await asyncio.create_subprocess_exec(
                *_die_with_parent(service.argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                # A Ctrl-C in the terminal goes to the whole foreground group, but the order of stopping is ours.
                start_new_session=True,
                env={name: value for name, value in environment.items() if value is not None},
            )

    def _log(self, name: str) -> Path:
        return self.log_directory / f"{name}.log"


def _die_with_parent(argv: Sequence[str]) -> list[str]:
    if sys.platform != "linux":
        return list(argv)
    launcher = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT]
    return [*launcher, str(int(signal.SIGTERM)), str(os.getpid()), *argv]


async def _is_ready(service: Service) -> bool:
    if service.ready_url is None:
        return True
    url = urlsplit(service.ready_url)
    request = f"GET {url.path or '/'} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(url.hostname, url.port)
            try:
                writer.write(request.encode())
                status_line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status_line.split(b" ")[1:2] == [b"200"]
