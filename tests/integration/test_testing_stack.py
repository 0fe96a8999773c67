"""A stack runs an application's own processes: here the example's API and worker, on fakes."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from examples.contracts.analytics import USER_STATS
from examples.contracts.users import USERS, UserCreated
from hybridkit.errors import MisuseError, NotFoundError, ServerStartError
from hybridkit.ids import new_id
from hybridkit.testing import FakeDataService, Stack, StackService, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

API, WORKER = "api_service", "worker_service"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack() -> AsyncGenerator[Stack]:
    """One for the file, as processes are slow to start; what a test does to it, it undoes."""
    async with Stack(
        "examples.api_service.main",
        "examples.worker_service.main",
        postgres=FakeDataService({USERS}, unique={USERS: ["email"]}),
        mongo=FakeDataService({USER_STATS}),
        strict=True,
    ) as running:
        yield running


def user_created() -> UserCreated:
    return UserCreated(user_id=new_id(), email="a@example.com", registration_source="web")


async def registered(stack: Stack, **headers: str) -> httpx.Response:
    body = {"email": f"{new_id()}@example.com", "name": "Ada"}
    return await stack.http(API).post("/users", json=body, headers=headers)


async def test_a_request_goes_through_the_real_process_to_the_fake(stack: Stack) -> None:
    """Its row is there for a client, and its log lines are found by the request id."""
    answer = await registered(stack, **{"x-request-id": "stack-1"})
    assert answer.status_code == 201
    client = await stack.postgres_client()
    assert (await client.get(USERS, answer.json()["id"])).name == "Ada"
    [line] = await stack.until(lambda: stack.logs("stack-1"), "the line of the request")
    assert (line.service, line.message) == (API, "POST /users 201")
    assert "POST /users 201" in stack.log_tail(API)


async def test_an_event_that_the_test_publishes_reaches_the_worker(stack: Stack) -> None:
    """And a test that collects sees it too, each time that it is published."""
    event, mongo, publisher = user_created(), await stack.mongo_client(), await stack.publisher()
    collected = await stack.collect(UserCreated)
    await publisher.publish(event)
    await publisher.publish(event)
    await publisher.publish(user_created())

    def is_ours(each: UserCreated) -> bool:
        return each.user_id == event.user_id

    first, second = await collected.wait_for(UserCreated, where=is_ours, count=2)
    assert first.event_id == second.event_id == event.event_id
    stats = await stack.until(
        lambda: mongo.get_or_none(USER_STATS, event.user_id), "the statistics that the worker keeps"
    )
    assert stats.registered
    with pytest.raises(TimeoutError, match=r"3 of user.created; what has arrived: .*'user.created'"):
        await collected.wait_for(UserCreated, where=is_ours, count=3, timeout_seconds=0.01)


async def test_a_killed_process_comes_back_on_its_port(stack: Stack) -> None:
    """Messages wait for the worker meanwhile, and strictness forgives what the test did."""
    event, mongo, publisher = user_created(), await stack.mongo_client(), await stack.publisher()
    url = stack.url(WORKER)
    await stack.kill(WORKER)
    await publisher.publish(event)
    with pytest.raises(NotFoundError):
        await mongo.get(USER_STATS, event.user_id)
    await stack.restart(WORKER)
    await stack.until(
        lambda: mongo.get_or_none(USER_STATS, event.user_id), "the statistics after the restart"
    )
    assert stack.url(WORKER) == url
    assert await stack.stop(WORKER) == 0
    await stack.restart(WORKER)


async def test_a_frozen_process_answers_nothing_until_it_is_thawed(stack: Stack) -> None:
    """Its connections stay open."""
    client = stack.http(API)
    assert (await client.get("/health")).status_code == 200
    stack.freeze(API)
    waiting = asyncio.ensure_future(client.get("/health"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.2)
    stack.thaw(API)
    assert (await waiting).status_code == 200


async def test_what_was_waited_for_in_vain_is_told_with_the_logs(stack: Stack) -> None:
    """The name of each process stands above the end of its log."""
    with pytest.raises(TimeoutError, match=rf"(?s)in vain for a miracle; .*{API}:\n.*{WORKER}:\n"):
        await stack.until(lambda: None, "a miracle", timeout_seconds=0.01)


async def test_a_name_that_nobody_has_is_refused(stack: Stack) -> None:
    """The error has the names that there are."""
    with pytest.raises(MisuseError, match=f"the stack has no process 'api', only {API}, {WORKER}"):
        stack.url("api")
    assert stack.names == [API, WORKER]
    assert stack.url(API) in repr(stack)
    assert stack.management_url(API) != stack.url(API)


async def test_outside_of_its_block_a_stack_says_so() -> None:
    """Nothing has been started."""
    idle = Stack("examples.worker_service.main")
    with pytest.raises(MisuseError, match="inside `async with`"):
        await idle.publisher()


async def test_a_process_that_dies_at_its_start_is_told_with_its_log(tmp_path: Path) -> None:
    """The end of the log says why; the processes that have started are stopped."""
    broken = StackService(
        module="examples.db_postgres_service.main", environment={"DATABASE_POOL_SIZE": "none"}
    )
    with pytest.raises(ServerStartError, match=r"(?s)db_postgres_service ended with exit code 1.*POOL_SIZE"):
        async with Stack(broken, postgres="postgresql://127.0.0.1:1/db", log_directory=tmp_path):
            pytest.fail("it can't start")
    assert (tmp_path / "db_postgres_service.log").exists()


SHAKY = """
import sys
from hybridkit.adapters.worker import run_worker
from hybridkit.observability import get_logger
from hybridkit.settings import ServiceSettings
from contextlib import asynccontextmanager

