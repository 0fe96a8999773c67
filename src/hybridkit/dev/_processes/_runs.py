"""The processes of one owner, recorded on disk so that the next owner can clean up after a `kill -9`.

```
STATE/runs/20261121-104500-4711-ab12cd/
├── owner.json       pid, start time and boot of the process that owns this run
├── processes/NAME   the record of each child: its line of /proc/PID/stat
└── NAME/            data, configuration and log of one server
```
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from hybridkit.dev._processes._process import (
    Owner,
    Process,
    ProcessId,
    kill_all,
    own_process,
    recorded_processes,
)
from hybridkit.errors import ServerStartError

_ABANDONED_AFTER_SECONDS = 3600


class Run:
    """A folder on disk with the processes started for it; closing it removes both."""

    def __init__(self, state: Path) -> None:
        runs = state / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        clean_up(state)
        self._processes: list[Process] = []
        self._actions: list[Callable[[], object]] = []
        self._closed = threading.Event()
        self.directory = runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{secrets.token_hex(3)}"
        # Renamed when it is complete, so that every run has an owner.
        fresh = runs / f".{self.directory.name}"
        (fresh / "processes").mkdir(parents=True)
        (fresh / "owner.json").write_text(json.dumps(_describe_owner()))
        fresh.rename(self.directory)

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r}, processes={len(self._processes)})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def folder(self, name: str, *, owner: Owner) -> Path:
        """Create an empty folder for one server, readable by the server's user only."""
        path = self.directory / name
        number = 1
        while path.exists():
            number += 1
            path = self.directory / f"{name}-{number}"
        path.mkdir(mode=0o700)
        owner.give(path)
        return path

    def spawn(
        self,
        argv: Sequence[str],
        *,
        name: str,
        folder: Path,
        env: Mapping[str, str],
        stop_signal: int = signal.SIGTERM,
        end_signal: int = signal.SIGKILL,
    ) -> Process:
        """Start a child that belongs to this run, with the log `FOLDER/NAME.log`.

        Raises:
            ServerStartError: the run has been closed.
        """
        if self._closed.is_set():
            raise ServerStartError(f"{name} is not started: the run has been closed")
        record = self.directory / "processes" / f"{folder.name}.{name}"
        log = folder / f"{name}.log"
        process = Process.start(
            argv, log=log, record=record, env=env, stop_signal=stop_signal, end_signal=end_signal
        )
        self._processes.append(process)
        if self._closed.is_set():
            process.end()
        return process

    def check_call(self, argv: Sequence[str], *, name: str, folder: Path, env: Mapping[str, str]) -> None:
        """Start a child of this run, and wait until it has ended.

        Raises:
            ServerStartError: the exit code is not 0; the message has the end of the output.
        """
        # SIGINT instead of SIGKILL: initdb has to release its shared memory.
        process = self.spawn(argv, name=name, folder=folder, env=env, end_signal=signal.SIGINT)
        if code := process.wait():
            raise ServerStartError(f"{name} ended with {code}:\n{process.log_tail()}")

    def on_close(self, action: Callable[[], object]) -> None:
        """Call an action when the run is closed, between the end of its processes and the removal of its folder."""
        self._actions.append(action)

    def close(self) -> None:
        """End the processes that still run, the last one started first, and remove the folder."""
        self._closed.set()
        for process in reversed(self._processes[:]):
            process.end()
        while self._actions:
            self._actions.pop()()
        _release_shared_memory(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)


def clean_up(state: Path) -> list[Path]:
    """Kill the processes of runs whose owner has died, remove their folders, and return these."""
    removed: list[Path] = []
    runs = state / "runs"
    if not runs.is_dir():
        return removed
    with file_lock(runs / ".lock"):
        for directory in runs.iterdir():
            if directory.is_dir() and not _has_owner(directory):
                for record in directory.glob("processes/*"):
                    kill_all(recorded_processes(record.read_text(errors="replace")))
                _release_shared_memory(directory)
                shutil.rmtree(directory, ignore_errors=True)
                removed.append(directory)
    return removed


@contextmanager
def file_lock(path: Path) -> Generator[None]:
    """Hold an exclusive lock on a file; the kernel releases it with the process."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _release_shared_memory(directory: Path) -> None:
    # A PostgreSQL that was killed leaves a System V segment behind, with its id in the 7th line of postmaster.pid. One
    # that has ended by itself has removed both.
    for note in directory.glob("*/data/postmaster.pid"):
        with suppress(OSError, IndexError):
            segment = note.read_text().splitlines()[6].split()[1]
            subprocess.run(["ipcrm", "-m", segment], capture_output=True, check=False)  # noqa: S603, S607 # nosec B603 B607


def _describe_owner() -> dict[str, str | int]:
    owner = own_process()
    return {"pid": owner.pid, "started": owner.started, "boot": _boot()}


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _has_owner(directory: Path) -> bool:
    try:
        owner: dict[str, Any] = json.loads((directory / "owner.json").read_text())
    except (OSError, ValueError):
        return time.time() - directory.stat().st_mtime < _ABANDONED_AFTER_SECONDS
    if owner["boot"] == _boot():
        return ProcessId(owner["pid"], owner["started"]).is_alive()
    # Of another boot: nothing of it runs any more, and its pids and segments are somebody else's.
    for note in (*directory.glob("processes/*"), *directory.glob("*/data/postmaster.pid")):
        note.unlink()
    return False
