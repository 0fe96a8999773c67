"""The five services as five processes on real servers: the demo is the test."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from hybridkit.dev._processes._process import ProcessId, descendants, find_process

ROOT = Path(__file__).parents[2]

# A demo that hangs says itself what it waited for; this only bounds a machine that is far too slow.
pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("unmeasured_test")]


@pytest.fixture
def environment(postgres_url: str, mongo_url: str, redis_url: str, rabbitmq_url: str) -> dict[str, str]:
    return {
        **os.environ,
        "HYBRIDKIT_POSTGRES_URL": postgres_url,
        "HYBRIDKIT_MONGO_URL": mongo_url,
        "HYBRIDKIT_REDIS_URL": redis_url,
        "HYBRIDKIT_RABBITMQ_URL": rabbitmq_url,
    }


async def start_demo(environment: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "examples.demo", *arguments),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def test_what_arrives_once_or_twice_happens_once_in_all_five_services(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Every check of the demo holds on real servers."""
    demo = await start_demo(environment, "--report", str(tmp_path / "report.json"))
    output, _ = await demo.communicate()
    assert demo.returncode == 0, output.decode()
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    assert [check["name"] for check in report["checks"]] == [
        "POST /users is answered with 201",
        "the user is a row in PostgreSQL",
        "the relay has published user.created",
        "the worker has put analytics into MongoDB",
        "the bot has welcomed the user",
        "/start is answered, by name",
        "the answer is the first one, replayed",
        "there is one row",
        "the key with another body is refused",
        "it is recognised, and answered once",
        "the answer is for the one who asked",
        "worker and bot recognise it",
        "the analytics were not touched again",
        "nobody is welcomed twice",
        "all of this was one event",
        "all five services tell of it",
        "every process has ended with exit code 0",
    ]
    assert any("db_mongo_service" in line and "PUT /v1/user_stats/" in line for line in report["story"])


@pytest.mark.parametrize("chapter", ["Services", "A registration"])
async def test_a_signal_at_any_time_stops_everything(environment: dict[str, str], chapter: str) -> None:
    """Whatever chapter the demo is in, no process below it survives."""
    demo = await start_demo(environment)
    assert demo.stdout is not None
    while chapter not in (line := (await demo.stdout.readline()).decode()):
        assert line, "the demo ended by itself"
    async with asyncio.timeout(60):
        while not (children := processes_below(demo.pid)):  # noqa: ASYNC110  # another process's children
            await asyncio.sleep(0.01)
    demo.send_signal(signal.SIGTERM)
    output, _ = await demo.communicate()
    assert demo.returncode == 130, output.decode()
    assert "Interrupted; everything is stopped." in output.decode()
    assert [child for child in children if child.is_alive()] == []


def processes_below(pid: int) -> list[ProcessId]:
    demo = find_process(pid)
    return descendants([demo])[1:] if demo else []
