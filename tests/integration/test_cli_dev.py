"""`hybridkit dev` keeps the processes of a project running, and leaves nothing behind."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hybridkit._cli._app import app
from hybridkit._cli._dev._processes import DevProcess, State
from hybridkit.dev import Service, Supervisor, free_port
from hybridkit.dev._processes._process import descendants, find_process

pytestmark = pytest.mark.timeout(120)

# A process that is ready at once, without the second that the imports of a worker take.
SERVICE = """
if __name__ == "__main__":
    import os
    from http.server import BaseHTTPRequestHandler, HTTPServer
    class Ready(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response({status})
            self.end_headers()
        def log_message(self, *_):
            pass
    print("{words}", os.environ["SERVICE_NAME"], os.environ["PORT"], os.environ.get("COLOR"), flush=True)
    HTTPServer(("127.0.0.1", int(os.environ["MANAGEMENT_PORT"])), Ready).serve_forever()
else:
    from hybridkit.settings import {kind}
    class Settings({kind}):
        service_name: str = "{name}"
        port: int = {port}
"""
MANIFEST = """
name = "shop"

[services.db_service]
module = "db"

[services.api_service]
module = "api"
environment = { COLOR = "blue" }
"""


def service(name: str, *, words: str = "hello", status: int = 200, kind: str = "ServiceSettings") -> str:
    return SERVICE.format(name=name, words=words, status=status, kind=kind, port=free_port())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two services, in whose folder the command is run."""
    (tmp_path / "hybridkit.toml").write_text(MANIFEST)
    (tmp_path / "db.py").write_text(service("db_service"))
    (tmp_path / "api.py").write_text(service("api_service"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("db", "api"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def has_argument(pid: int, argument: bytes) -> bool:
    return argument in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def hybridkit_dev(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["dev", *arguments])


class Command:
    """The command as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def until_lines(self, *wanted: tuple[str, str]) -> list[str]:
        """Wait for further lines, each about a process and with some words, in any order."""
        assert self.process.stdout is not None
        missing, found = list(wanted), list[str]()
        try:
            async with asyncio.timeout(60):
                while missing and (line := (await self.process.stdout.readline()).decode()):
                    self.lines.append(line)
                    for each in missing:
                        if line.split()[:1] == [each[0]] and each[1] in line:
                            missing.remove(each)
                            found.append(line)
                            break
        except TimeoutError:
            pass
        assert missing == [], "".join(self.lines)
        return found


@pytest.fixture
async def command(project: Path) -> AsyncGenerator[Command]:
    """`hybridkit dev` in the project."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from hybridkit._cli import main; main()", "dev"),
        cwd=project,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    yield Command(process)
    if process.returncode is None:
        process.kill()
        await process.wait()


async def test_processes_run_until_they_are_stopped(command: Command, project: Path) -> None:
    """A changed file and an end start a process again, a signal stops all, and nothing is left."""
    ready = [("db_service", "── is ready"), ("api_service", "── is ready")]
    lines = await command.until_lines(("api_service", "hello"), *ready)
    assert any("blue" in line for line in lines)  # of its table in the manifest
    own = find_process(command.process.pid)
    assert own is not None
    (project / "api.py").write_text(service("api_service", words="changed"))
    await command.until_lines(("api_service", "── starts again, as api.py has changed"))
    await command.until_lines(("api_service", "changed api_service"), ready[1])
    os.kill(next(each.pid for each in descendants([own]) if has_argument(each.pid, b"db")), signal.SIGKILL)
    (ended,) = await command.until_lines(("db_service", "── ended with exit code -9"))
    assert "again in 1 s. Its last words: hello db_service" in ended
    await command.until_lines(ready[0])
    tree = descendants([own])
    assert len(tree) > 1
    command.process.send_signal(signal.SIGTERM)
    await command.until_lines(("──", "stopping"))
    assert await command.process.wait() == 0
    assert [each for each in tree if each.is_alive()] == []


async def test_a_second_signal_kills_what_still_runs(command: Command, project: Path) -> None:
    """A process that does not listen to SIGTERM holds nobody up."""
    deaf = service("api_service", words="deaf").replace(
        "import os\n", "import os, signal\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n", 1
    )
    await command.until_lines(("api_service", "── is ready"))
    (project / "api.py").write_text(deaf)
    await command.until_lines(("api_service", "deaf api_service"), ("api_service", "── is ready"))
    command.process.send_signal(signal.SIGINT)
    await command.until_lines(("──", "stopping"))
    command.process.send_signal(signal.SIGINT)
    async with asyncio.timeout(30):  # half of what the process has to stop in order
        assert await command.process.wait() == 0


def test_a_check_ends_when_all_are_ready(project: Path) -> None:
    """With exit code 0; the logs stay where that is asked for."""
    result = hybridkit_dev("--check", "--logs", str(project / "logs"))
    assert (result.exit_code, "all are ready" in result.output) == (0, True), result.output
    assert "hello api_service" in (project / "logs" / "api_service.log").read_text()


def test_a_process_that_can_not_start_fails_the_check(project: Path) -> None:
    """With exit code 1 and the end of its log; the others are not started."""
    (project / "db.py").write_text(
        f"print('no luck today')\nif __name__ == '__main__':\n    raise SystemExit(3)\n{service('db_service')}"
    )
    result = hybridkit_dev("--check")
    assert result.exit_code == 1, result.output
    assert "db_service ended with exit code 3; its log ends with:\nno luck today" in result.output


@pytest.mark.parametrize(
    ("arguments", "started"),
    [
        (["--only", "db_service"], ["db_service"]),
        (["--without", "db_service"], ["api_service"]),
        (["api"], ["api_service"]),
    ],
    ids=["only", "without", "modules"],
)
def test_services_are_chosen(project: Path, arguments: list[str], started: list[str]) -> None:
    """By name, or as modules in place of those of the manifest."""
    result = hybridkit_dev("--check", *arguments)
    assert result.exit_code == 0, result.output
    ready = [line.split()[0] for line in result.output.splitlines() if line.endswith("is ready")]
    assert ready == started


def test_ports_are_moved_and_servers_given(project: Path) -> None:
    """A taken port is replaced, and a server with a URL is not started."""
    (project / "db.py").write_text(service("db_service", kind="RedisSettings"))
    result = hybridkit_dev(
        "--check", "--only", "db_service", "--port-offset", "70000", "--url", "redis=redis://127.0.0.1:1/0"
    )
    assert result.exit_code == 0, result.output
    assert "redis://127.0.0.1:1/0" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "bot"], "there is no service bot, only db_service, api_service"),
        (["--url", "mysql=x"], "KIND one of postgres, mongo, redis, rabbitmq"),
        (["json"], "one settings class"),
        (["no.such"], "importing no.such"),
    ],
)
def test_wrong_use_starts_nothing(project: Path, arguments: list[str], words: str) -> None:
    """It has exit code 2, and says what is known."""
    result = hybridkit_dev(*arguments)
    assert (result.exit_code, words in " ".join(result.output.split())) == (2, True), result.output


