"""`hybridkit run` starts an application with its servers, shows its logs, and leaves nothing behind."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from hybridkit.dev._processes._process import descendants, find_process

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("unmeasured_test")]

NOTES = """
from hybridkit.adapters.worker import run_worker
from hybridkit.settings import {kind}

class Settings({kind}):
    service_name: str = "notes"
    port: int = 0

if __name__ == "__main__":
    {body}
"""


async def started(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from hybridkit._cli import main; main()", "run", *arguments),
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def line_with(process: asyncio.subprocess.Process, words: str) -> str:
    assert process.stdout is not None
    while words not in (line := (await process.stdout.readline()).decode()):
        assert line, f"it ended without {words!r}"
    return line


async def test_processes_run_until_they_are_stopped(tmp_path: Path) -> None:
    """Their logs are shown, and a signal ends processes and servers."""
    (tmp_path / "notes.py").write_text(NOTES.format(kind="RedisSettings", body="run_worker(Settings)"))
    running = await started(tmp_path, "notes", "--logs", str(tmp_path / "logs"))
    assert "redis://127.0.0.1" in await line_with(running, "redis ")
    await line_with(running, "http://127.0.0.1:")
    await line_with(running, "Ctrl-C stops them.")
    own = find_process(running.pid)
    assert own is not None
    tree = descendants([own])
    assert len(tree) > 1
    running.send_signal(signal.SIGTERM)
    output, _ = await running.communicate()
    assert running.returncode == 0, output.decode()
    assert [each for each in tree if each.is_alive()] == []
    assert (tmp_path / "logs" / "notes.log").exists()


async def test_a_process_that_dies_ends_the_command(tmp_path: Path) -> None:
    """With exit code 1 and the end of its log."""
    body = "print('no luck today'); raise SystemExit(3)"
    (tmp_path / "notes.py").write_text(NOTES.format(kind="ServiceSettings", body=body))
    running = await started(tmp_path, "notes")
    output, _ = await running.communicate()
    assert running.returncode == 1
    assert "notes ended with exit code 3" in output.decode()
    assert "no luck today" in output.decode()


async def test_a_module_that_is_no_process_is_wrong_use(tmp_path: Path) -> None:
    """With exit code 2, and nothing is started."""
    running = await started(tmp_path, "json")
    output, _ = await running.communicate()
    assert (running.returncode, "one settings class" in output.decode()) == (2, True)
