"""The proof of sagas: `python -m tests.proofs.sagas`.

Orders reserve, charge and ship, or are undone: refused, never answered, or cancelled by the customer. The worker, the
participants, the data service, Redis and the broker are processes of their own. First the worker is killed with SIGKILL
at every step of every task, from its first claim on: one order for each step, and a second worker that goes on. Then
any of the processes is killed or frozen at random moments. Then the queue of the saga is purged and its waiting timers
are deleted, again and again. At the end every order has an end, each command was sent once, what was reserved is
shipped or released, and what was charged is shipped or refunded.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO
from uuid import UUID

import aio_pika
import orjson
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from hybridkit.clients import ClientPolicy, PostgresDataClient
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dev import LocalServers, Server
from hybridkit.errors import HybridkitError
from hybridkit.events import Event
from hybridkit.ids import new_id
from hybridkit.messaging import RobustPublisher
from hybridkit.sagas import SAGAS, SagaRecord
from hybridkit.testing import until
from tests.proofs._saga_app import (
    MOVEMENTS,
    NAME,
    SERVICE,
    Base,
    Kind,
    OrderCancelled,
    OrderPlaced,
    participants,
    place_order,
)
from tests.proofs._sellers import Replica

WORKERS = 2
MAX_OPEN = 40
"""The orders that may be unfinished at a fault."""
SINK = "saga_proof_sink"
SETTLE_SECONDS = 120.0
"""How long nothing may end before what is missing counts as stranded."""
FREEZE_SECONDS = (0.5, 4.0)


@dataclass(kw_only=True)
class Verdict:
    """The result of a run.

    Attributes:
        placed: the orders, with what was to become of them.
        rows: the rows of their sagas.
        movements: the commands that each order's participants have got.
        finished: the ids of the events that told the end of each order.
        steps: the steps of one undisturbed order, 0 where they were not all tried.
        killed_at: the steps at which the worker was killed.
        faults: how often each fault was done.
        seconds: how long it took.
        wrong: everything that is missing, doubled or unbalanced.
    """

    placed: Mapping[UUID, Kind]
    rows: Mapping[UUID, SagaRecord]
    movements: Mapping[UUID, Counter[str]]
    finished: Mapping[UUID, set[UUID]]
    steps: int = 0
    killed_at: Sequence[int] = ()
    faults: Counter[str] = field(default_factory=Counter[str])
    seconds: float = 0.0
    wrong: list[str] = field(init=False)

    def __post_init__(self) -> None:
        """Find everything that is wrong."""
        self.wrong = [
            f"{kind} {order_id}: {problem}"
            for order_id, kind in self.placed.items()
            for problem in self._problems(order_id, kind)
        ]

    def _problems(self, order_id: UUID, kind: Kind) -> list[str]:
        row, moves = self.rows.get(order_id), self.movements.get(order_id, Counter())
        if row is None:
            return ["was never begun"]
        problems: list[str] = []
        wanted = {Kind.SHIPPED: {"done"}, Kind.CANCELLED: {"done", "undone"}}.get(kind, {"undone"})
        if row.status not in wanted or row.error is not None:
            problems.append(f"is {row.status} in {row.state} ({row.reason}, {row.error})")
        if len(told := self.finished.get(order_id, set())) != 1:
            problems.append(f"has told its end {len(told)} times")
        problems += [f"{command} came {count} times" for command, count in moves.items() if count > 1]
        if moves["reserve"] != moves["ship"] + moves["release"]:
            problems.append(f"reserved is not shipped or released: {dict(moves)}")
        if moves["charge"] != moves["ship"] + moves["refund"]:
            problems.append(f"charged is not shipped or refunded: {dict(moves)}")
        return problems

    @property
    def holds(self) -> bool:
        """Whether nothing is lost, doubled or stranded."""
        return not self.wrong

    def lines(self) -> Sequence[tuple[str, object]]:
        """The ledger, by name."""
        totals = sum((Counter(moves) for moves in self.movements.values()), Counter[str]())
        ends = Counter(row.status.value for row in self.rows.values())
        return [
            ("orders", len(self.placed)),
            *((f"  {status}", count) for status, count in sorted(ends.items())),
            ("killed at a step", len(self.killed_at)),
            ("  steps of one order", self.steps),
            *((f"fault: {fault}", count) for fault, count in sorted(self.faults.items())),
            *((f"commands: {command}", count) for command, count in sorted(totals.items())),
            ("seconds", round(self.seconds)),
            ("WRONG", len(self.wrong)),
        ]


class Process:
    """A process of the proof that isn't waited for by anybody else, watched by its number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._watch = os.pidfd_open(pid) if Path(f"/proc/{pid}").exists() else None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self._watch is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._watch, number)

    async def ended(self) -> None:
        """Wait for its end."""
        if self._watch is None:
            return
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._watch, end.set)
        await end.wait()
        loop.remove_reader(self._watch)
        os.close(self._watch)
        self._watch = None

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, and wait for the end."""
        self.send(signal.SIGCONT)
        self.send(number)
        await self.ended()


class Scene:
    """Everything that runs, the orders, and what was heard of them."""

    def __init__(self, urls: Mapping[str, str], servers: Mapping[str, Server], folder: Path) -> None:
        self._urls = urls
        self.servers = servers
        self._folder = folder
        self._ledger = folder / "ledger"
        self._ledger.touch()
        self.placed: dict[UUID, Kind] = {}
        self.finished: dict[UUID, set[UUID]] = {}
        self.faults: Counter[str] = Counter()
        self.workers: list[Process] = []
        self.stack = AsyncExitStack()
        common = {"RABBITMQ_URL": urls["rabbitmq"], "LOG_LEVEL": "WARNING", "LEDGER": str(self._ledger)}
        self.data = Replica(
            "data",
            common | {"DATABASE_URL": urls["postgres"]},
            folder,
            module=("tests.proofs._saga_app", "data"),
        )
        self._environment = common | {"POSTGRES_SERVICE_URL": self.data.url, "REDIS_URL": urls["redis"]}
        self._forks: asyncio.subprocess.Process
        self.participants: Process

    async def open(self) -> None:
        """Start everything but the workers."""
        await _create_tables(self._urls["postgres"])
        self.stack.push_async_callback(self.data.end, signal.SIGKILL)
        await self.data.start()
        self._forks = await self._spawn("workers", stdin=asyncio.subprocess.PIPE)
        self.stack.push_async_callback(self._end_forks)
        await self.start_participants()
        self.client = await self.stack.enter_async_context(
            PostgresDataClient(self.data.url, service=SERVICE, policy=ClientPolicy.worker())
        )
        self._publisher = await self.stack.enter_async_context(
            RobustPublisher(self._urls["rabbitmq"], service="saga_proof_shop")
        )
        broker = await self.stack.enter_async_context(await aio_pika.connect_robust(self._urls["rabbitmq"]))
        channel = await broker.channel()
        self._channel = channel
        first = await self.fork("-")  # declares the queue of the saga
        await first.end()
        sink = await channel.declare_queue(SINK, durable=True)
        await sink.bind("hk.events", "saga_proof.finished")
        await sink.consume(self._note)

    async def _note(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        envelope = orjson.loads(message.body)
        order_id = UUID(envelope["data"]["order_id"])
        self.finished.setdefault(order_id, set()).add(UUID(envelope["event_id"]))
        await message.ack()

    async def _spawn(
        self, name: str, *, stdin: int = asyncio.subprocess.DEVNULL
    ) -> asyncio.subprocess.Process:
        with (self._folder / f"{name}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.proofs._saga_app", name),
                env={**os.environ, **self._environment},
                stdin=stdin,
                stdout=log,
                stderr=log,
            )

    async def _end_forks(self) -> None:
        for worker in self.workers:
            await worker.end(signal.SIGKILL)
        assert self._forks.stdin is not None
        self._forks.stdin.close()
        await self._forks.wait()

    async def fork(self, line: str) -> Process:
        """Start a worker that dies at a step, or none for `-`, and wait until it has subscribed."""
        assert self._forks.stdin is not None
        known = len(self._ready(NAME))
        self._forks.stdin.write(f"{line}\n".encode())
        await until(lambda: len(self._ready(NAME)) > known, "a worker", timeout_seconds=120)
        return Process(self._ready(NAME)[-1])

    async def start_participants(self) -> None:
        """Start the process of the participants, and wait until it has subscribed."""
        process = await self._spawn("participants")
        await until(
            lambda: process.pid in self._ready(participants.name), "participants", timeout_seconds=120
        )
        self.participants = Process(process.pid)
        self.stack.push_async_callback(process.wait)
        self.stack.push_async_callback(self.participants.end, signal.SIGKILL)

    def _ready(self, name: str) -> list[int]:
        lines = [line.split() for line in self._ledger.read_text().splitlines()]
        return [int(pid) for consumer, pid in lines if consumer == name]

    @property
    def open_orders(self) -> int:
        """The number of orders without an end."""
        return len(self.placed) - len(self.finished)

    async def place(self, kind: Kind) -> UUID:
        """Place an order, and cancel it soon if the customer does."""
        order_id = new_id()
        self.placed[order_id] = kind
        await self._tell(OrderPlaced(order_id=order_id, kind=kind))
        if kind is Kind.CANCELLED:
            await self._tell(OrderCancelled(order_id=order_id))
        return order_id

    async def _tell(self, event: Event) -> None:
        while True:
            try:
                await self._publisher.publish(event)
                break
            except HybridkitError:
                await asyncio.sleep(0.1)

    async def until_finished(self, order_ids: Sequence[UUID]) -> None:
        """Wait until these orders have told their end, as long as orders end at all."""
        missing, since = set(order_ids), time.monotonic()
        while missing and time.monotonic() - since < SETTLE_SECONDS:
            if ended := missing & self.finished.keys():
                missing -= ended
                since = time.monotonic()
            await asyncio.sleep(0.02)

    async def lose_timers(self) -> None:
        """Purge the queue of the saga, and delete its timers that wait in the outbox."""
        self.faults["lose timers"] += 1
        connection = await connect(
            self._urls["postgres"], timeout_seconds=20, command_seconds=60, application_name="the proof"
        )
        await connection.execute("DELETE FROM hk_outbox WHERE not_before > now()")
        await connection.close()
        queue = await self._channel.get_queue(NAME)
        await queue.purge()

    async def judge(self) -> Verdict:
        """Count everything."""
        movements: dict[UUID, Counter[str]] = {}
        async for each in self.client.find(MOVEMENTS):
            movements.setdefault(each.order_id, Counter())[each.command] += 1
        ids = {place_order.id_of(order_id): order_id for order_id in self.placed}
        rows = {ids[row.id]: row async for row in self.client.find(SAGAS) if row.id in ids}
        return Verdict(
            placed=self.placed, rows=rows, movements=movements, finished=self.finished, faults=self.faults
        )


# ── the three parts ──────────────────────────────────────────────────────────────────────────────


async def kill_at_steps(
    scene: Scene, kind: Kind, steps: Sequence[int] | None, *, say: Callable[[str], None]
) -> tuple[list[int], int]:
    """Kill a worker at each step of an order, and let another one finish it; return the steps and their number."""
    killed_at: list[int] = []
    for step in steps or itertools.count(1):
        worker = await scene.fork(str(step))
        order_id = await scene.place(kind)
        finished = asyncio.create_task(scene.until_finished([order_id]))
        died = asyncio.create_task(worker.ended())
        await asyncio.wait({finished, died}, return_when=asyncio.FIRST_COMPLETED)
        if not died.done():
            await asyncio.wait({died}, timeout=0.5)  # what comes after the end has steps as well
        if not died.done():
            worker.send(signal.SIGTERM)
            await died
            await finished
            if steps is None:
                return killed_at, step - 1
            continue
        killed_at.append(step)
        successor = await scene.fork("-")
        await finished
        await successor.end()
        if step % 25 == 0:
            say(f"{kind}: killed at step {step}")
    return killed_at, 0


async def kill_at_random(
    scene: Scene, count: int, moments: random.Random, *, say: Callable[[str], None]
) -> None:
    """Kill and freeze processes while orders of every kind come in."""
    scene.workers = [await scene.fork("-") for _ in range(WORKERS)]
    kinds = list(Kind)
    ids: list[UUID] = []
    for number in range(count):
        ids += [await scene.place(moments.choice(kinds)) for _ in range(3)]
        await asyncio.sleep(moments.uniform(0.0, 0.5))
        await until(lambda: scene.open_orders <= MAX_OPEN, "orders to end", timeout_seconds=SETTLE_SECONDS)
        fault = moments.choice(
            [*_FAULTS, *(f"{do} {name}" for name in scene.servers for do in ("kill", "freeze"))]
        )
        scene.faults[fault] += 1
        await _harm(scene, fault, moments)
        if (number + 1) % 25 == 0:
            say(f"{number + 1} faults")
    await scene.until_finished(ids)


_FAULTS = tuple(f"{do} {name}" for name in ("worker", "participants", "data") for do in ("kill", "freeze"))


async def _harm(scene: Scene, fault: str, moments: random.Random) -> None:
    do, _, name = fault.partition(" ")
    if name in scene.servers:
        return await _harm_server(scene.servers[name], do, moments.uniform(*FREEZE_SECONDS))
    if do == "freeze":
        victim = {"participants": scene.participants, "worker": moments.choice(scene.workers)}.get(name)
        send = scene.data.tell if victim is None else victim.send
        send(signal.SIGSTOP)
        await asyncio.sleep(moments.uniform(*FREEZE_SECONDS))
        send(signal.SIGCONT)
    elif name == "worker":
        number = moments.randrange(len(scene.workers))
        await scene.workers[number].end(signal.SIGKILL)
        scene.workers[number] = await scene.fork("-")
    elif name == "participants":
        await scene.participants.end(signal.SIGKILL)
        await scene.start_participants()
    else:
        await scene.data.end(signal.SIGKILL)
        await scene.data.start()
    return None


async def _harm_server(server: Server, do: str, seconds: float) -> None:
    if do == "freeze":
        server.freeze()
        await asyncio.sleep(seconds)
        server.resume()
        return
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.restart)


async def lose_timers(scene: Scene, rounds: int) -> None:
    """Let orders wait for a timer, and lose the timers and all that is in the saga's queue."""
    worker = await scene.fork("-")
    for _ in range(rounds):
        ids = [await scene.place(Kind.SILENT) for _ in range(5)]

        async def are_waiting(ids: Sequence[UUID] = ids) -> bool:
            rows = [await scene.client.get_or_none(SAGAS, place_order.id_of(each)) for each in ids]
            return all(
                row is not None and (row.state == "payment" or row.status != "running") for row in rows
            )

        await until(are_waiting, "the payments", timeout_seconds=60)
        await scene.lose_timers()
        await scene.until_finished(ids)
    await worker.end()