def test_a_project_needs_a_manifest(project: Path) -> None:
    """A missing or wrong one is wrong use."""
    (project / "hybridkit.toml").write_text("")
    wrong = hybridkit_dev()
    (project / "hybridkit.toml").unlink()
    missing = hybridkit_dev()
    assert (wrong.exit_code, missing.exit_code) == (2, 2)
    assert "services: Field required" in wrong.output
    assert "there is no hybridkit.toml here or above" in missing.output


class Told(list[tuple[str, str]]):
    """What is said about processes."""

    def __call__(self, name: str, words: str) -> None:
        self.append((name, words))


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncGenerator[Supervisor]:
    async with Supervisor(tmp_path) as supervisor:
        yield supervisor


def sleeper(supervisor: Supervisor, told: Told) -> DevProcess:
    return DevProcess(Service(name="sleeper", argv=["sleep", "600"]), supervisor, told)


async def test_a_stopped_process_stays_stopped(supervisor: Supervisor) -> None:
    """Until it is started; a restart is for those that run."""
    process = sleeper(supervisor, told := Told())
    await process.restart()
    await process.stop()
    assert process.state is State.STOPPED
    await process.start()
    await process.start()
    await process.until(State.READY)
    await process.stop()
    assert process.state.value == "stopped"
    assert told == [("sleeper", "is ready")]
    assert process.restarts == 0


async def test_a_killed_process_comes_back(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is counted; the pause before it doubles up to half a minute, and is short after a long life."""
    monkeypatch.setattr("hybridkit._cli._dev._processes.FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("hybridkit._cli._dev._processes.MAX_PAUSE_SECONDS", 0.003)
    process = sleeper(supervisor, told := Told())
    await process.start()
    for stable in (60.0, 60.0, 60.0, 0.0):
        monkeypatch.setattr("hybridkit._cli._dev._processes.STABLE_SECONDS", stable)
        await process.until(State.READY)
        process.kill()
        await process.until(State.ENDED)
    assert process.restarts == 4
    await process.stop()
    pauses = [words.partition("again in ")[2].split()[0] for _, words in told if "ended" in words]
    assert pauses == ["0.001", "0.002", "0.003", "0.001"]
