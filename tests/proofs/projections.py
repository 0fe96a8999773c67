"""The proof of projections: `python -m tests.proofs.projections --kills 200`.

Movements of money are appended to streams, while a data service and two projectors are killed and frozen at random.
Each projector runs two versions of one projection, the second of which fills its records beside the first. In the end
the records of both have to be the fold of the log: each event counted, and counted once.
"""

import argparse
import asyncio
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from uuid import UUID

from hybridkit.clients import ClientPolicy, PostgresDataClient
from hybridkit.dataservice._postgres._schema import migrating_connection
from hybridkit.dev import LocalServers
from hybridkit.dev._servers._probes import free_port
from hybridkit.errors import HybridkitError
from tests.helpers import until
from tests.helpers.horizons import until_readable
from tests.proofs._projector import ACCOUNTS, BALANCES, BALANCES_V2, Balances, Base, Moved

IDS = [UUID(int=number) for number in range(1, 151)]
"""More accounts than changes fit into one transaction."""
PATIENT = ClientPolicy(write_timeout_seconds=10.0, read_timeout_seconds=10.0)

type Fold = Mapping[UUID, tuple[Decimal, int]]
"""Balance and number of movements by account."""


@dataclass
class Outcome:
    """The outcome of a run.

    Attributes:
        events: the events in the log.
        faults: what was done to the processes, by kind.
        seconds: how long all of it took.
    """

    events: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])
    seconds: float = 0.0


class Process:
    """A process that is started again after each kill.

    Args:
        role: `service` or `project`.
        environment: its settings.
        log: the file of its output.
    """

    def __init__(self, role: str, environment: Mapping[str, str], log: Path) -> None:
        self._role = role
        self._environment = environment
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.proofs._projector", self._role,
                env={**os.environ, **self._environment}, stdout=output, stderr=output,
            )  # fmt: skip

    async def kill(self) -> None:
        """End it at once, and start it again."""
        await self.end()
        await self.start()

    async def freeze(self, seconds: float) -> None:
        """Stop it for a while, in the middle of whatever it does."""
        self._send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self._send(signal.SIGCONT)

    async def end(self) -> None:
        """End it at once."""
        self._send(signal.SIGKILL)
        if self._process is not None:
            await self._process.wait()

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


async def prove(
    url: str, port: int, folder: Path, *, seed: int, kills: int, say: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Run it, and return what was done; an `AssertionError` or `TimeoutError` says what doesn't hold.

    Args:
        url: a database of its own.
        port: the port of the data service.
        folder: for the processes' logs.
        seed: of faults and load.
        kills: how many faults there are.
        say: told what goes on.
    """
    async with migrating_connection(url) as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
    outcome, began = Outcome(), time.monotonic()
    async with _processes(url, port, folder) as processes, _client(port) as client:
        await until(partial(_is_ready, client), seconds=120)
        say("all processes run")
        stop = asyncio.Event()
        writing = asyncio.create_task(_write(client, stop, random.Random(seed)))
        await _rage(processes, outcome.faults, random.Random(seed + 1), kills)
        stop.set()
        await writing
        say(f"{outcome.faults.total()} faults; waiting for the projectors")
        await until(partial(_is_ready, client), seconds=120)
        await until_readable(url, "account_events")
        log = await _log(client)
        outcome.events = sum(count for _, count in log.values())
        for resource in (BALANCES, BALANCES_V2):
            await until(partial(_is_fold, client, resource, log), seconds=120)
    outcome.seconds = time.monotonic() - began
    return outcome


@asynccontextmanager
async def _processes(url: str, port: int, folder: Path) -> AsyncGenerator[list[Process]]:
    service = {"DATABASE_URL": url, "PORT": str(port), "ENVIRONMENT": "development"}
    projector = {"POSTGRES_SERVICE_URL": f"http://127.0.0.1:{port}"}
    processes = [
        Process("service", service, folder / "service.log"),
        *(Process("project", projector, folder / f"projector-{number}.log") for number in (1, 2)),
    ]
    try:
        for process in processes:
            await process.start()
        yield processes
    finally:
        for process in processes:
            await process.end()


def _client(port: int) -> PostgresDataClient:
    return PostgresDataClient(f"http://127.0.0.1:{port}", service="api_service", policy=PATIENT)


async def _is_ready(client: PostgresDataClient) -> bool:
    try:
        await client.probe()
    except HybridkitError:
        return False
    return True


async def _write(client: PostgresDataClient, stop: asyncio.Event, chance: random.Random) -> None:
    while not stop.is_set():
        account = chance.choice(IDS)
        amounts = [Decimal(chance.randint(-10_000, 10_000)) / 100 for _ in range(chance.randint(1, 20))]
        try:
            await client.append(
                ACCOUNTS, account, *(Moved(account_id=account, amount=each) for each in amounts)
            )
        except HybridkitError:  # the log is the truth, whatever became of it
            await asyncio.sleep(0.05)


async def _rage(processes: list[Process], faults: Counter[str], chance: random.Random, kills: int) -> None:
    service, *projectors = processes
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(0.1, 1.0))
        match chance.choices(("service", "projector", "freeze"), (1, 3, 2))[0]:
            case "service":
                await service.kill()
                faults["service killed"] += 1
            case "projector":
                await chance.choice(projectors).kill()
                faults["projector killed"] += 1
            case _:
                await chance.choice(projectors).freeze(chance.uniform(0.2, 1.5))
                faults["projector frozen"] += 1


async def _log(client: PostgresDataClient) -> Fold:
    found: dict[UUID, tuple[Decimal, int]] = defaultdict(lambda: (Decimal(0), 0))
    position: str | None = None
    while True:
        page = await client.log(ACCOUNTS, after=position)
        for recorded in page.events:
            event = recorded.event
            assert isinstance(event, Moved)
            balance, count = found[event.account_id]
            found[event.account_id] = balance + event.amount, count + 1
        position = page.position
        if not page.has_more:
            return dict(found)


async def _is_fold(client: PostgresDataClient, resource: Balances, log: Fold) -> bool:
    """Return whether the records are the fold of the log; what was counted twice never goes away."""
    records = {record.id: (record.balance, record.movements) async for record in client.find(resource)}
    assert all(count <= log[account][1] for account, (_, count) in records.items()), "counted twice"
    return records == log


def main() -> int:
    """Run the command; return 0 when everything is as promised."""
    parser = argparse.ArgumentParser(
        prog="projections", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="kills and freezes (200)")
    parser.add_argument("--seed", type=int, default=None, help="of the faults; printed, random by default")
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="projections-"))
    with LocalServers() as servers:
        server = servers.start("postgres", private=True)
        _say(f"seed {seed}; {server.source}")
        outcome = asyncio.run(
            prove(server.url, free_port(), folder, seed=seed, kills=options.kills, say=_say)
        )
    _say(f"{outcome.events} events, {dict(outcome.faults)}, {outcome.seconds:.0f} s: holds")
    shutil.rmtree(folder)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
