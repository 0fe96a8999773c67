"""Writing to PostgreSQL: operations, their idempotency key and the events they cause, in one transaction."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from typing import Final

from hybridkit.dataservice._in_flight import PATIENCE_SECONDS, InFlight
from hybridkit.dataservice._keys import count, replayed
from hybridkit.dataservice._operations import Outcome, Write
from hybridkit.dataservice._postgres_apply import apply
from hybridkit.dataservice._postgres_database import Database
from hybridkit.dataservice._postgres_keys import claim_key, record_key
from hybridkit.dataservice._postgres_outbox import add_emissions
from hybridkit.dataservice._postgres_table import ResourceTable
from hybridkit.errors import ConflictError, InProgressError, RejectedError

__all__ = ["PostgresWriter"]

POLL_SECONDS: Final = 0.04
"""How long to leave a key at most that another process has, before it is asked for again."""
MAX_RETRIES: Final = 3
RETRY_SECONDS: Final = 0.02


class PostgresWriter:
    """Writes to one PostgreSQL database, once per caller and key.

    Args:
        database: for requests.
        tables: by the resource's name.
        emitted: is called when a committed write has added to the outbox.
    """

    def __init__(
        self, database: Database, tables: Mapping[str, ResourceTable], *, emitted: Callable[[], None]
    ) -> None:
        self._database = database
        self._tables = tables
        self._emitted = emitted
        self._in_flight = InFlight()

    def __repr__(self) -> str:
        return f"PostgresWriter({sorted(self._tables)}, {self._in_flight!r})"

    async def write(self, write: Write) -> Outcome:
        """Do all of it, once per caller and key; again, at most three times, where another transaction won."""

        def replay(fingerprint: bytes, outcome: Outcome) -> Outcome:
            return replayed(write, fingerprint, Outcome(outcome.results, replayed=True))

        try:
            return await self._in_flight.run(write, lambda: self._write(write), replay=replay)
        except InProgressError:
            count("in_progress")
            raise

    async def _write(self, write: Write) -> Outcome:
        give_up = time.monotonic() + PATIENCE_SECONDS
        retries = 0
        # Above `read_committed` the snapshot is older than the lock on the key: what looks like a refusal may be the
        # doing of the key's former holder, which a second look shows.
        looks = 1 if write.isolation == "read_committed" else 2
        while True:
            try:
                return await self._write_once(write)
            except InProgressError:
                if time.monotonic() >= give_up:
                    raise
                pause = POLL_SECONDS
            except ConflictError:
                retries += 1
                if retries > MAX_RETRIES:
                    raise
                pause = RETRY_SECONDS * 2**retries
            except RejectedError:
                looks -= 1
                if looks == 0:
                    raise
                pause = 0.0
            # Without a connection: those who wait must not keep those from working whom they wait for.
            await asyncio.sleep(pause * random.random())  # noqa: S311 - spreads load # nosec B311

    async def _write_once(self, write: Write) -> Outcome:
        async with self._database.session(isolation=write.isolation) as session:
            recorded = await claim_key(session, write)
            if recorded is not None:
                return replayed(write, *recorded)
            results = [
                await apply(session, self._tables[operation.resource.name], operation)
                for operation in write.operations
            ]
            await add_emissions(session, write.emit, service=write.caller)
            await record_key(session, write, results)
        count("acquired")
        if write.emit:
            self._emitted()
        return Outcome(tuple(results))
