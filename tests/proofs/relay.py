"""The proof of the outbox: `python -m tests.proofs.relay --minutes 3`.

Three replicas of a data service, processes of their own, on a real PostgreSQL and a real RabbitMQ. Writers add rows,
each with an event, through `:transact`, many of them on the same keys; meanwhile replicas are killed with SIGKILL at
random moments, also all at once, frozen for longer than their leases last, ended with SIGTERM, and started again. At
the end every row's event must have arrived, none without its row, none before its time, and the events of each key in
the order in which PostgreSQL committed them. An event may arrive more than once; that is counted, and has a bound.

The faults and their order follow from the seed; the moment at which each hits doesn't.
"""

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dev import LocalServers, Server
from tests.proofs._replica import Base
from tests.proofs._sales import Row, Verdict, judge
from tests.proofs._sellers import Havoc, Reader, Writers, replicas

REPLICAS = 3
WRITERS = 12
SETTLE_SECONDS = 60.0
"""How long nothing may arrive before what is missing counts as lost."""
COPIES = 20
"""How many events per killed replica may arrive again: those that it had published and not marked, at this load."""
COPIES_OF_A_BURST = 100
"""How many more, for one that is killed while it publishes a backlog."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a run."""

    verdict: Verdict
    faults: Counter[str]
    seconds: float
    attempts: int
    rows: int
    refused: int
    unanswered: Sequence[str]
    phantoms: Sequence[str]
    parked: int

    @property
    def holds(self) -> bool:
        """Whether everything is as promised."""
        promised = self.verdict.holds and not (self.unanswered or self.phantoms or self.parked)
        hurt = self.faults.total() + (REPLICAS - 1) * self.faults["kill -9 of all"]
        return promised and self.verdict.duplicates <= COPIES * hurt + COPIES_OF_A_BURST

    def lines(self) -> Sequence[tuple[str, object]]:
        """The figures, by name."""
        verdict = self.verdict
        return [
            ("seconds", round(self.seconds)),
            ("faults", self.faults.total()),
            *((f"  {kind}", count) for kind, count in sorted(self.faults.items())),
            ("rows committed with an event", self.rows),
            ("rows of transactions that were refused", self.refused),
            ("HTTP attempts", self.attempts),
            ("events arrived", len(verdict.seconds)),
            ("  seconds from commit, median", round(verdict.within(0.5), 3)),
            ("  99 %", round(verdict.within(0.99), 3)),
            ("  most", round(verdict.within(1.0), 3)),
            ("arrived again", verdict.duplicates),
            ("  at most so often", verdict.most_copies),
            ("LOST", len(verdict.lost)),
            ("WITHOUT A ROW", len(verdict.rowless)),
            ("KEYS OUT OF ORDER", len(verdict.disordered)),
            ("EARLY", len(verdict.early)),
            ("CONFIRMED TO A WRITER AND NOT THERE", len(self.unanswered)),
            ("REFUSED AND THERE", len(self.phantoms)),
            ("PARKED", self.parked),
        ]


