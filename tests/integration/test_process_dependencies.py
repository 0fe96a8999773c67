"""Real processes of each kind whose Redis and RabbitMQ are down at the start, in the middle, and at the stop."""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from hybridkit.dev import Service, Supervisor, free_port
from hybridkit.testing import FakeTelegram, FaultProxy


class Process:
    """One of the programs of `tests.proofs._stopping`, behind proxies of its servers."""

    def __init__(self, supervisor: Supervisor, redis: FaultProxy, rabbitmq: FaultProxy) -> None:
        self.supervisor, self.redis, self.rabbitmq = supervisor, redis, rabbitmq
        self.management_port = free_port()

    async def answers(self, status: str, *, down: Collection[str] = ()) -> None:
        """Wait until `/ready` has that status, and these dependencies are down."""
        url = f"http://127.0.0.1:{self.management_port}/ready"
        async with asyncio.timeout(180), httpx.AsyncClient(timeout=10) as client:
            while True:
                try:
                    found: dict[str, Any] = (await client.get(url)).json()
                except httpx.TransportError:
                    found = {"status": "silent", "dependencies": {}}
                states: dict[str, Any] = found["dependencies"]
                if found["status"] == status and {
                    n for n, s in states.items() if s["status"] == "down"
                } >= set(down):
                    return
                await asyncio.sleep(0.05)


@asynccontextmanager
async def proxied(url: str) -> AsyncGenerator[FaultProxy]:
    parts = urlsplit(url)
    async with FaultProxy(parts.hostname or "", parts.port or 0) as proxy:
        yield proxy


@pytest.mark.parametrize("kind", ["api", "worker", "bot"])
async def test_a_process_waits_for_what_is_down_and_stops_without_it(
    kind: str, redis_url: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    """It is not ready until both are there, again ready after an outage, and ends with 0 beside a frozen broker."""
    async with (
        proxied(redis_url) as redis,
        proxied(rabbitmq_url) as rabbitmq,
        FakeTelegram() as telegram,
        Supervisor(tmp_path) as supervisor,
    ):
        process = Process(supervisor, redis, rabbitmq)
        redis.freeze()
        await supervisor.start(
            Service(
                name=kind,
                argv=[sys.executable, "-m", "tests.proofs._stopping", kind],
                environment={
                    "SERVICE_NAME": kind,
                    "PORT": str(free_port()),
                    "MANAGEMENT_PORT": str(process.management_port),
                    "REDIS_URL": redis.url_for(redis_url),
                    "RABBITMQ_URL": rabbitmq.url_for(rabbitmq_url),
                    "BOT_TOKEN": telegram.token,
                    "TELEGRAM_API_URL": telegram.url,
                    "START_BUDGET_SECONDS": "170",
                    "SHUTDOWN_SECONDS": "5",
                },
            )
        )
        await process.answers("starting")
        redis.let_pass()
        await process.answers("ready")
        for proxy, name in ((redis, "redis"), (rabbitmq, "rabbitmq")):
            proxy.freeze()
            proxy.reset()
            await process.answers("not_ready", down={name})
            proxy.let_pass()
            await process.answers("ready")
        rabbitmq.freeze()
        redis.freeze()
        supervisor.send_signal(kind, signal.SIGTERM)
        async with asyncio.timeout(120):
            assert await supervisor.wait(kind) == 0, supervisor.log_tail(kind, lines=50)


async def test_a_process_that_waits_in_vain_ends_with_a_report(
    redis_url: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    """The start budget ends, and the log says what was missing, and not its URL."""
    nothing = f"redis://:secret-of-redis@127.0.0.1:{free_port()}/0"
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(
            Service(
                name="worker",
                argv=[sys.executable, "-m", "tests.proofs._stopping", "worker"],
                environment={
                    "SERVICE_NAME": "worker",
                    "MANAGEMENT_PORT": str(free_port()),
                    "REDIS_URL": nothing,
                    "RABBITMQ_URL": rabbitmq_url,
                    "START_BUDGET_SECONDS": "1",
                },
            )
        )
        async with asyncio.timeout(120):
            assert await supervisor.wait("worker") == 1
        log = supervisor.log_tail("worker", lines=50)
        assert "redis" in log
        assert "secret-of-redis" not in log
