"""`run_api` as a real process: how it serves, stops, hurries and refuses to start."""

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest

from hybridkit.dev import Service, Supervisor, free_port
from hybridkit.settings import ServiceSettings
from tests.helpers import until

PROGRAM = """
import asyncio, sys
from contextlib import asynccontextmanager
from hybridkit.adapters import _running
from hybridkit.adapters.fastapi import create_app, run_api
from hybridkit.security import OPEN
from hybridkit.settings import ServiceSettings

_running.UNREADY_SECONDS = 0.5

@asynccontextmanager
async def lifespan(app):
    print("opening", flush=True)
    if "hang_at_start" in sys.argv:
        await asyncio.sleep(600)
    yield
    print("closed in order", flush=True)

app = create_app(ServiceSettings, title="Test", lifespan=lifespan, security=OPEN)

@app.get("/wait/{seconds}")
async def wait(seconds: float):
    print("waiting", flush=True)
    await asyncio.sleep(seconds)
    return "done"

run_api(app)
print("main returned", flush=True)
"""


class Api:
    """The program under the supervisor, and a client for it."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.port = free_port()
        self.management_url = (
            f"http://127.0.0.1:{ServiceSettings(service_name='api', port=self.port).management_port}"
        )
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=10)

    async def start(self, *arguments: str, until_ready: bool = True, **environment: str) -> None:
        service = Service(
            name="api",
            argv=[sys.executable, "-c", PROGRAM, *arguments],
            environment={"SERVICE_NAME": "api", "PORT": str(self.port), **environment},
            ready_url=f"http://127.0.0.1:{self.port}/ready" if until_ready else None,
        )
        await self.supervisor.start(service)

    async def until_logged(self, text: str) -> None:
        await until(lambda: text in self.log())

    def log(self) -> str:
        return self.supervisor.log_tail("api", lines=1000)

    def signal(self, number: signal.Signals) -> None:
        self.supervisor.send_signal("api", number)

    async def exit_code(self) -> int:
        async with asyncio.timeout(60):
            return await self.supervisor.wait("api")


@pytest.fixture
async def api(tmp_path: Path) -> AsyncGenerator[Api]:
    async with Supervisor(tmp_path) as supervisor:
        program = Api(supervisor)
        async with program.client:
            yield program


async def test_a_running_request_is_finished_and_everything_closed_before_exit_code_0(api: Api) -> None:
    """The request gets its response after SIGTERM."""
    await api.start()
    request = asyncio.create_task(api.client.get("/wait/0.5"))
    await api.until_logged("waiting")
    api.signal(signal.SIGTERM)
    assert (await request).json() == "done"
    assert await api.exit_code() == 0
    assert "closed in order" in api.log()
    assert api.log().endswith("main returned")


async def test_readiness_turns_red_while_the_socket_is_still_open(api: Api) -> None:
    """In production requests are served for some time after SIGTERM; only the management port has metrics then."""
    await api.start(ENVIRONMENT="production")
    api.signal(signal.SIGTERM)
    await api.until_logged("signal received")
    draining = await api.client.get("/ready")
    still_served = await api.client.get("/wait/0")
    managed = [
        await api.client.get(f"{api.management_url}{path}")
        for path in ("/ready", "/metrics", "/debug/stacks")
    ]
    assert [answer.status_code for answer in managed] == [503, 200, 404]
    assert managed[0].json() == {"status": "draining", "dependencies": {}}
    assert (await api.client.get("/metrics")).status_code == 404
    assert (draining.status_code, draining.json()["status"]) == (503, "draining")
    assert still_served.status_code == 200
    assert await api.exit_code() == 0


async def test_a_second_signal_gives_up_what_runs_and_still_closes(api: Api) -> None:
    """The running request loses its connection, and the resources are closed in order."""
    await api.start()
    request = asyncio.create_task(api.client.get("/wait/600"))
    await api.until_logged("waiting")
    api.signal(signal.SIGTERM)
    await api.until_logged("signal received")
    api.signal(signal.SIGINT)
    assert await api.exit_code() == 0
    assert "closed in order" in api.log()
    with pytest.raises(httpx.TransportError):
        await request


async def test_a_request_that_outlives_the_budget_is_given_up(api: Api) -> None:
    """It is answered with the error for an unknown outcome."""
    await api.start(SHUTDOWN_SECONDS="2")
    request = asyncio.create_task(api.client.get("/wait/600"))
    await api.until_logged("waiting")
    api.signal(signal.SIGTERM)
    assert await api.exit_code() == 0
    assert "closed in order" in api.log()
    assert (await request).json()["code"] == "OUTCOME_UNKNOWN"


async def test_a_signal_during_the_start_ends_it(api: Api) -> None:
    """The exit code is 0, as the process was asked to stop."""
    await api.start("hang_at_start", until_ready=False)
    await api.until_logged("opening")
    api.signal(signal.SIGTERM)
    assert await api.exit_code() == 0
    assert "stopped before the start was complete" in api.log()


async def test_unusable_settings_are_one_report_and_exit_code_1(api: Api) -> None:
    """The report names all problems, and has no traceback."""
    await api.start(until_ready=False, PORT="none", LOG_LEVEL="LOUD")
    assert await api.exit_code() == 1
    report = api.log()
    assert "ServiceSettings has 2 problems" in report
    assert "Traceback" not in report


async def test_a_taken_port_ends_the_start(api: Api) -> None:
    """The log says that the address is in use."""
    blocker = await asyncio.start_server(lambda *_: None, "127.0.0.1", api.port)
    async with blocker:
        await api.start(until_ready=False)
        assert await api.exit_code() != 0
    assert "address already in use" in api.log()
