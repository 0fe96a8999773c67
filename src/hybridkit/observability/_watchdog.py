"""Notice when the event loop stops turning, and say what blocks it.

A timer of the loop beats four times within the limit, and a thread compares. A call into C that keeps the interpreter's
lock (a regular expression that explodes, say) stops that thread too: `faulthandler`, whose timer is no Python, prints
the stack to standard error then. https://docs.python.org/3/library/faulthandler.html#faulthandler.dump_traceback_later
"""

import asyncio
import faulthandler
import linecache
import sys
import sysconfig
import threading
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Final, Self

from hybridkit.observability._logging import get_logger
from hybridkit.observability._metrics import metrics, take_samples

STALL_SECONDS: Final = 1.0
DEAD_SECONDS: Final = 30.0
BEATS: Final = 4
"""Beats of the loop within `stall_seconds`."""

_MAX_FRAMES: Final = 40
_JOIN_SECONDS: Final = 1.0
_STANDARD_ERROR: Final = 2
_LIBRARIES: Final = tuple(
    {
        str(Path(place))
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        if (place := sysconfig.get_path(name))
    }
    | {str(Path(__file__).parents[1])}
)

_log = get_logger("hybridkit.watchdog")


class Watchdog:
    """Watches the event loop that enters it, until it is left.

    After `stall_seconds` without a turn it logs a warning with the line and the stack of what blocks the loop, once per
    stall, and after `dead_seconds` an error. `hybridkit_event_loop_lag_seconds` and `hybridkit_event_loop_stalls_total`
    count. It costs less than a thousandth of a CPU.

    Args:
        stall_seconds: how long the loop may not turn before that is logged.
        dead_seconds: how long the loop may not turn before the process counts as dead.
        watches_c_calls: whether to arm `faulthandler` as well, of whose timer a process has one: for whoever owns the
            process.

    Raises:
        ValueError: `stall_seconds` is not positive.
    """

    def __init__(
        self,
        *,
        stall_seconds: float = STALL_SECONDS,
        dead_seconds: float = DEAD_SECONDS,
        watches_c_calls: bool = False,
    ) -> None:
        if stall_seconds <= 0:
            raise ValueError(f"stall_seconds must be positive, not {stall_seconds}")
        self._stall_seconds = stall_seconds
        self._dead_seconds = dead_seconds
        self._watches_c_calls = watches_c_calls
        self._interval = stall_seconds / BEATS
        self._beaten = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched = 0

    def __repr__(self) -> str:
        return f"Watchdog(stall_seconds={self._stall_seconds}, dead_seconds={self._dead_seconds})"

    @property
    def seconds_since_turn(self) -> float:
        """The age of the loop's last beat, in seconds."""
        return time.monotonic() - self._beaten

    def is_alive(self) -> bool:
        """Return whether the loop has turned within `dead_seconds`."""
        return self.seconds_since_turn < self._dead_seconds

    async def __aenter__(self) -> Self:
        """Begin to watch the running loop."""
        self._watched = threading.get_ident()
        self._left.clear()
        self._beaten = time.monotonic()
        self._expect_turn()
        self._thread = threading.Thread(target=self._watch, name="hybridkit watchdog", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._left.set()
        if self._watches_c_calls:
            faulthandler.cancel_dump_traceback_later()
        if self._thread is not None:
            # In a thread, as the watching one may be writing a log line.
            await asyncio.to_thread(self._thread.join, _JOIN_SECONDS)

    # ── in the loop ──────────────────────────────────────────────────────────────────────────────

    def _expect_turn(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(loop.time() + self._interval, self._beat)
        if self._watches_c_calls:
            # Two beats later than the thread, which disarms it: whoever comes first tells, and the other is silent.
            seconds = self._stall_seconds + 2 * self._interval
            faulthandler.dump_traceback_later(seconds, file=_STANDARD_ERROR)

    def _beat(self) -> None:
        since = self.seconds_since_turn
        self._beaten = time.monotonic()
        take_samples()
        metrics.event_loop_lag.observe(max(since - self._interval, 0.0))
        if since >= self._stall_seconds:
            metrics.event_loop_stalls.inc()
            _log.info("the event loop turns again", blocked_seconds=round(since, 3))
        self._expect_turn()

    # ── in the thread ────────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        told_of_stall = told_of_death = woken = time.monotonic()
        while not self._left.wait(self._interval):
            slept, woken = time.monotonic() - woken, time.monotonic()
            beaten = self._beaten
            since = woken - beaten
            if since >= self._stall_seconds and told_of_stall != beaten:
                told_of_stall = beaten
                self._tell_stall(since, is_alone=slept < 3 * self._interval)
            if since >= self._dead_seconds and told_of_death != beaten:
                told_of_death = beaten
                _log.error("the event loop does not turn any more", blocked_seconds=round(since, 3))

    def _tell_stall(self, since: float, *, is_alone: bool) -> None:
        if self._watches_c_calls:
            faulthandler.cancel_dump_traceback_later()
        frame = sys._current_frames().get(self._watched)  # noqa: SLF001 # documented, for this use
        if frame is None:
            return
        told = {"blocked_seconds": round(since, 3), "line": _application_line(frame)}
        if not is_alone:
            # Whatever ran then held the interpreter's lock, or the process was frozen; this frame came after it.
            told["after"] = "a time in which no thread ran; standard error may have its stack"
        stack = "".join(traceback.format_stack(frame, limit=_MAX_FRAMES))
        _log.warning("the event loop is blocked", **told, stack=stack)


def _application_line(frame: FrameType) -> str:
    """Return the innermost line of the application, as opposed to libraries; without one, the innermost of all."""
    looked: FrameType | None = frame
    while looked is not None and _is_of_library(looked.f_code.co_filename):
        looked = looked.f_back
    found = looked or frame
    name, number = found.f_code.co_filename, found.f_lineno
    return f"{name}:{number} in {found.f_code.co_qualname}: {linecache.getline(name, number).strip()}"


def _is_of_library(file_name: str) -> bool:
    return file_name.startswith(("<frozen", *_LIBRARIES)) or "site-packages" in file_name
