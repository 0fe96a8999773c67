"""The load of the relay's proof: writers that repeat, a reader, and replicas that are killed, frozen and restarted."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import httpx
import orjson

from tests.proofs._sales import Arrival

EVENT = "relay_proof.sold"
TASKS = "relay_proof_tasks"
SALES = "relay_proof_sales"
KEYS = 24
FREEZE_SECONDS = 13.0
"""Longer than a lease: the replica wakes up as a former owner."""


class Replica:
    """One process of the data service, at a port of its own.

    Args:
        name: for its log.
        environment: its settings.
        folder: where its log goes.
        module: the module that is run, with its arguments.
    """

    def __init__(
        self,
        name: str,
        environment: dict[str, str],
        folder: Path,
        *,
        module: Sequence[str] = ("tests.proofs._replica",),
    ) -> None:
        self._command = [sys.executable, "-m", *module]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / f"{name}.log"
        self._environment = {**os.environ, **environment, "PORT": str(self.port)}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process, and wait until it is ready."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment, stdout=log, stderr=log
            )
        async with httpx.AsyncClient() as client, asyncio.timeout(200):
            while True:
                if self._process.returncode is not None:
                    raise RuntimeError(f"a replica did not start:\n{self._log.read_text()[-3000:]}")
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(f"{self.url}/ready")).status_code == 200:
                        return
                await asyncio.sleep(0.05)

    async def end(self, number: signal.Signals) -> None:
        """Send a signal, and wait until the process has ended."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            await self._process.wait()

    def tell(self, number: signal.Signals) -> None:
        """Send a signal."""
        if self._process is not None:
            self._process.send_signal(number)


@asynccontextmanager
async def replicas(
    count: int, *, database_url: str, broker_url: str, folder: Path
) -> AsyncGenerator[list[Replica]]:
    """Run several replicas inside the block."""
    environment = {"DATABASE_URL": database_url, "RABBITMQ_URL": broker_url, "LOG_LEVEL": "WARNING"}
    started = [Replica(f"replica_{number}", environment, folder) for number in range(count)]
    try:
        for replica in started:
            await replica.start()
        yield started
    finally:
        for replica in started:
            with contextlib.suppress(ProcessLookupError):
                replica.tell(signal.SIGCONT)
            await replica.end(signal.SIGKILL)


class Havoc:
    """Does to replicas what happens to processes, in an order that follows from the seed.

    Args:
        running: the replicas; at the end all of them run.
        seed: of the faults.
    """

    def __init__(self, running: Sequence[Replica], *, seed: int) -> None:
        self._running = running
        self._random = random.Random(seed)
        self._hurt: list[Replica] = []
        self.faults: Counter[str] = Counter()

    async def rage(self, seconds: float) -> None:
        """Inject one fault after another for some time, also while replicas are still down."""
        ends_at = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < ends_at:
                await asyncio.sleep(self._random.uniform(0.2, 3.0))
                well = [replica for replica in self._running if replica not in self._hurt]
                if well:
                    self._strike(well, group)

    def _strike(self, well: Sequence[Replica], group: asyncio.TaskGroup) -> None:
        kinds = ("kill -9", "kill -9 of all", "SIGTERM", "SIGSTOP for 13 s")
        [kind] = self._random.choices(kinds, (70, 6, 12, 12))
        self.faults[kind] += 1
        for victim in well if kind == "kill -9 of all" else [self._random.choice(well)]:
            self._hurt.append(victim)
            if kind == "SIGSTOP for 13 s":
                group.create_task(self._freeze(victim))
            else:
                number = signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL
                group.create_task(self._replace(victim, number))

    async def _freeze(self, victim: Replica) -> None:
        victim.tell(signal.SIGSTOP)
        await asyncio.sleep(FREEZE_SECONDS)
        victim.tell(signal.SIGCONT)
        self._hurt.remove(victim)

    async def _replace(self, victim: Replica, number: signal.Signals) -> None:
        await victim.end(number)
        await asyncio.sleep(self._random.uniform(0.0, 3.0))
        await victim.start()
        self._hurt.remove(victim)


