"""Measure coverage for less processor time.

Where code may switch greenlets, coverage looks its stack up at every call and every return, which is a third of the
time of all measured tests. Only SQLAlchemy switches greenlets, so the tests without it are measured by a second
`Coverage` that follows threads only. Its data file is combined with the others.

Python follows the lines of every module while it measures, which more than doubles the time of an import. So nothing
is measured while tests are collected, nor in a process that a test starts, except where its test uses
`measured_processes`: the one that imports every module is one of them.
"""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from coverage import Coverage
from sqlalchemy import Engine, event

IN_PROCESSES = "COVERAGE_PROCESS_CONFIG"  # coverage's own: makes each Python that is started measure itself
IN_WORKERS = "HYBRIDKIT_MEASURED"  # the same value, for the workers of xdist, which measure the tests only
WITH_SQLALCHEMY = {"test_cli_outbox", "test_relay_rabbitmq"}  # and each module with `postgres` in its name


class Measuring:
    """The two ways to measure; one of them is at work from the first test on."""

    def __init__(self, in_processes: str) -> None:
        self._in_processes = in_processes
        self._full = _another(concurrency=["thread", "greenlet"])
        self._light = _another(concurrency=["thread"])
        self._active: Coverage | None = None
        event.listen(Engine, "do_connect", self._refuse_greenlets)

    def prepare(self, module: Path) -> None:
        """Measure in the way that the tests of this module need."""
        with_sqlalchemy = "postgres" in module.stem or module.stem in WITH_SQLALCHEMY
        wanted = self._full if with_sqlalchemy else self._light
        if wanted is not self._active:
            if self._active is not None:
                self._active.stop()
            wanted.start()
            self._active = wanted

    @contextmanager
    def processes(self) -> Generator[None]:
        """Measure each Python that is started."""
        os.environ[IN_PROCESSES] = self._in_processes
        try:
            yield
        finally:
            del os.environ[IN_PROCESSES]

    def stop(self) -> None:
        """Save what was measured."""
        if self._active is not None:
            self._active.stop()
        for each in (self._full, self._light):
            each.save()

    def _refuse_greenlets(self, dialect: Any, *_: object) -> None:
        if dialect.is_async and self._active is self._light:
            raise AssertionError(
                "SQLAlchemy in a test that is measured without it: see tests/helpers/_measuring.py"
            )


def take_over(*, has_workers: bool) -> Measuring | None:
    """Take over from the measuring that pytest was started with, if there is any.

    A pytest with workers runs no test itself and leaves the measuring to them.
    """
    in_processes = os.environ.pop(IN_PROCESSES, None) or os.environ.pop(IN_WORKERS, None)
    if running := Coverage.current():
        running.stop()
        running.save()
    if in_processes is None:
        return None
    if has_workers:
        os.environ[IN_WORKERS] = in_processes
        return None
    return Measuring(in_processes)


def _another(concurrency: list[str]) -> Coverage:
    made = Coverage(concurrency=concurrency, data_suffix=True)
    made.set_option("run:patch", [])  # which processes measure themselves is up to their tests
    # Modules were imported before this one looked: the test that imports every module sees it.
    made.set_option("run:disable_warnings", ["module-not-measured", "no-data-collected"])
    return made


@contextmanager
def unmeasured() -> Generator[None]:
    """Measure nothing in this thread."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
