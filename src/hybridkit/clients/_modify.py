"""Changing a record by its own values: read, change, and write if no other write came in between."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

from pydantic import BaseModel

from hybridkit.errors import StaleVersionError
from hybridkit.resources import Record
from hybridkit.retry import Retry

LOST_RACES: Final = Retry.exponential(first_seconds=0.02, cap_seconds=0.2, attempts=10)
"""A change that loses ten times should be an increment, or take a lock."""

type Change[RecordT, UpdateT] = Callable[[RecordT], UpdateT | Awaitable[UpdateT | None] | None]
"""From a record to what should change in it, None for nothing; called again where another write came first."""


async def modify[RecordT: Record[Any], UpdateT: BaseModel, WrittenT](
    record: RecordT | None,
    change: Change[RecordT, UpdateT],
    *,
    read: Callable[[], Awaitable[RecordT]],
    write: Callable[[RecordT, UpdateT], Awaitable[WrittenT]],
) -> RecordT | WrittenT:
    """Return the answer to the write, or the record as it was read where nothing was to be changed.

    Args:
        record: the record for the first try; None to read it first.
        change: the caller's function.
        read: reads the record as it is now.
        write: writes the changes if the record is still in the state of that one.

    Raises:
        StaleVersionError: other writes came first each time.
    """
    pauses = LOST_RACES.pauses()
    while True:
        if record is None:
            record = await read()
        changes = change(record)
        if inspect.isawaitable(changes):
            changes = await changes
        if changes is None:
            return record
        try:
            return await write(record, changes)
        except StaleVersionError as stale:
            pause_seconds = next(pauses, None)
            if pause_seconds is None:
                stale.add_note(f"given up after {LOST_RACES.attempts} tries")
                raise
        record = None
        await asyncio.sleep(pause_seconds)
