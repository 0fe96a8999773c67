"""Child processes that can be killed, frozen, and found again after their owner has died.

A pid can be reused, so a process is identified by its pid and its start time. Each child writes both into a record file
before it becomes the server, so a running server can always be found.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hybridkit.errors import ServerStartError

LINUX = sys.platform == "linux"

# Runs in the child, before it becomes the server: note who it is, then become it.
_NOTE_AND_EXEC = (
    'read -r stat </proc/$$/stat && printf "%s\\n" "$stat" >"$0" && exec "$@"'
    if LINUX
    else 'LC_ALL=C ps -o pid=,ppid=,lstart= -p $$ >"$0" && exec "$@"'
)
_PS_LINE = re.compile(r"^\s*(\d+)\s+(\d+)\s+(\S.*\S)\s*$")


@dataclass(frozen=True, slots=True)
class Owner:
    """The user and group that a server runs as; None for those of this process."""

    uid: int | None = None
    gid: int | None = None

    def give(self, path: Path) -> None:
        """Make this user the owner of a file or folder."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """The identity of one process, which no later process with the same pid has."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        """Return whether this process still runs; one that waits to be reaped does not."""
        known = find_process(self.pid)
        return known is not None and known.started == self.started

    def send(self, signal_number: int) -> None:
        """Send a signal to this process; do nothing when it has ended."""
        if self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)


def find_process(pid: int) -> ProcessId | None:
    """Return the identity of the running process with that pid, or None."""
    if not LINUX:
        found = [process for process, _ in _ask_ps("-p", str(pid))]
        return found[0] if found else None
    parsed = _read_stat(pid)
    return parsed[0] if parsed else None


def own_process() -> ProcessId:
    """Return the identity of this process."""
    found = find_process(os.getpid())
    if found is None:
        raise ServerStartError("this process cannot read its own start time from /proc or ps")
    return found


def recorded_processes(text: str) -> list[ProcessId]:
    """Parse a record file, which has one process per line."""
    parse = _parse_stat if LINUX else _parse_ps
    return [parsed[0] for line in text.splitlines() if (parsed := parse(line))]


def descendants(roots: Sequence[ProcessId]) -> list[ProcessId]:
    """Return those of the roots that still run, with all their descendants, parents before children."""
    children: dict[int, list[ProcessId]] = {}
    running: set[ProcessId] = set()
    for process, parent in _all_processes():
        running.add(process)
        children.setdefault(parent, []).append(process)
    tree = [root for root in roots if root in running]
    for process in tree:
        tree.extend(child for child in children.get(process.pid, []) if child not in tree)
    return tree


def kill_all(processes: Sequence[ProcessId], *, timeout_seconds: float = 5) -> None:
    """Send SIGKILL to some processes and all their descendants, and wait until they are gone."""
    # Before the first kill: children of a dead parent become init's, and can't be found any more.
    tree = descendants(processes)
    for process in tree:
        process.send(signal.SIGKILL)
    wait_until(lambda: not any(process.is_alive() for process in tree), timeout_seconds=timeout_seconds)


def wait_until(condition: Callable[[], object], *, timeout_seconds: float) -> bool:
    """Poll until the condition holds, and return False when the time is over first."""
    ends_at = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > ends_at:
            return False
        time.sleep(0.01)
    return True


def _all_processes() -> list[tuple[ProcessId, int]]:
    if not LINUX:
        return _ask_ps("-ax")
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [parsed for pid in pids if (parsed := _read_stat(pid))]


def _read_stat(pid: int) -> tuple[ProcessId, int] | None:
    try:
        return _parse_stat(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def _parse_stat(line: str) -> tuple[ProcessId, int] | None:
    # proc_pid_stat(5): the name, in parentheses, may hold anything; the start time is the 22nd field.
    head, found, tail = line.rpartition(")")
    fields = tail.split()
    if not found or len(fields) < 20 or fields[0] in "ZX":
        return None
    return ProcessId(int(head.split(maxsplit=1)[0]), fields[19]), int(fields[1])


def _ask_ps(*selection: str) -> list[tuple[ProcessId, int]]:
    command = ["ps", "-o", "pid=,ppid=,lstart=", *selection]
    environment = {**os.environ, "LC_ALL": "C"}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 # nosec B603
    return [parsed for line in answer.stdout.splitlines() if (parsed := _parse_ps(line))]


def _parse_ps(line: str) -> tuple[ProcessId, int] | None:
    match = _PS_LINE.match(line)
    return (ProcessId(int(match[1]), match[3]), int(match[2])) if match else None


@cache
def _launcher() -> ThreadPoolExecutor:
    # For the kernel the parent is the thread that forked (prctl(2), PR_SET_PDEATHSIG), so every fork
    # is made by one thread that lives as long as the process. A forked process does not have that thread.
    os.register_at_fork(after_in_child=_launcher.cache_clear)
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="hybridkit-launcher")


class Process:
    """A direct child in a session of its own, with its log and its record file."""

    def __init__(
        self, child: subprocess.Popen[bytes], *, log: Path, record: Path, stop_signal: int, end_signal: int
    ) -> None:
        self._child = child
        self._log = log
        self._record = record
        self._stop_signal = stop_signal
        self._end_signal = end_signal
        self._frozen: list[ProcessId] = []

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        log: Path,
        record: Path,
        env: Mapping[str, str],
        stop_signal: int = signal.SIGTERM,
        end_signal: int = signal.SIGKILL,
    ) -> "Process":
        """Start a command whose output is appended to a log.

        Args:
            argv: the command; its last step must become the server by `exec`, without a fork.
            log: the log file.
            record: the file that the child writes its identity to.
            env: the complete environment of the child.
            stop_signal: the signal for a graceful end.
            end_signal: the signal for an immediate end.
        """

        def fork() -> subprocess.Popen[bytes]:
            with log.open("ab") as output:
                return subprocess.Popen(  # noqa: S603 # nosec B603
                    ["/bin/sh", "-c", _NOTE_AND_EXEC, str(record), *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd="/",
                    env=env,
                )

        child = _launcher().submit(fork).result()
        return cls(child, log=log, record=record, stop_signal=stop_signal, end_signal=end_signal)

    def __repr__(self) -> str:
        return f"Process({self._record.name!r}, pid={self.pid}, running={self.is_running})"

    @property
    def pid(self) -> int:
        """The pid of the child itself, not of its descendants."""
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether the child has not ended; a frozen one has not."""
        return self._child.poll() is None

    def tree(self) -> list[ProcessId]:
        """Return the child and its descendants, parents first; nothing once the child has ended."""
        root = find_process(self.pid) if self.is_running else None
        return descendants([root]) if root else []

    def wait(self) -> int:
        """Wait until the child has ended by itself, and return its exit code."""
        code = self._child.wait()
        self._record.unlink(missing_ok=True)
        return code

    def kill(self) -> None:
        """Send SIGKILL to the child and its descendants."""
        kill_all([*self.tree(), *self._frozen])
        self._child.wait()
        self._frozen = []
        self._record.unlink(missing_ok=True)

    def freeze(self) -> None:
        """Send SIGSTOP to the child and its descendants: connections stay open, and nothing answers."""
        while len(tree := self.tree()) > len(self._frozen):
            # Recorded first: a stopped child of a parent that was killed can be found in no other way.
            stats = (_raw_identity(process) for process in tree)
            self._record.write_text("".join(stats))
            for process in tree:
                process.send(signal.SIGSTOP)
            self._frozen = tree

    def resume(self) -> None:
        """Send SIGCONT to all frozen processes, children first, so that no parent finds a child hanging."""
        for process in reversed(self._frozen):
            process.send(signal.SIGCONT)
        self._frozen = []

    def stop(self) -> None:
        """End the child gracefully, or by SIGKILL after 15 seconds."""
        self._terminate(self._stop_signal, timeout_seconds=15)

    def end(self) -> None:
        """End the child at once, but let it clean up what would outlive it."""
        self._terminate(self._end_signal, timeout_seconds=3)

    def _terminate(self, signal_number: int, *, timeout_seconds: float) -> None:
        tree = self.tree()
        self.resume()
        if tree:
            tree[0].send(signal_number)
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout_seconds)
        # Its children notice its end, and may have to clean up.
        wait_until(lambda: not any(process.is_alive() for process in tree), timeout_seconds=1)
        kill_all(tree)
        self._child.wait()
        self._record.unlink(missing_ok=True)

    def log_tail(self, *, lines: int = 15) -> str:
        """Return the last lines of the log."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def _raw_identity(process: ProcessId) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
    return f"{process.pid} 0 {process.started}\n"
