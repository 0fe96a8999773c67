"""Child processes that can be killed, frozen and found again after their owner has died.

A pid alone can be reused, so a process is always the pair of its pid and its start time as the kernel tells it.
Each child writes that pair into a file of its owner's before it becomes the server, so there is no moment in which
a server runs that nobody could find.
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
    """The user a server runs as; None on both where it is the one who asks."""

    uid: int | None = None
    gid: int | None = None

    def give(self, path: Path) -> None:
        """Make that user the owner of a file or folder."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process of this boot, never mistaken for a later one with the same pid."""

    pid: int
    started: str

    def is_alive(self) -> bool:
        """Whether exactly this process still runs (one that waits to be reaped does not)."""
        known = find_process(self.pid)
        return known is not None and known.started == self.started

    def send(self, signal_number: int) -> None:
        """Signal exactly this process; nothing happens when it has gone."""
        if self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal_number)


def find_process(pid: int) -> ProcessId | None:
    """The running process with that pid, if there is one."""
    if not LINUX:
        found = [process for process, _ in _ask_ps("-p", str(pid))]
        return found[0] if found else None
    parsed = _read_stat(pid)
    return parsed[0] if parsed else None


def own_process() -> ProcessId:
    """The process that is asking."""
    found = find_process(os.getpid())
    if found is None:
        raise ServerStartError("this process cannot read its own start time from /proc or ps")
    return found


def recorded_processes(text: str) -> list[ProcessId]:
    """The processes noted in a record file, one per line."""
    parse = _parse_stat if LINUX else _parse_ps
    return [parsed[0] for line in text.splitlines() if (parsed := parse(line))]


def descendants(roots: Sequence[ProcessId]) -> list[ProcessId]:
    """The roots that still run and everything below them, parents before children."""
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
    """SIGKILL these processes and everything below them, and wait until they are gone."""
    # The children are looked up first: those of a dead parent belong to init and are found no more.
    tree = descendants(processes)
    for process in tree:
        process.send(signal.SIGKILL)
    wait_until(lambda: not any(process.is_alive() for process in tree), timeout_seconds=timeout_seconds)


def wait_until(condition: Callable[[], object], *, timeout_seconds: float) -> bool:
    """Ask every few milliseconds until the condition holds or the time is over."""
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
    # The kernel takes "parent died" to mean the thread that forked (prctl(2), PR_SET_PDEATHSIG), so every fork
    # is made by one thread that lives as long as the process. A forked process does not have that thread.
    os.register_at_fork(after_in_child=_launcher.cache_clear)
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="hybridkit-launcher")


class Process:
    """A direct child in a session of its own, with its log and the record that lets others find it."""

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
        """Start `argv` with `exec` all the way down, standard output and error appended to the log.

        Args:
            argv: the command; its last step must become the server without a fork.
            log: the file that its output is appended to.
            record: where the child notes who it is.
            env: its whole environment.
            stop_signal: what makes it end in good order.
            end_signal: what makes it end at once.
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
        """The pid of the child itself; its own children have others."""
        return self._child.pid

    @property
    def is_running(self) -> bool:
        """Whether the child has not ended (a frozen one has not)."""
        return self._child.poll() is None

    def tree(self) -> list[ProcessId]:
        """The child and everything it started, parents first; empty once the child has ended."""
        root = find_process(self.pid) if self.is_running else None
        return descendants([root]) if root else []

    def wait(self) -> int:
        """Wait until the child ends by itself; its exit code."""
        code = self._child.wait()
        self._record.unlink(missing_ok=True)
        return code

    def kill(self) -> None:
        """`kill -9` for the child and all below it, as if the machine had run out of memory."""
        kill_all([*self.tree(), *self._frozen])
        self._child.wait()
        self._frozen = []
        self._record.unlink(missing_ok=True)

    def freeze(self) -> None:
        """SIGSTOP for the child and all below it: connections stay open, nothing answers."""
        while len(tree := self.tree()) > len(self._frozen):
            # Noted first: a stopped child of a parent that was killed can be found in no other way.
            stats = (_raw_identity(process) for process in tree)
            self._record.write_text("".join(stats))
            for process in tree:
                process.send(signal.SIGSTOP)
            self._frozen = tree

    def resume(self) -> None:
        """SIGCONT for all that was frozen, children first, so that no parent sees a child that hangs."""
        for process in reversed(self._frozen):
            process.send(signal.SIGCONT)
        self._frozen = []

    def stop(self) -> None:
        """Let the child finish in good order; kill it when it has not after 15 seconds."""
        self._terminate(self._stop_signal, timeout_seconds=15)

    def end(self) -> None:
        """Make the child end at once, with whatever it needs to leave nothing behind."""
        self._terminate(self._end_signal, timeout_seconds=3)

    def _terminate(self, signal_number: int, *, timeout_seconds: float) -> None:
        tree = self.tree()
        self.resume()
        if tree:
            tree[0].send(signal_number)
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout_seconds)
        # Its children see that it has gone, and may have something to put away.
        wait_until(lambda: not any(process.is_alive() for process in tree), timeout_seconds=1)
        kill_all(tree)
        self._child.wait()
        self._record.unlink(missing_ok=True)

    def log_tail(self, *, lines: int = 15) -> str:
        """The end of the log, to be shown when the child did not come up."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def _raw_identity(process: ProcessId) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process.pid}/stat").read_text(errors="replace")
    return f"{process.pid} 0 {process.started}\n"