# ── the whole ────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def running(
    urls: Mapping[str, str], servers: Mapping[str, Server], *, say: Callable[[str], None]
) -> AsyncGenerator[Scene]:
    """Start everything, and end it after the block; the logs are kept where the block raises."""
    folder = Path(tempfile.mkdtemp(prefix="saga-proof-"))
    scene = Scene(urls, servers, folder)
    try:
        async with scene.stack:
            await scene.open()
            yield scene
    except BaseException:
        say(f"the logs are in {folder}")
        raise
    shutil.rmtree(folder)


async def prove(
    urls: Mapping[str, str],
    servers: Mapping[str, Server],
    *,
    faults: int,
    seed: int,
    losses: int = 1,
    steps: Sequence[int] | None = None,
    kinds: Sequence[Kind] = (Kind.SHIPPED, Kind.REFUSED),
    say: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Run the proof on servers that nothing else uses.

    Args:
        urls: the servers, by `postgres`, `redis` and `rabbitmq`.
        servers: those that may be killed and frozen, by the same names.
        faults: the faults at random moments.
        seed: of these moments.
        losses: how often timers are lost.
        steps: the steps to die at; None for every step that there is.
        kinds: the orders that the worker dies of, step by step.
        say: is told what goes on.
    """
    began = time.monotonic()
    async with running(urls, servers, say=say) as scene:
        killed_at: list[int] = []
        total = 0
        for kind in kinds:
            killed, there_are = await kill_at_steps(scene, kind, steps, say=say)
            killed_at += killed
            total = max(total, there_are)
        await lose_timers(scene, losses)
        if faults:
            await kill_at_random(scene, faults, random.Random(seed), say=say)
        verdict = await scene.judge()
    verdict.killed_at, verdict.steps, verdict.seconds = killed_at, total, time.monotonic() - began
    return verdict


def main() -> int:
    """Run the command; return 0 when nothing is lost, doubled or stranded."""
    parser = argparse.ArgumentParser(
        prog="sagas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=200, help="at random moments; 200 by default")
    parser.add_argument("--seed", type=int, default=None, help="of the random moments; printed")
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    with LocalServers() as local:
        _write(f"seed {seed}; starting servers", to=sys.stderr)
        servers = {kind: local.start(kind, private=True) for kind in ("postgres", "redis", "rabbitmq")}
        verdict = asyncio.run(
            prove(
                {name: server.url for name, server in servers.items()},
                {name: server for name, server in servers.items() if name != "postgres"},
                faults=options.faults,
                seed=seed,
                losses=5,
                say=lambda line: _write(line, to=sys.stderr),
            )
        )
    _write(f"{'seed':<40}{seed:>10}")
    for name, figure in verdict.lines():
        _write(f"{name:<40}{figure!s:>10}")
    for line in verdict.wrong:
        _write(line)
    return 0 if verdict.holds else 1


async def _create_tables(database_url: str) -> None:
    connection = await connect(
        database_url, timeout_seconds=20, command_seconds=60, application_name="the proof"
    )
    for table in Base.metadata.sorted_tables:
        create = CreateTable(table).compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
        await connection.execute(str(create))
    await connection.close()


def _write(line: str, *, to: TextIO = sys.stdout) -> None:
    to.write(line + "\n")
    to.flush()


if __name__ == "__main__":
    sys.exit(main())