class Settings(ServiceSettings):
    service_name: str = "shaky"

@asynccontextmanager
async def own(resources):
    get_logger("shaky").error("a leak", where="cellar")
    yield {}
    sys.stdout.flush()

if __name__ == "__main__":
    run_worker(Settings, consumers=[], lifespan=own)
"""


@pytest.fixture
def shaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "shaky.py").write_text(SHAKY)
    monkeypatch.syspath_prepend(tmp_path)
    return "shaky"


async def test_a_strict_stack_fails_for_logged_errors(shaky: str, make_stack: Callable[..., Stack]) -> None:
    """Unless the test has expected them."""
    with pytest.raises(AssertionError, match=r"(?s)the stack ended with problems:.*shaky +a leak"):
        async with make_stack(shaky, strict=True) as stack:
            assert [line.message for line in stack.errors()] == ["a leak"]
    async with make_stack(shaky, strict=True) as stack:
        stack.expect_errors(r"a leak")
        assert stack.errors() == []
    assert await until(lambda: "done", "nothing") == "done"


SWEEPER = """
from hybridkit.adapters.worker import run_worker
from hybridkit.jobs import Jobs
from hybridkit.observability import get_logger
from hybridkit.settings import WorkerSettings

class Settings(WorkerSettings):
    service_name: str = "sweeper"

jobs = Jobs()

@jobs.cron("0 0 29 2 *")
async def sweep(settings: Settings) -> None:
    get_logger("sweeper").info("swept", by=settings.service_name)

@jobs.cron("0 0 29 2 *")
async def stumble() -> None:
    raise LookupError("no broom")

if __name__ == "__main__":
    run_worker(Settings, jobs=jobs)
"""


async def test_a_job_of_a_worker_runs_when_a_test_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_stack: Callable[..., Stack]
) -> None:
    """The call ends with the run, and fails with the run and the worker's log."""
    (tmp_path / "sweeper.py").write_text(SWEEPER)
    monkeypatch.syspath_prepend(tmp_path)
    fakes = {"postgres": FakeDataService({USERS}), "mongo": FakeDataService({USER_STATS})}
    async with make_stack("sweeper", **fakes) as stack:
        await stack.run_job("sweep")
        assert "swept" in stack.log_tail("sweeper", lines=50)
        with pytest.raises(AssertionError, match=r"stumble has failed \(LookupError\); sweeper:\n"):
            await stack.run_job("stumble", service="sweeper")
        with pytest.raises(
            MisuseError, match="no process of the stack has a job 'mop'; there are sweeper: sweep, stum"
        ):
            await stack.run_job("mop")
        assert stack.redis_url.startswith("redis://")
        assert stack.postgres_service_url != stack.mongo_service_url


async def test_what_a_stack_does_not_have_has_no_url(shaky: str, make_stack: Callable[..., Stack]) -> None:
    """The error says what to give to the stack."""
    async with make_stack(shaky) as stack:
        for url, problem in (
            ("redis_url", "give redis=URL"),
            ("rabbitmq_url", "give rabbitmq=URL"),
            ("postgres_service_url", "no data service with PostgresSettings"),
            ("mongo_service_url", "no data service with MongoSettings"),
        ):
            with pytest.raises(MisuseError, match=problem):
                getattr(stack, url)
