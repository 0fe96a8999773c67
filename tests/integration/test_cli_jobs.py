"""`hybridkit jobs` on a real Redis, with a worker's jobs running beside it."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Iterator
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from hybridkit._cli._app import app
from hybridkit.coordination import Redis, connect_redis
from hybridkit.errors import RejectedError
from hybridkit.jobs import Jobs, Slot, _runner
from hybridkit.jobs._records import JobRecord

pytestmark = pytest.mark.real_server


class Declared(ModuleType):
    """A module with jobs, and what they have done."""

    def __init__(self) -> None:
        super().__init__("jobs_of_the_test")
        self.slots: list[Slot] = []
        self.jobs = Jobs()
        self.jobs.cron("0 3 1 1 *", name="yearly")(self.work)
        self.jobs.every(days=366, name="failing")(self.fail)

    async def work(self, slot: Slot) -> None:
        self.slots.append(slot)

    async def fail(self) -> None:
        raise RejectedError("no")


@pytest.fixture
def declared() -> Iterator[Declared]:
    module = Declared()
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    async with connect_redis(redis_url, timeout_seconds=10.0) as redis:
        yield redis


async def jobs(redis_url: str, *arguments: str) -> Result:
    """Run the command in a thread, as it has an event loop of its own."""
    environment = {"REDIS_URL": redis_url, "SERVICE_NAME": "worker"}
    return await asyncio.to_thread(CliRunner().invoke, app, ["jobs", *arguments], env=environment)


async def test_a_job_is_run_by_a_worker_and_listed_with_its_end(
    declared: Declared, redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command waits for the end, and its exit code tells how the run has ended."""
    monkeypatch.setattr(_runner, "POLL_SECONDS", 0.02)
    async with declared.jobs.running(redis, service="worker"):
        done = await jobs(redis_url, "run", declared.__name__, "yearly")
        assert (done.exit_code, done.output[:17]) == (0, "yearly: done in 0")
        shown = await jobs(redis_url, "list", declared.__name__)
        assert shown.exit_code == 0
        failed = await jobs(redis_url, "run", f"{declared.__name__}:jobs", "failing", "--json")
        assert failed.exit_code == 1
    assert [slot.is_manual for slot in declared.slots] == [True]
    lines = [line.split() for line in shown.output.splitlines()]
    assert lines[0] == ["JOB", "SCHEDULE", "NEXT", "LAST", "OUTCOME", "SECONDS", "NOW"]
    assert lines[1][0] == "yearly"
    assert lines[1][-3:] == ["done", "0.0", "-"]
    assert lines[2][-4:] == ["-", "-", "-", "-"]
    document = json.loads(failed.output)
    assert (document["outcome"], document["error"]) == ("failed", "RejectedError")
    listed = await jobs(redis_url, "list", declared.__name__, "--json")
    assert listed.exit_code == 1
    assert [each["last"]["outcome"] for each in json.loads(listed.output)] == ["done", "failed"]
    assert "failed (RejectedError)" in (await jobs(redis_url, "list", declared.__name__)).output


async def test_a_run_that_no_worker_begins_is_withdrawn(
    declared: Declared, redis: Redis, redis_url: str
) -> None:
    """The error says what to look at, and nothing runs later."""
    done = await jobs(redis_url, "run", declared.__name__, "yearly", "--take", "0")
    assert done.exit_code == 1
    assert "no worker of worker has begun yearly" in done.output
    state = await JobRecord(redis, service="worker", job="yearly").look()
    assert state.requested_at is None


async def test_an_unknown_job_is_wrong_use(declared: Declared, redis_url: str) -> None:
    """The error names those that are there."""
    done = await jobs(redis_url, "run", declared.__name__, "monthly")
    assert done.exit_code == 2
    assert "yearly, failing" in " ".join(done.output.replace("│", " ").split())
