"""The supervisor starts, watches and stops real processes."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from hybridkit.dev import Service, Supervisor, free_port, merge_logs
from hybridkit.errors import MisuseError, ServerStartError
from tests.helpers import until

SERVICE = """
import http.server, os, signal, sys

class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ready" else 404)
        self.end_headers()

    def log_message(self, *_):
        pass

def stop(*_):
    print("stopped", sys.argv[1], flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
print("hello from", os.environ["GREETER"], flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Ready).serve_forever()
"""


def service(name: str, *, path: str = "/ready") -> Service:
    port = free_port()
    return Service(
        name=name,
        argv=[sys.executable, "-c", SERVICE, name, str(port)],
        environment={"GREETER": name},
        ready_url=f"http://127.0.0.1:{port}{path}",
    )


async def test_services_run_until_stopped_and_tell_their_exit_codes(tmp_path: Path) -> None:
    """Each has a log with its output."""
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(service("first"), service("second"))
        supervisor.check_running()
        assert await supervisor.stop() == {"first": 0, "second": 0}
        supervisor.check_running()
    assert (tmp_path / "first.log").read_text() == "hello from first\nstopped first\n"
    assert set(supervisor.logs) == {"first", "second"}


async def test_one_service_can_be_stopped_alone(tmp_path: Path) -> None:
    """The other one still runs, and the check accepts the one that was stopped."""
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(service("first"), service("second"))
        assert await supervisor.stop("second") == {"second": 0}
        supervisor.check_running()
        assert "running=['first']" in repr(supervisor)


async def test_leaving_stops_what_still_runs(tmp_path: Path) -> None:
    """A service gets SIGTERM at the end of the block."""
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(service("only"))
    assert "stopped only" in (tmp_path / "only.log").read_text()


async def test_a_service_that_ends_is_reported_with_its_log_tail(tmp_path: Path) -> None:
    """The error has the exit code, too."""
    broken = Service(
        name="broken",
        argv=[sys.executable, "-c", "import sys; print('no database'); sys.exit(3)"],
        ready_url=f"http://127.0.0.1:{free_port()}/ready",
    )
    async with Supervisor(tmp_path) as supervisor:
        with pytest.raises(ServerStartError, match=r"(?s)broken ended with exit code 3.*no database"):
            await supervisor.start(broken)


async def test_log_tails_are_readable_where_they_were_json(tmp_path: Path) -> None:
    """A JSON line becomes time, level, message and the fields of interest."""
    line = (
        '{"@timestamp":"2026-11-21T10:00:00.100Z","log.level":"error","message":"no database",'
        '"service.name":"users","error.message":"refused","error.stack_trace":"Traceback …"}'
    )
    async with Supervisor(tmp_path) as supervisor:
        (tmp_path / "users.log").write_text(f"printed\n{line}\n")
        words = supervisor.log_tail("users")
    assert words == "printed\n10:00:00.100  error     no database  error.message=refused"


async def test_a_service_that_is_never_ready_is_reported_with_its_log_tail(tmp_path: Path) -> None:
    """The error names the service and the time that it had."""
    (tmp_path / "slow.log").write_text("waiting for a database\n")  # a log is continued, not begun anew
    async with Supervisor(tmp_path) as supervisor:
        with pytest.raises(ServerStartError, match=r"(?s)slow not ready after 0.1 s.*waiting for a database"):
            await supervisor.start(service("slow", path="/other"), timeout_seconds=0.1)


async def test_what_ignores_the_signal_is_killed_at_the_end_of_the_budget(tmp_path: Path) -> None:
    """The exit code is that of SIGKILL."""
    script = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    deaf = Service(name="deaf", argv=[sys.executable, "-c", script])
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(deaf)
        await until(lambda: "deaf" in supervisor.log_tail("deaf"))
        assert await supervisor.stop(timeout_seconds=0.1) == {"deaf": -signal.SIGKILL}


async def test_two_services_of_one_name_are_refused(tmp_path: Path) -> None:
    """Their logs would be one file."""
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(service("one"))
        with pytest.raises(MisuseError, match="one is running already"):
            await supervisor.start(service("one"))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's promise is Linux's")
async def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """After a `kill -9` of the supervisor its service ends."""
    parent_script = f"""
import asyncio, pathlib, sys
from hybridkit.dev import Service, Supervisor
async def main():
    async with Supervisor(pathlib.Path({str(tmp_path)!r})) as supervisor:
        script = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        await supervisor.start(Service(name="child", argv=[sys.executable, "-c", script]))
        while not supervisor.log_tail("child"):
            await asyncio.sleep(0.01)
        print(supervisor.log_tail("child"), flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent_script, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await until(lambda: not _runs(child))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_logs_are_merged_by_request_id_in_order_of_time(tmp_path: Path) -> None:
    """Lines of other requests, and lines that are not JSON, are left out."""
    api, worker = tmp_path / "api.log", tmp_path / "worker.log"
    api.write_text(
        '{"@timestamp": "2026-11-21T10:00:00.100Z", "message": "asked", "request_id": "r-1"}\n'
        '{"@timestamp": "2026-11-21T10:00:00.900Z", "message": "answered", "request_id": "r-1"}\n'
        '{"@timestamp": "2026-11-21T10:00:00.200Z", "message": "asked", "request_id": "r-2"}\n'
    )
    worker.write_text(
        "a print that mentions r-1\n"
        '{"@timestamp": "2026-11-21T10:00:00.500Z", "message": "handled", "request_id": "r-1"}\n'
    )
    merged = merge_logs({"worker": worker, "api": api}, request_id="r-1")
    assert [(line.service, line.message) for line in merged] == [
        ("api", "asked"),
        ("worker", "handled"),
        ("api", "answered"),
    ]
    assert str(merged[1]).endswith("worker               handled")


async def test_a_killed_service_can_be_started_again(tmp_path: Path) -> None:
    """Its log goes on, and the check does not complain of what was asked for."""
    again = service("again")
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(again)
        await supervisor.kill("again")
        assert await supervisor.wait("again") == -signal.SIGKILL
        supervisor.check_running()
        await supervisor.start(again)
        assert await supervisor.stop() == {"again": 0}
    assert (tmp_path / "again.log").read_text() == "hello from again\nhello from again\nstopped again\n"


async def test_a_frozen_service_is_stopped_in_order_all_the_same(tmp_path: Path) -> None:
    """Its stop thaws it, as a frozen process gets no SIGTERM."""
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(service("ice"))
        supervisor.freeze("ice")
        pid = supervisor._children["ice"].pid
        await until(lambda: _state(pid) == "T")
        supervisor.thaw("ice")
        await until(lambda: _state(pid) != "T")
        supervisor.freeze("ice")
        assert await supervisor.stop() == {"ice": 0}
        supervisor.freeze("ice")  # does nothing to what has ended


async def test_a_variable_of_the_parent_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None in the environment of a service means that it does not get the variable."""
    monkeypatch.setenv("GREETER_OF_PARENT", "parent")
    script = "import os; print(os.environ.get('GREETER_OF_PARENT'))"
    plain = Service(
        name="plain", argv=[sys.executable, "-c", script], environment={"GREETER_OF_PARENT": None}
    )
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(plain)
        await supervisor.wait("plain")
        assert supervisor.log_tail("plain") == "None"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
