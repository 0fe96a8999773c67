"""Measure coverage for less processor time.

Where code may switch greenlets, coverage looks its stack up at every call and every return, which is a third of the
time of all measured tests. Only SQLAlchemy switches greenlets, so the tests without it are measured by a second
`Coverage` that follows threads only. Its data file is combined with the others.
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
WITH_SQLALCHEMY = {"test_cli_outbox", "test_relay_rabbitmq"}  # and each module with `postgres` in its name


class Measuring:
    """The two ways to measure; exactly one of them is at work between `start` and `stop`."""

    def __init__(self, running: Coverage) -> None:
        self._full = _another(concurrency=["thread", "greenlet"])
        self._light = _another(concurrency=["thread"])
        self._active = self._running = running

    def start(self) -> None:
        """Take over from the measuring that pytest was started with."""
        event.listen(Engine, "do_connect", self._refuse_greenlets)
        self._switch(self._light)

    def prepare(self, module: Path) -> None:
        """Measure in the way that the tests of this module need."""
        with_sqlalchemy = "postgres" in module.stem or module.stem in WITH_SQLALCHEMY
        self._switch(self._full if with_sqlalchemy else self._light)

    def stop(self) -> None:
        """Save what was measured."""
        self._active.stop()
        for each in (self._running, self._full, self._light):
            each.save()

    def _switch(self, wanted: Coverage) -> None:
        if wanted is not self._active:
            self._active.stop()
            wanted.start()
            self._active = wanted

    def _refuse_greenlets(self, dialect: Any, *_: object) -> None:
        if dialect.is_async and self._active is self._light:
            raise AssertionError(
                "SQLAlchemy in a test that is measured without it: see tests/helpers/_measuring.py"
            )


def _another(concurrency: list[str]) -> Coverage:
    made = Coverage(concurrency=concurrency, data_suffix=True)
    made.set_option("run:patch", [])  # processes that are started measure themselves, whoever starts them
    # Modules were imported before this one looked: the one that pytest was started with saw it.
    made.set_option("run:disable_warnings", ["module-not-measured", "no-data-collected"])
    return made


@contextmanager
def unmeasured() -> Generator[None]:
    """Measure neither this thread nor the processes that it starts."""
    configuration, tracer = os.environ.pop(IN_PROCESSES, None), sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
        if configuration is not None:
            os.environ[IN_PROCESSES] = configuration
