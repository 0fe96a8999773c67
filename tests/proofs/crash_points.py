"""The crash-point proof: `python -m tests.proofs.crash_points`.

A handler writes three times over HTTP, to PostgreSQL and MongoDB, and publishes one event (`tests.proofs._checkout`).
First its process is killed with SIGKILL at every step of every task, from the beginning of the claim to the settled
message: one message for each step, and a second process that takes it over. Then three processes work on a stream of
messages, and one after the other is killed at random moments, 200 times. At the end every message has each of its four
effects once; an event may have been published again, with the same id.
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
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO
from uuid import UUID

import aio_pika
import orjson
from aio_pika.exceptions import ChannelNotFoundEntity
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.coordination import Redis, connect_redis
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dev import LocalServers
from hybridkit.messaging import RobustPublisher
from hybridkit.testing._isolation import with_path
from tests.proofs._checkout import (
    ORDERS,
    RECEIPTS,
    STOCK_IDS,
    STOCKS,
    Base,
    NewStock,
    OrderPlaced,
)
from tests.proofs._crashing import QUEUE
from tests.proofs._sellers import Replica

WORKERS = 3
MAX_OPEN = 12
"""The messages that may be unfinished at a kill: what is in the hands of 20 dead processes, RabbitMQ dead-letters."""
SINK = "crash_proof_sink"
SETTLE_SECONDS = 60.0
"""How long nothing may happen before what is missing counts as lost."""


@dataclass(kw_only=True)
class Verdict:
    """The result of a run.

    Attributes:
        placed: the numbers of the messages.
        orders: how often each number has a row.
        receipts: how often each number has a document.
        confirmed: the ids of the events that were published for each number.
        sold: the sum of the shared rows.
        deliveries: the events that have arrived.
        dead_lettered: the messages that were given up.
        steps: the steps of one undisturbed handling, 0 where they were not all tried.
        killed_at: the steps at which a process was killed.
        kills: the kills at random moments.
    """

    placed: Sequence[int]
    orders: Counter[int]
    receipts: Counter[int]
    confirmed: dict[int, set[UUID]]
    sold: int
    deliveries: int
    dead_lettered: int = 0
    steps: int = 0
    killed_at: Sequence[int] = ()
    kills: int = 0
    wrong: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        """Find every effect that is missing or doubled."""
        wrong = [
            f"{name} of {number}: {count}"
            for name, counts in (("orders", self.orders), ("receipts", self.receipts))
            for number in self.placed
            if (count := counts[number]) != 1
        ]
        wrong += [
            f"events of {number}: {len(ids)}"
            for number in self.placed
            if len(ids := self.confirmed.get(number, set())) != 1
        ]
        if self.sold != len(self.placed):
            wrong.append(f"sold {self.sold} of {len(self.placed)}")
        if self.dead_lettered:
            wrong.append(f"dead-lettered: {self.dead_lettered}")
        self.wrong = wrong

    @property
    def holds(self) -> bool:
        """Whether every effect is there once."""
        return not self.wrong

    def lines(self) -> Sequence[tuple[str, object]]:
        """The figures, by name."""
        return [
            ("messages", len(self.placed)),
            ("killed at a step", len(self.killed_at)),
            ("  steps of one handling", self.steps),
            ("killed at random", self.kills),
            ("rows", self.orders.total()),
            ("documents", self.receipts.total()),
            ("changes of shared rows", self.sold),
            ("events", sum(len(ids) for ids in self.confirmed.values())),
            ("  arrived again", self.deliveries - sum(len(ids) for ids in self.confirmed.values())),
            ("WRONG", len(self.wrong)),
        ]


def main() -> int:
    """Run the command; return 0 when every effect is there once."""
    parser = argparse.ArgumentParser(
        prog="crash_points", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="at random moments; 200 by default")
    parser.add_argument("--seed", type=int, default=None, help="of the random moments; printed")
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    with LocalServers() as servers:
        _say(f"seed {seed}; starting servers")
        urls = {
            kind: servers.start(kind, private=True).url for kind in ("postgres", "mongo", "redis", "rabbitmq")
        }
        urls["mongo"] = with_path(urls["mongo"], "crash_proof")
        verdict = asyncio.run(prove(urls, kills=options.kills, seed=seed, say=_say))
    _write(f"{'seed':<40}{seed:>10}")
    for name, figure in verdict.lines():
        _write(f"{name:<40}{figure!s:>10}")
    for line in verdict.wrong:
        _write(line)
    return 0 if verdict.holds else 1


async def prove(
    urls: dict[str, str],
    *,
    kills: int,
    seed: int,
    steps: Sequence[int] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Run the proof on servers that nothing else uses.

    Args:
        urls: the servers, by `postgres`, `mongo`, `redis` and `rabbitmq`.
        kills: the kills at random moments.
        seed: of these moments.
        steps: the steps to die at; None for every step that there is.
        say: is told what goes on.
    """
    folder = Path(tempfile.mkdtemp(prefix="crash-points-"))
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(_scene(urls, folder))
        killed_at, all_steps = await _kill_at_steps(scene, steps, say=say)
        await _kill_at_random(scene, kills, random.Random(seed), say=say)
        verdict = await scene.judge()
    verdict.killed_at, verdict.steps, verdict.kills = killed_at, all_steps, kills
    if verdict.holds:
        shutil.rmtree(folder)
    else:
        say(f"the logs are in {folder}")
    return verdict


