"""A process whose servers are not there: it waits, says for what, and ends within its budget or when it is told to."""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from hybridkit.dev import Service, Supervisor, free_port

# Importing Aiogram takes seconds, and on a machine with much to do many of them.
pytestmark = pytest.mark.timeout(300)

PROGRAMS = {
    "worker": """
from hybridkit.adapters.worker import run_worker
from hybridkit.messaging import RobustConsumer
from hybridkit.settings import WorkerSettings
run_worker(WorkerSettings, consumers=[RobustConsumer("worker.nothing")])
""",
    "bot": """
from aiogram import Dispatcher
from hybridkit.adapters.aiogram import run_bot
from hybridkit.settings import BotSettings
run_bot(Dispatcher(), BotSettings)
""",
    "api": """
from hybridkit.adapters.fastapi import create_app, run_api
from hybridkit.settings import ApiSettings
run_api(create_app(ApiSettings, title="Test"))
""",
}


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncGenerator[Supervisor]:
    async with Supervisor(tmp_path) as running:
        yield running


async def start(supervisor: Supervisor, kind: str, *, budget_seconds: int) -> None:
    nobody = free_port()
    environment = {
        "SERVICE_NAME": kind,
        "PORT": "0",
        "START_BUDGET_SECONDS": str(budget_seconds),
        "REDIS_URL": f"redis://127.0.0.1:{nobody}/0",
        "RABBITMQ_URL": f"amqp://ada:hunter2@127.0.0.1:{nobody}/",
        "BOT_TOKEN": "7:token",
    }
    service = Service(name=kind, argv=[sys.executable, "-c", PROGRAMS[kind]], environment=environment)
    await supervisor.start(service)


@pytest.mark.parametrize("kind", PROGRAMS)
async def test_a_start_that_takes_too_long_is_given_up_with_a_report(
    supervisor: Supervisor, kind: str
) -> None:
    """The report names each missing server, without passwords and traceback."""
    await start(supervisor, kind, budget_seconds=1)
    assert await supervisor.wait(kind) == 1
    log = supervisor.log_tail(kind, lines=1000)
    assert "not everything came up within 1 s" in log
    assert "redis:" in log
    assert "rabbitmq:" in log
    assert "hunter2" not in log
    assert "Traceback" not in log


async def test_a_signal_while_it_waits_ends_it_well(supervisor: Supervisor) -> None:
    """The exit code is 0, as the process was asked to stop."""
    await start(supervisor, "worker", budget_seconds=600)
    while "waiting" not in supervisor.log_tail("worker"):  # noqa: ASYNC110  # another process's file
        await asyncio.sleep(0.01)
    supervisor.send_signal("worker", signal.SIGTERM)
    assert await supervisor.wait("worker") == 0
    assert "stopped before the start was complete" in supervisor.log_tail("worker")
