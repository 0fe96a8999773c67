"""A replica whose jobs are tested: `python -m tests.proofs._job_replica`.

It reads `REDIS_URL`, `DATA_URL` and `LEDGER`, takes over from the dead after four seconds, and goes by the clock that
the proof sets.
"""

import asyncio
import os
import random
import signal
import sys

from pydantic import BaseModel

from hybridkit.clients import PostgresDataClient
from hybridkit.coordination import connect_redis
from hybridkit.jobs import Jobs, Slot, _execution, _records, _runner
from hybridkit.jobs._records import JobRecord
from hybridkit.resources import Record, Resource
from tests.helpers.job_clock import shift_clock_of_jobs

LEASE_SECONDS = 4.0
LONGEST_SECONDS = 0.2
DRAIN_SECONDS = 0.2
SERVICE = "proof_worker"


class NewEffect(BaseModel):
    """Done by a job for a slot, before or after its work."""

    job: str
    slot: str
    step: str


class Effect(NewEffect, Record):
    """A record of the proof."""


EFFECTS = Resource(
    "effects", record=Effect, create=NewEffect, update=NewEffect, filterable=("job",), sortable=("slot",)
)

jobs = Jobs()


class Ledger:
    """A file into which each replica writes when it begins and ends a run."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, what: str, slot: Slot) -> None:
        """Add a line, whole or not at all."""
        os.write(self._file, f"{os.getpid()} {what} {slot.job} {slot.scheduled_at.isoformat()}\n".encode())


async def work(slot: Slot, ledger: Ledger, postgres: PostgresDataClient) -> None:
    """Write before and after some work, so that a replica may die in between."""
    ledger.note("begun", slot)
    about = {"job": slot.job, "slot": slot.scheduled_at.isoformat()}
    await postgres.create(EFFECTS, NewEffect(**about, step="before"))
    await asyncio.sleep(random.random() * LONGEST_SECONDS)
    await postgres.create(EFFECTS, NewEffect(**about, step="after"))
    ledger.note("ended", slot)


jobs.every(seconds=1, name="each", missed="all")(work)
jobs.every(seconds=1, name="last", missed="once")(work)


async def main() -> None:
    """Run the jobs until SIGTERM."""
    for module in (_records, _execution):
        setattr(module, "LEASE_SECONDS", LEASE_SECONDS)  # noqa: B010 - a constant to type checkers
    setattr(_runner, "POLL_SECONDS", 0.1)  # noqa: B010
    shift_clock_of_jobs()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        connect_redis(os.environ["REDIS_URL"], timeout_seconds=2.0) as redis,
        PostgresDataClient(os.environ["DATA_URL"], service=SERVICE) as postgres,
        jobs.running(
            redis,
            service=SERVICE,
            providers={Ledger: Ledger(os.environ["LEDGER"]), PostgresDataClient: postgres},
        ) as runner,
    ):
        os.write(sys.stdout.fileno(), b"ready\n")
        await stop.wait()
        await runner.drain(budget_seconds=DRAIN_SECONDS)


__all__ = ["EFFECTS", "SERVICE", "JobRecord", "NewEffect", "jobs"]

if __name__ == "__main__":
    asyncio.run(main())