# ── the two parts ────────────────────────────────────────────────────────────────────────────────


async def _kill_at_steps(
    scene: "_Scene", steps: Sequence[int] | None, *, say: Callable[[str], None]
) -> tuple[Sequence[int], int]:
    """Kill a process at each step, and let another one finish; return the steps, and how many there are."""
    killed_at: list[int] = []
    for step in steps or range(1, sys.maxsize):
        worker = await scene.fork(str(step))
        event = await scene.place()
        survived = asyncio.create_task(scene.until_completed([event.event_id]))
        died = asyncio.create_task(worker.ended())
        await asyncio.wait({survived, died}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({died}, timeout=0.5)  # what comes after the end of the claim has steps as well
        if not died.done():
            worker.send(signal.SIGTERM)
        await died
        if worker.was_stopped and steps is None:
            await survived
            return killed_at, step - 1
        killed_at.append(step)
        if not survived.done():
            successor = await scene.fork("-")
            await survived
            await successor.stop()
        say(f"killed at step {step}")
    return killed_at, 0


async def _kill_at_random(
    scene: "_Scene", kills: int, moments: random.Random, *, say: Callable[[str], None]
) -> None:
    workers = [await scene.fork("-") for _ in range(WORKERS)]
    ids: list[UUID] = []
    for number in range(kills):
        ids += [(await scene.place()).event_id for _ in range(3)]
        await asyncio.sleep(moments.uniform(0.0, 0.4))
        while scene.open_messages > MAX_OPEN:  # noqa: ASYNC110 - other processes finish them
            await asyncio.sleep(0.02)
        victim = moments.randrange(WORKERS)
        workers[victim].send(signal.SIGKILL)
        await workers[victim].ended()
        workers[victim] = await scene.fork("-")
        if (number + 1) % 50 == 0:
            say(f"{number + 1} processes killed")
    await scene.until_completed(ids)
    for worker in workers:
        await worker.stop()


# ── processes and servers ────────────────────────────────────────────────────────────────────────


class _Worker:
    """A forked worker, watched by its pid."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._watch = os.pidfd_open(pid) if Path(f"/proc/{pid}").exists() else None
        self.was_stopped = False

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        self.was_stopped = number == signal.SIGTERM
        if self._watch is not None:
            try:
                signal.pidfd_send_signal(self._watch, number)
            except ProcessLookupError:
                self.was_stopped = False

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

    async def stop(self) -> None:
        """End it in order."""
        self.send(signal.SIGTERM)
        await self.ended()


@dataclass(kw_only=True)
class _Scene:
    """Everything that runs: servers, data services, the forks' parent, and the reader of the published events."""

    forks: asyncio.subprocess.Process
    channel: aio_pika.abc.AbstractChannel
    publisher: RobustPublisher
    redis: Redis
    postgres: PostgresDataClient
    mongo: MongoDataClient
    placed: list[int] = field(default_factory=list)
    confirmed: dict[int, set[UUID]] = field(default_factory=dict)
    deliveries: int = 0

    @property
    def open_messages(self) -> int:
        """The number of messages whose handler has not published its event yet."""
        return len(self.placed) - len(self.confirmed)

    async def fork(self, line: str) -> _Worker:
        """Start a worker."""
        assert self.forks.stdin is not None
        assert self.forks.stdout is not None
        self.forks.stdin.write(f"{line}\n".encode())
        return _Worker(int(await self.forks.stdout.readline()))

    async def place(self) -> OrderPlaced:
        """Publish the next message."""
        event = OrderPlaced(number=len(self.placed))
        self.placed.append(event.number)
        await self.publisher.publish(event)
        return event

    async def until_completed(self, event_ids: Sequence[UUID]) -> None:
        """Wait until the claims of these messages say that their work is done, as long as something happens."""
        missing, since = set(map(str, event_ids)), time.monotonic()
        while missing and time.monotonic() - since < SETTLE_SECONDS:
            async for key in self.redis.scan_iter(f"hk:claim:{QUEUE}:*", count=1_000):
                event_id = str(key).split(":")[-2]
                if event_id in missing and await self.redis.hget(key, "state") == "C":
                    missing.discard(event_id)
                    since = time.monotonic()
            await asyncio.sleep(0.02)

    async def judge(self) -> Verdict:
        """Count every effect."""
        dead_letters = await self.channel.get_queue(f"{QUEUE}.dlq")
        return Verdict(
            placed=self.placed,
            orders=Counter([order.number async for order in self.postgres.find(ORDERS)]),
            receipts=Counter([receipt.number async for receipt in self.mongo.find(RECEIPTS)]),
            confirmed=self.confirmed,
            sold=sum([stock.sold async for stock in self.postgres.find(STOCKS)]),
            deliveries=self.deliveries,
            dead_lettered=dead_letters.declaration_result.message_count or 0,
        )

    async def note(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        """Record an event of a handler."""
        envelope = orjson.loads(message.body)
        self.deliveries += 1
        self.confirmed.setdefault(envelope["data"]["number"], set()).add(UUID(envelope["event_id"]))


@asynccontextmanager
async def _scene(urls: dict[str, str], folder: Path) -> AsyncGenerator[_Scene]:
    await _create_tables(urls["postgres"])
    common = {"RABBITMQ_URL": urls["rabbitmq"], "LOG_LEVEL": "WARNING"}
    services = {
        "postgres": Replica(
            "postgres",
            common | {"DATABASE_URL": urls["postgres"]},
            folder,
            module=("tests.proofs._checkout", "postgres"),
        ),
        "mongo": Replica(
            "mongo",
            common | {"DATABASE_URL": urls["mongo"]},
            folder,
            module=("tests.proofs._checkout", "mongo"),
        ),
    }
    async with AsyncExitStack() as stack:
        for service in services.values():
            stack.push_async_callback(service.end, signal.SIGKILL)
            await service.start()
        environment = {
            "POSTGRES_SERVICE_URL": services["postgres"].url,
            "MONGO_SERVICE_URL": services["mongo"].url,
            "REDIS_URL": urls["redis"],
            **common,
        }
        with (folder / "workers.log").open("ab") as log:
            forks = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.proofs._crashing"),
                env={**os.environ, **environment},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        stack.push_async_callback(_end, forks)
        postgres = PostgresDataClient(services["postgres"].url, service="crash_proof")
        mongo = MongoDataClient(services["mongo"].url, service="crash_proof")
        broker = await stack.enter_async_context(await aio_pika.connect(urls["rabbitmq"]))
        channel = await broker.channel()
        scene = _Scene(
            forks=forks,
            channel=channel,
            publisher=await stack.enter_async_context(
                RobustPublisher(urls["rabbitmq"], service="crash_proof")
            ),
            redis=await stack.enter_async_context(connect_redis(urls["redis"], timeout_seconds=5)),
            postgres=await stack.enter_async_context(postgres),
            mongo=await stack.enter_async_context(mongo),
        )
        for stock_id in STOCK_IDS:
            await scene.postgres.upsert(STOCKS, stock_id, NewStock())
        sink = await channel.declare_queue(SINK, durable=True)
        await sink.bind("hk.events", "crash_proof.confirmed")
        await sink.consume(scene.note, no_ack=True)
        first = await scene.fork("-")
        await _until_declared(broker, QUEUE)
        await first.stop()
        yield scene


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()


async def _until_declared(broker: aio_pika.abc.AbstractConnection, queue: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await (await broker.channel()).get_queue(queue)
            except ChannelNotFoundEntity:
                await asyncio.sleep(0.05)
            else:
                return


async def _create_tables(database_url: str) -> None:
    connection = await connect(
        database_url, timeout_seconds=20, command_seconds=60, application_name="the proof"
    )
    for table in Base.metadata.sorted_tables:
        create = CreateTable(table).compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
        await connection.execute(str(create))
    await connection.close()


def _say(line: str) -> None:
    _write(line, to=sys.stderr)


def _write(line: str, *, to: TextIO = sys.stdout) -> None:
    to.write(line + "\n")
    to.flush()


if __name__ == "__main__":
    sys.exit(main())
