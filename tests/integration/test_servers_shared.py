"""One server for all processes of a test run, which is gone when the last of them is, however that one ended."""

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hybridkit.dev import SharedServers
from hybridkit.dev._processes._process import wait_until
from hybridkit.dev._servers._probes import redis_answers
from hybridkit.dev._servers._server_root import server_root_directory
from hybridkit.dev._servers._shared import is_locked, read_report

RECORD_URL = """
import os, pathlib, pytest

@pytest.mark.parametrize("number", range(4))
def test_writes_down_its_server(redis_url, number):
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    pathlib.Path(f"urls-{worker}-{number}").write_text(redis_url)
"""
HANG = """
import pathlib, time

def test_hangs(redis_url):
    draft = pathlib.Path("draft")
    draft.write_text(redis_url)
    draft.rename("url")
    time.sleep(1000)
"""


@pytest.fixture
def key(redis_url: str) -> Iterator[str]:
    """A key of the test's own; where there is no Redis, the fixture that it rests on has skipped the test."""
    key = secrets.token_hex(8)
    yield key
    SharedServers(key).close()


@pytest.fixture(autouse=True)
def same_server_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytester gives its pytest another home, in which there is none."""
    monkeypatch.setenv("HYBRIDKIT_SERVER_ROOT", str(server_root_directory(os.environ)))


def answers(url: str) -> bool:
    port = urlsplit(url).port
    assert port is not None
    return redis_answers(port)


def is_up(url: str) -> bool:
    """A probe gives up after a second, which says nothing on a machine that is busy."""
    return wait_until(lambda: answers(url), timeout_seconds=60)


def dies(url: str) -> bool:
    return wait_until(lambda: not answers(url), timeout_seconds=60)


def test_the_last_one_to_let_go_ends_the_server(key: str) -> None:
    """Both users have one server, which outlives the process that started it."""
    first, second = SharedServers(key), SharedServers(key)
    url = first.get("redis").url
    assert second.get("redis").url == url
    first.release()
    assert is_up(url)
    second.release()
    assert dies(url)


def test_many_at_once_start_one_server(key: str) -> None:
    """The first process starts it, and the others wait."""
    users = [SharedServers(key) for _ in range(6)]
    with ThreadPoolExecutor(max_workers=len(users)) as threads:
        urls = set(threads.map(lambda user: user.get("redis").url, users))
    assert len(urls) == 1
    for user in users:
        user.release()


def test_another_run_has_a_server_of_its_own(key: str) -> None:
    """Runs at the same time do not share servers."""
    first, second = SharedServers(key), SharedServers(f"{key}-other")
    try:
        assert first.get("redis").url != second.get("redis").url
    finally:
        second.release()
        second.close()
        first.release()


def test_a_user_that_was_killed_holds_nothing(key: str) -> None:
    """The kernel releases its lock, and the server ends."""
    script = f"""
import time
from hybridkit.dev import SharedServers
servers = SharedServers({key!r})
print(servers.get("redis").url, flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        url = user.stdout.readline().strip()
        assert is_up(url)
        user.kill()
    assert dies(url)


def test_a_server_whose_owner_was_killed_is_started_again(key: str) -> None:
    """The next user does not get the dead owner's report."""
    first, second = SharedServers(key), SharedServers(key)
    url = first.get("redis").url
    report = read_report(first._folder / "redis.json")
    assert report is not None
    try:
        report.owner.send(signal.SIGKILL)
        assert dies(url)
        # The kernel ends a process thread by thread: the server has gone before the last one lets go of the lock.
        assert wait_until(lambda: not is_locked(first._folder / "redis.owner"), timeout_seconds=60)
        again = second.get("redis").url
        log = (second._folder / "redis.log").read_text()
        assert is_up(again), f"first {url}, then {again}: {log}"
    finally:
        first.release()
        second.release()


@pytest.mark.usefixtures("unmeasured_test")
def test_workers_of_xdist_share_one_server(pytester: pytest.Pytester) -> None:
    """Each worker has a database of its own, and the server ends with the run."""
    pytester.makepyfile(RECORD_URL)
    result = pytester.runpytest_subprocess("-n", "2")
    result.assert_outcomes(passed=4)
    urls = [path.read_text() for path in pytester.path.glob("urls-*")]
    assert len({urlsplit(url).port for url in urls}) == 1
    assert not answers(urls[0])


@pytest.mark.usefixtures("unmeasured_test")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_server(pytester: pytest.Pytester, signal_number: int) -> None:
    """The owner ends the server, however the tests ended."""
    pytester.makepyfile(HANG)
    said = Path(pytester.path / "url")
    with pytester.popen([sys.executable, "-m", "pytest"]) as run:
        assert wait_until(said.exists, timeout_seconds=60)
        url = said.read_text()
        assert is_up(url)
        run.send_signal(signal_number)
        run.wait(30)
    assert dies(url)
