"""Delete what is past its retention, a little at a time, as long as the service runs."""

import asyncio
import random
from typing import Final, Self

from hybridkit._tasks import TaskSet
from hybridkit.dataservice._store._protocol import Store
from hybridkit.errors import HybridkitError
from hybridkit.observability import get_logger

PAUSE_SECONDS: Final = 60.0

_log = get_logger("hybridkit.dataservice")


class Housekeeping:
    """A task that cleans a store inside its `async with` block; replicas do it side by side without conflicts.

    Args:
        store: the store to clean.
        pause_seconds: the pause once nothing is left to delete, give or take a half of it.
    """

    def __init__(self, store: Store, *, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._store = store
        self._pause_seconds = pause_seconds
        self._running = TaskSet()

    def __repr__(self) -> str:
        return f"Housekeeping({self._store!r})"

    async def __aenter__(self) -> Self:
        self._running.start(self._run(), name="hybridkit housekeeping")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._running.cancel()

    async def _run(self) -> None:
        while True:
            deleted = 0
            try:
                deleted = await self._store.clean()
            except HybridkitError as error:
                _log.warning("housekeeping waits for the database", reason=str(error))
            except Exception:  # noqa: BLE001 - a defect in one round must not end all later ones
                _log.exception("housekeeping failed and goes on")
            if not deleted:
                pause = random.uniform(0.5, 1.5) * self._pause_seconds  # noqa: S311 - spreads load # nosec B311
                await asyncio.sleep(pause)