class Writers:
    """Write rows with events of shared keys, each transaction until its outcome is known.

    Args:
        urls: of the replicas; each attempt goes to one of them.
        seed: of what is written.
    """

    def __init__(self, urls: Sequence[str], *, seed: int) -> None:
        self._urls = urls
        self._random = random.Random(seed)
        self._client = httpx.AsyncClient(timeout=3.0, limits=httpx.Limits(max_connections=64))
        self.stopping = False
        self.committed: set[str] = set()
        self.refused: set[str] = set()
        self.attempts = 0

    async def run(self, writers: int, *, pause_seconds: float) -> None:
        """Write until `stopping` is set."""
        async with self._client, asyncio.TaskGroup() as group:
            for _ in range(writers):
                group.create_task(self._write(pause_seconds))

    async def _write(self, pause_seconds: float) -> None:
        while not self.stopping:
            body, ids = self._transaction()
            status = await self._insist(body)
            (self.committed if status == 200 else self.refused).update(ids)
            await asyncio.sleep(self._random.uniform(0, 2 * pause_seconds))

    def _transaction(self) -> tuple[bytes, list[str]]:
        """One to three rows, most with events of shared keys; some are doomed, some are tasks for later."""
        operations: list[dict[str, Any]] = []
        emissions: list[dict[str, Any]] = []
        ids = [str(uuid4()) for _ in range(self._random.choice((1, 1, 2, 3)))]
        for place, each in enumerate(ids):
            emission = self._emission(each, place)
            emissions.append(emission)
            data = {"key": emission["key"] or "", "place": place}
            operations.append({"op": "create", "resource": "sales", "id": each, "data": data})
        if self._random.random() < 0.05:
            operations.append({"op": "assert", "resource": "sales", "id": str(uuid4())})
        return orjson.dumps({"operations": operations, "emit": emissions}), ids

    def _emission(self, event_id: str, place: int) -> dict[str, Any]:
        chance = self._random.random()
        emission: dict[str, Any] = {
            "event_type": EVENT,
            "event_id": event_id,
            "timestamp": "2026-01-15T10:30:00Z",
            "key": None if chance > 0.9 else f"key {self._random.randrange(KEYS)}",
            "request_id": "proof",
            "data": {"place": place},
        }
        if chance > 0.95:
            moment = datetime.now(UTC) + timedelta(seconds=self._random.uniform(0.5, 5.0))
            emission |= {"queue": TASKS, "not_before": moment.isoformat()}
        return emission

    async def _insist(self, body: bytes) -> int:
        headers = {"idempotency-key": str(uuid4()), "x-service-name": "proof"}
        while True:
            self.attempts += 1
            url = f"{self._random.choice(self._urls)}/v1:transact"
            with contextlib.suppress(httpx.HTTPError):
                answer = await self._client.post(url, content=body, headers=headers)
                if answer.status_code < 400 or not answer.json()["retryable"]:
                    if answer.status_code not in (200, 404):
                        raise RuntimeError(f"{answer.status_code}: {answer.text}")
                    return answer.status_code
            await asyncio.sleep(self._random.uniform(0.02, 0.2))


class Reader:
    """Records every message, in the order of the broker."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []

    @asynccontextmanager
    async def reading(self, broker_url: str) -> AsyncGenerator[None]:
        """Inside the block what arrives is noted; before it the queues are made."""
        async with await aio_pika.connect(broker_url) as connection:
            channel = await connection.channel()
            events = await channel.declare_queue(SALES, durable=True)
            await events.bind("hk.events", EVENT)
            tasks = await channel.declare_queue(TASKS, durable=True)
            for queue in (events, tasks):
                await queue.consume(self._note, no_ack=True)
            yield

    async def _note(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        self.arrivals.append(Arrival(str(message.headers["hk_event_id"]), time.time()))
