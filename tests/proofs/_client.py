"""The messages of the ledger's processes, and the samples of their resources."""

import asyncio
import contextlib
import gc
import json
import logging
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import structlog

from hybridkit.events import Command, Event

Fate = Literal["plain", "flaky", "poison"]
SAMPLE_SECONDS = 10.0


class OrderPlaced(Event, type="ledger.order_placed"):
    """An event for two consumers; its fate tells the handlers what to do."""

    number: int
    fate: Fate
    note: str = "a line of text " * 10


class ShipOrder(Command, queue="ledger_tasks", type="ledger.ship_order"):
    """A command for one queue, which must not run before its delay is over."""

    number: int
    fate: Fate
    delay_seconds: float


class Sampler:
    """Records the resources of this process every 10 s, and once more at the end.

    Args:
        path: the file, with one JSON object per line.
        more: further figures to record.
    """

    def __init__(self, path: Path, *, more: Callable[[], dict[str, Any]]) -> None:
        self._path = path
        self._more = more

    def take(self, moment: str) -> None:
        """Record a sample. Futures are counted when the process is idle only, as that walks through the heap."""
        gc.collect()
        note = {
            "at": time.monotonic(),
            "moment": moment,
            "tasks": len(asyncio.all_tasks()),
            "mib": resident_mib(),
        }
        if moment != "running":
            note["futures"] = sum(issubclass(type(each), asyncio.Future) for each in gc.get_objects())
        with self._path.open("a") as file:
            file.write(json.dumps({**note, **self._more()}) + "\n")

    async def run_until(self, stopped: asyncio.Event) -> None:
        """Record samples until an event is set."""
        while not stopped.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), SAMPLE_SECONDS)
            self.take("running")


def resident_mib() -> float:
    """Return the resident memory of this process in MiB."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def stopped_by_signal() -> asyncio.Event:
    """Return an event that SIGTERM sets."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    return stopped


def log_warnings(path: Path) -> None:
    """Write this process's warnings to a file."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=path.open("a", buffering=1)),
    )


def say(word: str) -> None:
    """Print a line for the process that conducts the proof."""
    sys.stdout.write(word + "\n")
    sys.stdout.flush()
