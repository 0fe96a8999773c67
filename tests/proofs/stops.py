"""The proof of a stop in order: `python -m tests.proofs.stops --times 100`.

An API, an API with four workers under Gunicorn, a worker and a bot get SIGTERM in the middle of their work, as often
as that, and are started again. Each has to end with exit code 0, and each piece of work has to be done exactly once: an
answer that its caller did not get, and a message or an update that ran twice, would be told.
"""

import argparse
import asyncio
import itertools
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from redis.asyncio import Redis

from hybridkit.dev import LocalServers, Service, Supervisor, free_port
from hybridkit.messaging import RobustPublisher
from hybridkit.testing import FakeTelegram, TelegramUser
from tests.proofs._stopping import Work

KINDS = ("api", "workers", "worker", "bot")
AT_ONCE = 8
PAUSE_SECONDS = 0.2
"""The pause after work that nobody waits for, so that no more is asked for than can be done."""
SETTLE_SECONDS = 120


@dataclass
class Process:
    """A kind of process that is stopped and started again.

    Attributes:
        kind: its kind.
        port: of the API.
        asked: the numbers of the work that was asked for.
        lost: work that was begun and whose answer its caller did not get.
    """

    kind: str
    redis: Redis
    supervisor: Supervisor
    environment: Mapping[str, str]
    port: int = field(default_factory=free_port)
    asked: Iterator[int] = field(default_factory=itertools.count)
    lost: list[int] = field(default_factory=list[int])

    async def start(self) -> None:
        management_port = free_port()
        service = Service(
            name=self.kind,
            argv=[sys.executable, "-m", "tests.proofs._stopping", self.kind],
            environment={
                **self.environment,
                "SERVICE_NAME": self.kind,
                "PORT": str(self.port),
                "MANAGEMENT_PORT": str(management_port),
                "LOG_LEVEL": "WARNING",
            },
            ready_url=f"http://127.0.0.1:{management_port}/ready",
        )
        await self.supervisor.start(service, timeout_seconds=120)

    async def stop_in_mid_work(self) -> int:
        """Send SIGTERM while something is begun and not done; return the exit code."""
        async with asyncio.timeout(SETTLE_SECONDS):
            while not await self.under_way():  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.01)
        self.supervisor.send_signal(self.kind, signal.SIGTERM)
        async with asyncio.timeout(SETTLE_SECONDS):
            return await self.supervisor.wait(self.kind)

    async def under_way(self) -> int:
        begun, done = await self.counts("begun"), await self.counts("done")
        return sum(begun.values()) - sum(done.values())

    async def counts(self, name: str) -> dict[int, int]:
        found = await self.redis.hgetall(name)
        return {int(number): int(times) for number, times in found.items()}


@asynccontextmanager
async def asking(process: Process, ask: Callable[[int], Awaitable[None]]) -> AsyncGenerator[None]:
    """Ask for work all the time inside the block, a few pieces at once, and wait for their ends after it."""
    ended = asyncio.Event()

    async def keep_asking() -> None:
        while not ended.is_set():
            await ask(next(process.asked))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(keep_asking())
        try:
            yield
        finally:
            ended.set()


async def call(process: Process, client: httpx.AsyncClient, number: int) -> None:
    """Ask an API for one piece of work until it has answered."""
    while True:
        try:
            headers = {"idempotency-key": f"{process.kind} {number}"}
            answer = await client.post(f"http://127.0.0.1:{process.port}/work/{number}", headers=headers)
        except httpx.TransportError:
            if await process.redis.hexists("begun", str(number)):
                process.lost.append(number)
        else:
            if answer.status_code == 200:
                return
            if answer.status_code not in {409, 503}:
                raise AssertionError(f"{answer.status_code}: {answer.text}")
        await asyncio.sleep(0.02)


async def prove(process: Process, ask: Callable[[int], Awaitable[None]], *, times: int) -> str:
    """Stop and start a process, and say in a line what came of it.

    Raises:
        AssertionError: a stop was not in order, or work was lost or done twice.
    """
    codes: list[int] = []
    await process.start()
    async with asking(process, ask):
        for _ in range(times):
            codes.append(await process.stop_in_mid_work())
            await process.start()
    asked = next(process.asked)
    async with asyncio.timeout(SETTLE_SECONDS):
        while sum((await process.counts("done")).values()) < asked:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
    await process.supervisor.stop(process.kind)
    begun, done = await process.counts("begun"), await process.counts("done")
    wrong = [n for n in range(asked) if (begun.get(n), done.get(n)) != (1, 1)]
    told = (
        f"{process.kind}: {times} stops, exit codes {sorted(set(codes))}, {asked} pieces of work,"
        f" {len(wrong)} lost or done twice, {len(process.lost)} answers lost"
    )
    if set(codes) != {0} or wrong or process.lost:
        seen = {n: (begun.get(n), done.get(n)) for n in wrong[:10]}
        raise AssertionError(f"{told}; begun and done: {seen}; lost: {process.lost[:10]}")
    return told


async def run(kinds: list[str], *, times: int, redis_url: str, rabbitmq_url: str, folder: Path) -> None:
    """Prove each of the kinds in turn."""
    async with (
        Redis.from_url(redis_url) as redis,  # without the deadlines of a service
        FakeTelegram() as telegram,
        RobustPublisher(rabbitmq_url, service="stops") as publisher,
        httpx.AsyncClient(timeout=60) as client,
        Supervisor(folder) as supervisor,
    ):
        environment = {
            "REDIS_URL": redis_url,
            "RABBITMQ_URL": rabbitmq_url,
            "BOT_TOKEN": telegram.token,
            "TELEGRAM_API_URL": telegram.url,
        }
        for kind in kinds:
            await redis.delete("begun", "done")
            process = Process(kind, redis, supervisor, environment)

            async def ask(number: int, process: Process = process) -> None:
                if process.kind in {"api", "workers"}:
                    await call(process, client, number)
                    return
                if process.kind == "worker":
                    await publisher.publish(Work(number=number))
                else:
                    telegram.push_text(f"{number}", from_user=TelegramUser(id=1 + number % 50))
                await asyncio.sleep(PAUSE_SECONDS)

            print(await prove(process, ask, times=times), flush=True)  # noqa: T201


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--times", type=int, default=100, help="how often each kind is stopped; 100 by default"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    with LocalServers() as servers, tempfile.TemporaryDirectory() as folder:
        asyncio.run(
            run(
                options.kinds,
                times=options.times,
                redis_url=servers.start("redis", private=True).url,
                rabbitmq_url=servers.start("rabbitmq", private=True).url,
                folder=Path(folder),
            )
        )


if __name__ == "__main__":
    main()