def main() -> int:
    """Run the command; return 0 when everything is as promised."""
    parser = argparse.ArgumentParser(
        prog="relay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="how long replicas suffer; 3 by default")
    parser.add_argument("--seed", type=int, default=None, help="of the faults; printed, random by default")
    parser.add_argument("--keep", type=Path, help="a new folder for the processes' logs")
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    folder = options.keep or Path(tempfile.mkdtemp(prefix="relay-"))
    folder.mkdir(parents=True, exist_ok=True)
    with LocalServers() as servers:
        _say(f"seed {seed}; starting servers")
        postgres = servers.start("postgres", private=True)
        rabbitmq = servers.start("rabbitmq", private=True)
        _say(f"{postgres.source}; {rabbitmq.source}")
        if not rabbitmq.is_real:
            sys.exit("a stand-in proves nothing: RabbitMQ is needed as a program")
        outcome = asyncio.run(
            prove(postgres, rabbitmq.url, folder, seed=seed, seconds=options.minutes * 60, say=_say)
        )
    _write(f"{'seed':<40}{seed:>10}")
    for name, figure in outcome.lines():
        _write(f"{name:<40}{figure:>10}")
    if outcome.holds and not options.keep:
        shutil.rmtree(folder)
    else:
        _write(f"the logs are in {folder}")
    return 0 if outcome.holds else 1


async def prove(
    postgres: Server, broker_url: str, folder: Path, *, seed: int, seconds: float, say: Callable[[str], None]
) -> Outcome:
    """Run it for so long.

    Args:
        postgres: a server of its own; it is restarted to keep the times of commits.
        broker_url: a virtual host of its own.
        folder: for the processes' logs.
        seed: of faults and load.
        seconds: how long replicas suffer.
        say: told what goes on.
    """
    await _prepare(postgres)
    began = time.monotonic()
    async with replicas(REPLICAS, database_url=postgres.url, broker_url=broker_url, folder=folder) as running:
        reader = Reader()
        writers = Writers([replica.url for replica in running], seed=seed)
        havoc = Havoc(running, seed=seed)
        async with reader.reading(broker_url):
            say(f"{len(running)} replicas are ready")
            writing = asyncio.create_task(writers.run(WRITERS, pause_seconds=0.05))
            raging = asyncio.create_task(havoc.rage(seconds))
            await asyncio.wait({writing, raging}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                raging.cancel()
            else:
                await raging
                writers.stopping = True
            await writing
            say(f"{havoc.faults.total()} faults; waiting for what is left")
            await _settle(postgres.url, reader)
        rows, parked = await _rows(postgres.url)
    ids = {row.id for row in rows}
    return Outcome(
        verdict=judge(rows, reader.arrivals),
        faults=havoc.faults,
        seconds=time.monotonic() - began,
        attempts=writers.attempts,
        rows=len(rows),
        refused=len(writers.refused),
        unanswered=sorted(writers.committed - ids),
        phantoms=sorted(writers.refused & ids),
        parked=parked,
    )


async def _prepare(postgres: Server) -> None:
    connection = await _connected(postgres.url)
    await connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
    await connection.close()
    await asyncio.to_thread(postgres.restart)
    connection = await _connected(postgres.url)
    table = Base.metadata.tables["sales"]
    create = CreateTable(table).compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
    await connection.execute(str(create))
    await connection.close()


async def _settle(database_url: str, reader: Reader) -> None:
    """Wait until nothing waits and everything has arrived, or nothing happens any more."""
    connection = await _connected(database_url)
    seen, changed_at = -1, time.monotonic()
    while time.monotonic() - changed_at < SETTLE_SECONDS:
        waiting = await connection.fetchval(
            "SELECT count(*) FROM hk_outbox WHERE published_at IS NULL AND parked_at IS NULL"
        )
        rows = await connection.fetchval("SELECT count(*) FROM hk_outbox")
        if not waiting and len({arrival.id for arrival in reader.arrivals}) >= rows:
            break
        if len(reader.arrivals) != seen:
            seen, changed_at = len(reader.arrivals), time.monotonic()
        await asyncio.sleep(0.2)
    await connection.close()


async def _rows(database_url: str) -> tuple[list[Row], int]:
    connection = await _connected(database_url)
    found = await connection.fetch(
        "SELECT sales.id::text, sales.key, sales.place,"
        " extract(epoch FROM pg_xact_commit_timestamp(sales.xmin))::float8 AS committed_at,"
        " coalesce(extract(epoch FROM hk_outbox.not_before), 0)::float8 AS not_before"
        " FROM sales LEFT JOIN hk_outbox ON hk_outbox.event_id = sales.id"
    )
    parked = await connection.fetchval("SELECT count(*) FROM hk_outbox WHERE parked_at IS NOT NULL")
    await connection.close()
    return [_row(*row.values()) for row in found], parked


def _row(row_id: str, key: str, place: int, committed_at: float, not_before: float) -> Row:
    # One that had to wait is in no order with the others of its key.
    return Row(row_id, "" if not_before else key, committed_at, place, not_before)


async def _connected(url: str) -> Any:
    return await connect(url, timeout_seconds=20, command_seconds=60, application_name="the proof")


def _write(line: str, *, to: TextIO = sys.stdout) -> None:
    to.write(line + "\n")
    to.flush()


def _say(line: str) -> None:
    _write(f"{time.strftime('%H:%M:%S')} {line}", to=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
