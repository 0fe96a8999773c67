"""Several workers of one API as real processes under Gunicorn: served together, counted together, stopped in order."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from hybridkit.dev import Service, Supervisor, free_port
from tests.helpers import until

WORKERS = 4

PROGRAM = """
import asyncio, os, sys
from contextlib import asynccontextmanager
from hybridkit.adapters import _running
from hybridkit.adapters.fastapi import create_app, run_api
from hybridkit.ids import new_id
from hybridkit.settings import ServiceSettings

_running.UNREADY_SECONDS = 0.5

@asynccontextmanager
async def lifespan(app):
    if "--fails-to-start" in sys.argv:
        raise RuntimeError("no way")
    yield
    print(f"closed in order {os.getpid()}", flush=True)

app = create_app(ServiceSettings, title="Test", lifespan=lifespan)

@app.get("/process")
async def process():
    return os.getpid()

@app.get("/ids")
async def ids():
    return [new_id() for _ in range(100)]

@app.get("/wait/{seconds}")
async def wait(seconds: float):
    print("waiting", flush=True)
    await asyncio.sleep(seconds)
    return os.getpid()

@app.get("/metric_files")
async def metric_files():
    return os.listdir(os.environ["PROMETHEUS_MULTIPROC_DIR"])

if __name__ == "__main__":
    run_api(app, workers=4)
"""


class Api:
    """The program under the supervisor; each request comes on a connection of its own."""

    def __init__(self, supervisor: Supervisor, folder: Path) -> None:
        self.supervisor = supervisor
        self.folder = folder
        self.port, self.management_port = free_port(), free_port()
        (folder / "many.py").write_text(PROGRAM)

    async def start(self, *arguments: str, until_ready: bool = True, **environment: str) -> None:
        service = Service(
            name="api",
            argv=[sys.executable, *(arguments or ("-m", "many"))],
            environment={
                "SERVICE_NAME": "api",
                "PORT": str(self.port),
                "MANAGEMENT_PORT": str(self.management_port),
                "PYTHONPATH": str(self.folder),
                **environment,
            },
            ready_url=f"http://127.0.0.1:{self.management_port}/ready" if until_ready else None,
        )
        await self.supervisor.start(service, timeout_seconds=180)

    async def get(self, path: str, *, port: int | None = None) -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as client:
            return await client.get(f"http://127.0.0.1:{port or self.port}{path}")

    async def workers(self) -> set[int]:
        """The process ids of all workers, once each of them has answered."""
        found: set[int] = set()
        async with asyncio.timeout(180):
            while len(found) < WORKERS:
                answers = await asyncio.gather(*(self.get("/wait/0.05") for _ in range(WORKERS)))
                found |= {answer.json() for answer in answers}
        return found

    async def served(self) -> int:
        """The number of answers to `/process`, as `/metrics` adds it up."""
        lines = (await self.get("/metrics", port=self.management_port)).text.splitlines()
        counted = 'hybridkit_http_server_duration_seconds_count{method="GET",route="/process",status="200"}'
        return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(counted))

    def log(self) -> str:
        return self.supervisor.log_tail("api", lines=10_000)

    async def until_logged(self, text: str, *, times: int = 1) -> None:
        await until(lambda: self.log().count(text) >= times)

    async def exit_code(self) -> int:
        async with asyncio.timeout(180):
            return await self.supervisor.wait("api")


@pytest.fixture
async def api(tmp_path: Path) -> AsyncGenerator[Api]:
    async with Supervisor(tmp_path / "logs") as supervisor:
        yield Api(supervisor, tmp_path)


async def test_a_worker_that_dies_is_replaced_and_all_stop_in_order(api: Api) -> None:
    """Ids differ between workers, counts are of all of them, also of a killed one; SIGTERM lets all requests end."""
    await api.start()
    before = await api.workers()
    answers = await asyncio.gather(*(api.get("/ids") for _ in range(20)))
    ids = [id_ for answer in answers for id_ in answer.json()]
    assert len(set(ids)) == len(ids)

    for _ in range(20):
        await api.get("/process")
    assert await api.served() == 20
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    await until(lambda: api.log().count("started") > WORKERS)
    after = await api.workers()
    assert len(after - before) == 1
    await api.get("/process")
    assert await api.served() == 21
    files = (await api.get("/metric_files")).json()
    assert "counter_0.db" in files
    assert not [name for name in files if name.endswith(f"_{victim}.db")]

    begun = api.log().count("waiting")
    waiting = [asyncio.create_task(api.get("/wait/1")) for _ in range(2 * WORKERS)]
    await api.until_logged("waiting", times=begun + len(waiting))
    api.supervisor.send_signal("api", signal.SIGTERM)
    await api.until_logged("signal received")
    assert (await api.get("/ready", port=api.management_port)).status_code == 503
    assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200] * len(waiting)
    assert await api.exit_code() == 0
    assert {worker for worker in after if f"closed in order {worker}" in api.log()} == after


async def test_gunicorns_own_command_serves_the_same_way(api: Api) -> None:
    """SIGQUIT after SIGTERM ends what still runs, and the resources are closed nevertheless."""
    await api.start(
        *("-m", "gunicorn", "many:app", "--no-control-socket", "--workers", str(WORKERS)),
        *("--worker-class", "hybridkit.adapters.gunicorn.ApiWorker", "--bind", f"127.0.0.1:{api.port}"),
    )
    workers = await api.workers()
    await api.get("/process")
    assert await api.served() == 1
    request = asyncio.create_task(api.get("/wait/600"))
    begun = api.log().count("waiting")
    await api.until_logged("waiting", times=begun + 1)
    api.supervisor.send_signal("api", signal.SIGTERM)
    await api.until_logged("signal received", times=WORKERS)
    api.supervisor.send_signal("api", signal.SIGQUIT)
    assert await api.exit_code() == 0
    with pytest.raises(httpx.TransportError):
        await request
    assert {worker for worker in workers if f"closed in order {worker}" in api.log()} == workers


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        ([], {"SHUTDOWN_SECONDS": "soon"}, 1, "SHUTDOWN_SECONDS"),
        (["--fails-to-start"], {}, 3, "no way"),
    ],
    ids=["settings", "lifespan"],
)
async def test_workers_that_can_not_start_end_with_one_report(
    api: Api, arguments: list[str], environment: dict[str, str], code: int, words: str
) -> None:
    """Nothing is tried again and again: whoever started it sees why."""
    await api.start("-m", "many", *arguments, until_ready=False, **environment)
    assert await api.exit_code() == code
    assert words in api.log()
    assert "HaltServer" not in api.log()
