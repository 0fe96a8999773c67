"""Write log lines out of the process: at once and whole, without an error, and without waiting for a slow reader.

```
write ─► the reader keeps up: written by the caller, so that a line is out before the process can die
     └─► it doesn't, or others wait already: kept in a bounded backlog, which a thread writes in order
```
"""

import atexit
import fcntl
import os
import select
import stat
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from hybridkit.observability._metrics import metrics

BACKLOG_BYTES: Final = 8 * 2**20
"""The most that waits for the reader of standard output; lines beyond are dropped and counted."""

EXIT_SECONDS: Final = 2.0
"""How long the end of the process waits for the reader, beyond what `flush` has waited."""

_POLL_MS: Final = 1000
_F_GETPIPE_SZ: Final = 1032
"""Linux's `F_GETPIPE_SZ`; other systems refuse it, and a long line is left to the thread."""


class Output:
    """Standard output without a buffer of Python's: a buffered line dies with the process.

    Args:
        backlog_bytes: the most that waits for the reader.
        on_dropped: called with the number of lines that were dropped, when the reader has caught up again.
    """

    def __init__(
        self, *, backlog_bytes: int = BACKLOG_BYTES, on_dropped: Callable[[int], None] | None = None
    ) -> None:
        self.on_dropped = on_dropped
        self._backlog_bytes = backlog_bytes
        self._is_writing = False
        self._reset()

    def __repr__(self) -> str:
        return f"Output({self._waiting_bytes} bytes wait)"

    def write(self, line: bytes) -> None:
        """Write the line now, or have it written in order; one that cannot be written is counted and dropped."""
        with self._lock:
            # A signal handler or a finalizer may log in the middle of this very function.
            if self._backlog or self._is_writing:
                self._keep(line)
                return
            self._is_writing = True
            try:
                rest = self._write_what_fits(line)
            except Exception:  # noqa: BLE001 # closed, full, or not a stream at all: logging never fails the work
                metrics.log_lines_dropped.inc()
            else:
                if rest:
                    self._backlog.append(rest)
                    self._waiting_bytes += len(rest)
            finally:
                self._is_writing = False
            if self._backlog:
                self._start_thread()

    def flush(self, seconds: float) -> bool:
        """Wait until the backlog is written, for `seconds` at most, and return whether it is."""
        with self._lock:
            return self._emptied.wait_for(lambda: not self._backlog, max(seconds, 0.0))

    def reset_after_fork(self) -> None:
        """Begin anew in a child: the thread, and the lines that it will write, are the parent's."""
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._emptied = threading.Condition(self._lock)
        self._backlog: deque[memoryview | bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._is_writing = False
        self._thread: threading.Thread | None = None
        self._sink: _Sink | None = None

    # ── by the caller ────────────────────────────────────────────────────────────────────────────

    def _write_what_fits(self, line: bytes) -> memoryview | None:
        stream = sys.stdout
        descriptor = _descriptor(stream)
        if descriptor is None:
            _write_text(stream, line)
            return None
        sink = self._sink
        if sink is None or sink.descriptor != descriptor:
            sink = self._sink = _Sink(descriptor)
        written = _write(descriptor, line) if sink.has_room(len(line)) else 0
        return memoryview(line)[written:] if written < len(line) else None

    def _keep(self, line: bytes) -> None:
        if self._waiting_bytes + len(line) > self._backlog_bytes:
            self._dropped += 1
            metrics.log_lines_dropped.inc()
            return
        self._backlog.append(line)
        self._waiting_bytes += len(line)
        self._start_thread()

    # ── in the thread ────────────────────────────────────────────────────────────────────────────

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._write_backlog, name="hybridkit log writer", daemon=True
            )
            self._thread.start()

    def _write_backlog(self) -> None:
        while True:
            with self._lock:
                if not self._backlog:
                    self._thread = None
                    dropped, self._dropped = self._dropped, 0
                    self._emptied.notify_all()
                    break
                first = self._backlog[0]
            _write_whole(first)
            with self._lock:
                # Taken out only now: while it is in the backlog, nobody writes past it.
                self._backlog.popleft()
                self._waiting_bytes -= len(first)
        if dropped and self.on_dropped is not None:
            self.on_dropped(dropped)


class _Sink:
    """A file descriptor, and whether a write to it would block."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        try:
            self._is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        except OSError:
            self._is_pipe = False

    def has_room(self, size: int) -> bool:
        """Return whether a line of this many bytes can be written whole without blocking."""
        if not self._poll.poll(0):
            return False
        # A pipe that is writable takes PIPE_BUF bytes: https://man7.org/linux/man-pages/man7/pipe.7.html
        return size <= select.PIPE_BUF or not self._is_pipe or self._pipe_has_room(size)

    def _pipe_has_room(self, size: int) -> bool:
        # Not in pieces: other workers write to the same pipe, and their lines would come in between. The pages of a
        # pipe may be filled by half only.
        try:
            waiting = int.from_bytes(fcntl.ioctl(self.descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)
            return 2 * waiting + size <= fcntl.fcntl(self.descriptor, _F_GETPIPE_SZ)
        except OSError:
            return False


def _write(descriptor: int, data: memoryview | bytes) -> int:
    """Write and return the number of bytes taken; none where a descriptor that does not block takes none."""
    try:
        return os.write(descriptor, data)
    except BlockingIOError:
        return 0


def _write_whole(data: memoryview | bytes) -> None:
    """Write all of it, however long the reader takes."""
    rest = memoryview(data)
    stream = sys.stdout
    try:
        descriptor = _descriptor(stream)
        if descriptor is None:
            _write_text(stream, bytes(rest))
            return
        while rest:
            written = _write(descriptor, rest)
            rest = rest[written:]
            if not written:
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                poll.poll(_POLL_MS)
    except Exception:  # noqa: BLE001 # the reader has gone meanwhile
        metrics.log_lines_dropped.inc()


def _write_text(stream: Any, line: bytes) -> None:
    stream.write(line.decode())
    stream.flush()


def _descriptor(stream: Any) -> int | None:
    """Return the file descriptor; None for a stream in memory, such as tests put in place."""
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return None


standard_output: Final = Output()
write_line: Final = standard_output.write


def flush_logs(seconds: float) -> bool:
    """Wait until standard output has every line that was logged, and return whether it has.

    Processes of hybridkit do it when they stop, and the end of the interpreter waits for two seconds more.

    Args:
        seconds: the longest to wait.
    """
    return standard_output.flush(seconds)


atexit.register(flush_logs, EXIT_SECONDS)
os.register_at_fork(after_in_child=standard_output.reset_after_fork)
