"""The processes of a stack: started until ready, stopped in good order, their logs read as one story.

```python
async with Supervisor(log_directory) as supervisor:
    await supervisor.start(Service(name="api_service", argv=[...], ready_url="http://127.0.0.1:8000/ready"))
    ...
    exit_codes = await supervisor.stop()        # the last one started is the first to be stopped
```

A child dies with its parent, also when that is killed: the kernel sends it SIGTERM (prctl(2), PR_SET_PDEATHSIG).
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

from hybridkit.codec import decode_object
from hybridkit.errors import MisuseError, PayloadError, ServerStartError

__all__ = ["LogLine", "Service", "Supervisor", "merge_logs"]

POLL_SECONDS: Final = 0.05
PROBE_TIMEOUT_SECONDS: Final = 2.0

# Runs in the child before it becomes the service. Its parent may have died before prctl was called.
_DIE_WITH_PARENT: Final = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, int(sys.argv[1]));"
    " os.getppid() == int(sys.argv[2]) or sys.exit(1); os.execvp(sys.argv[3], sys.argv[3:])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One process of the stack.

    Attributes:
        name: also the name of its log file.
        argv: the command.
        environment: what it gets on top of this process's own environment.
        ready_url: answers 200 once the service can work; without one it is ready as soon as it runs.
    """

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    ready_url: str | None = None


class Supervisor:
    """Owns the processes that it starts; leaving it stops what still runs.

    Args:
        log_directory: gets one `NAME.log` per service, standard output and error together.
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
        """The log file of each service started so far."""
        return {name: self._log(name) for name in self._children}

    async def start(self, *services: Service, timeout_seconds: float = 30) -> None:
        """Start services at the same time and wait until all are ready.

        Raises:
            MisuseError: a service of that name was started already.
            ServerStartError: one ended, or was not ready in time; the end of its log is in the message.
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
                    f" the log ends with:\n{self.last_words(waiting[0].name)}"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def stop(self, *names: str, timeout_seconds: float = 15) -> dict[str, int]:
        """SIGTERM one after the other, in reverse order of their start; SIGKILL for what is left at the end.

        Args:
            names: which services; all by default.
            timeout_seconds: for all of them together.

        Returns:
            Exit codes by name, negative for the signal that ended a process.
        """
        chosen = [name for name in self._children if name in names or not names]
        self._stopped.update(chosen)
        try:
            async with asyncio.timeout(timeout_seconds):
                for name in reversed(chosen):
                    self.send(name, signal.SIGTERM)
                    await self.wait(name)
        except TimeoutError:
            pass  # the exit codes tell
        finally:
            for name in chosen:
                self.send(name, signal.SIGKILL)
        return {name: await self.wait(name) for name in chosen}

    def send(self, name: str, number: signal.Signals) -> None:
        """Signal that service; nothing happens where it has ended."""
        if self._children[name].returncode is None:
            with suppress(ProcessLookupError):
                self._children[name].send_signal(number)

    async def wait(self, name: str) -> int:
        """The exit code of that service, once it has ended."""
        return await self._children[name].wait()

    def check_running(self, *names: str) -> None:
        """Make sure that nothing has ended that was not stopped.

        Args:
            names: which services; all by default.

        Raises:
            ServerStartError: with the name, the exit code and the end of the log.
        """
        for name in names or self._children:
            child = self._children[name]
            if child.returncode is not None and name not in self._stopped:
                raise ServerStartError(
                    f"{name} ended with exit code {child.returncode}; its log ends with:\n{self.last_words(name)}"
                )

    def last_words(self, name: str, *, lines: int = 20) -> str:
        """The end of that service's log, with JSON lines in a form for people."""
        log = self._log(name)
        words = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join(map(_readable, words[-lines:]))

    async def _spawn(self, service: Service) -> None:
        if service.name in self._children:
            raise MisuseError(f"{service.name} was started already")
        with self._log(service.name).open("ab") as log:
            self._children[service.name] = await asyncio.create_subprocess_exec(
                *_die_with_parent(service.argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                # A Ctrl-C in the terminal goes to the whole foreground group, but the order of stopping is ours.
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **service.environment},
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


# ── one story out of many logs ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One structured log line.

    Attributes:
        service: whose log it stands in.
        timestamp: as logged, ISO 8601 in UTC, so that text order is time order.
        message: what happened.
        fields: the whole line.
    """

    service: str
    timestamp: str
    message: str
    fields: Mapping[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.timestamp}  {self.service:<20} {self.message}"


def merge_logs(logs: Mapping[str, Path], *, request_id: str) -> list[LogLine]:
    """Every line with that request id, of all services, in the order in which it happened.

    Args:
        logs: log files of JSON lines by service; other lines are passed over.
        request_id: which request.
    """
    lines = [line for service, path in logs.items() for line in _lines(service, path, request_id)]
    return sorted(lines, key=lambda line: line.timestamp)


def _lines(service: str, path: Path, request_id: str) -> Iterator[LogLine]:
    with path.open(errors="replace") as log:
        for text in log:
            fields = _parsed(text) if request_id in text else None
            if fields is not None and request_id in fields.values():
                yield LogLine(
                    service=service,
                    timestamp=str(fields.get("@timestamp", "")),
                    message=str(fields.get("message", "")),
                    fields=fields,
                )


def _parsed(text: str) -> dict[str, Any] | None:
    """A line of the log; None for what somebody printed."""
    try:
        return decode_object(text.encode())
    except PayloadError:
        return None


def _readable(text: str) -> str:
    fields = _parsed(text)
    if fields is None:
        return text
    time_of_day = str(fields.get("@timestamp", ""))[11:23]
    words = f"{time_of_day}  {fields.get('log.level', ''):<8}  {fields.get('message', '')}"
    told = {name: value for name, value in fields.items() if name not in _BOILERPLATE}
    return f"{words}  {' '.join(f'{name}={value}' for name, value in told.items())}".rstrip()


_BOILERPLATE: Final = frozenset(
    {
        "@timestamp",
        "ecs.version",
        "error.stack_trace",
        "http.request.id",
        "log.level",
        "log.logger",
        "message",
        "service.environment",
        "service.name",
    }
)
