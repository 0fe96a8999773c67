"""One server for several processes: started by the first that asks, ended with the last.

The server is owned by a process of its own (`python -m hybridkit.dev._servers._shared_owner KIND FOLDER`). Each user of
the server holds a shared lock on a file. The owner waits for the exclusive lock, which the kernel grants when the last
user has released its lock or has died.

```
STATE/shared/KEY/
├── KIND.start     locked while a process checks whether the server runs, and starts it
├── KIND.users     locked by every user
├── KIND.owner     locked by the owner as long as it lives
└── KIND.json      the owner's report: the URL of the server, or why there is none
```
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from hybridkit.dev._processes._process import ProcessId, find_process, wait_until
from hybridkit.dev._processes._runs import file_lock
from hybridkit.dev._servers._server import Kind, Server
from hybridkit.dev._servers._server_root import state_directory
from hybridkit.errors import ServerMissingError, ServerStartError

_READY_WITHIN_SECONDS = 120.0
_GONE_WITHIN_SECONDS = 30.0
_KEY_FORGOTTEN_AFTER_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerReport:
    """The report of an owner process: its identity, and its server or why there is none."""

    pid: int
    started: str
    url: str = ""
    source: str = ""
    is_real: bool = True
    management_url: str | None = None
    error: str = ""
    missing: tuple[str, ...] | None = None

    @property
    def owner(self) -> ProcessId:
        """The process that owns the server."""
        return ProcessId(self.pid, self.started)


class SharedServers:
    """The servers of one test run, shared by all its processes.

    Args:
        key: the identity of the run; letters, digits and `-`.
        environment: where URLs and the server root are looked up; `os.environ` by default.
    """

    def __init__(self, key: str, *, environment: Mapping[str, str] | None = None) -> None:
        self._environment = dict(os.environ if environment is None else environment)
        self._folder = state_directory(self._environment) / "shared" / key
        self._user_locks: dict[Kind, IO[bytes]] = {}
        self._servers: dict[Kind, Server] = {}
        self._missing: dict[Kind, ServerMissingError] = {}

    def __repr__(self) -> str:
        return f"SharedServers({self._folder.name!r}, {sorted(self._servers)})"

    def get(self, kind: Kind) -> Server:
        """Return the run's server of a kind, and start it when this is the first process to ask.

        Its methods raise, as no user may stop a server that others use.

        Raises:
            ServerMissingError: no origin is available; the message says what is missing.
            ServerStartError: the server did not come up.
        """
        if kind in self._missing:
            raise self._missing[kind]
        if kind not in self._servers:
            self._servers[kind] = self._join(kind)
        return self._servers[kind]

    def release(self) -> None:
        """Release all servers; those without another user end."""
        for users in self._user_locks.values():
            users.close()
        self._user_locks.clear()
        self._servers.clear()

    def close(self) -> None:
        """Wait until all servers of the key have ended, and remove its folder; call it once, after `release`."""
        reports = [read_report(path) for path in self._folder.glob("*.json")]
        owners = [report.owner for report in reports if report]
        wait_until(
            lambda: not any(owner.is_alive() for owner in owners), timeout_seconds=_GONE_WITHIN_SECONDS
        )
        shutil.rmtree(self._folder, ignore_errors=True)

    def _join(self, kind: Kind) -> Server:
        _forget_old_keys(self._folder.parent)
        self._folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self._folder / f"{kind}.start"):
            users = self._user_locks[kind] = (self._folder / f"{kind}.users").open("ab")
            # Waits for an owner that is just ending; with the lock held, the owner stays.
            fcntl.flock(users, fcntl.LOCK_SH)
            report = read_report(self._folder / f"{kind}.json")
            # Checked by its lock: a killed owner has its pid for a moment longer than its server.
            if report is None or not is_locked(self._folder / f"{kind}.owner"):
                report = self._start_owner(kind)
        if report.error:
            self._user_locks.pop(kind).close()
        if report.missing is not None:
            # Remembered, as each look costs a second.
            self._missing[kind] = ServerMissingError(report.error, missing=report.missing)
            raise self._missing[kind]
        if report.error:
            raise ServerStartError(report.error)
        return Server(
            kind,
            report.url,
            source=report.source,
            is_real=report.is_real,
            management_url=report.management_url,
        )

    def _start_owner(self, kind: Kind) -> OwnerReport:
        path = self._folder / f"{kind}.json"
        log = self._folder / f"{kind}.log"
        path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "hybridkit.dev._servers._shared_owner", kind, str(self._folder)]
        # In a session of its own: Ctrl-C is for the tests, and the owner ends after them.
        spawned = subprocess.run(  # noqa: S603 # nosec B603
            ["/bin/sh", "-c", '"$@" >>"$0" 2>&1 </dev/null & echo $!', str(log), *command],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            start_new_session=True,
            env=self._environment,
        )
        owner = find_process(int(spawned.stdout))
        wait_until(
            lambda: path.exists() or owner is None or not owner.is_alive(),
            timeout_seconds=_READY_WITHIN_SECONDS,
        )
        if report := read_report(path):
            return report
        said = log.read_text(errors="replace")
        raise ServerStartError(f"the process that owns the shared {kind} server has ended:\n{said}")


def is_locked(path: Path) -> bool:
    """Return whether a process holds the exclusive lock of a file."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_report(path: Path) -> OwnerReport | None:
    """Return the report of an owner, or None when it has not written one yet."""
    try:
        said: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if said["missing"] is not None:
        said["missing"] = tuple(said["missing"])
    return OwnerReport(**said)


def write_report(path: Path, report: OwnerReport) -> None:
    """Write a report at once, so that no reader finds a part of it."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(report)))
    draft.rename(path)


def _forget_old_keys(shared: Path) -> None:
    # The folders of runs that were killed; their servers have ended.
    for folder in shared.glob("*"):
        reports = [read_report(path) for path in folder.glob("*.json")]
        in_use = any(report and report.owner.is_alive() for report in reports)
        if not in_use and time.time() - folder.stat().st_mtime > _KEY_FORGOTTEN_AFTER_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
