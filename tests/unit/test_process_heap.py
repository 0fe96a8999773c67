"""What a process that has started leaves to the garbage collector."""

import gc
import os
import signal
from typing import Any

import pytest

from hybridkit.adapters._running import YOUNG_OBJECTS, StopSignals, run_process
from hybridkit.lifespan import ServiceResources
from hybridkit.settings import ServiceSettings
from tests.helpers.apis import Settings

pytestmark = pytest.mark.usefixtures("restored_logging")


def test_what_the_start_has_made_is_left_out_of_collections() -> None:
    """It stays as long as the process, so no collection finds anything in it; the thresholds are given back."""
    before = gc.get_threshold()
    seen: list[Any] = []

    async def main(_: ServiceSettings, stop: StopSignals) -> None:
        made_by_the_start: list[list[int]] = [[] for _ in range(1000)]
        seen.append((gc.get_freeze_count(), gc.get_threshold()))
        async with ServiceResources() as resources:
            resources.started()
            stop.started(resources)
            seen.append((gc.get_freeze_count() - len(made_by_the_start), gc.get_threshold()))
            os.kill(os.getpid(), signal.SIGTERM)
            await stop.asked.wait()

    run_process(Settings, main)
    (frozen_at_first, at_first), (frozen, started) = seen
    assert frozen > frozen_at_first
    assert (at_first, started) == (before, (YOUNG_OBJECTS, *before[1:]))
    assert gc.get_threshold() == before


async def test_a_process_of_somebody_else_keeps_its_collector() -> None:
    """Resources that are opened inside of another program, such as a test, change nothing of it."""
    before = gc.get_freeze_count(), gc.get_threshold()
    async with ServiceResources() as resources:
        StopSignals().started(resources)
        assert (gc.get_freeze_count(), gc.get_threshold()) == before
