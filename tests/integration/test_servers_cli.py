"""`python -m hybridkit.dev servers`, as a developer runs it and as an accident ends it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hybridkit.dev import LocalServers
from hybridkit.dev._processes._process import ProcessId, descendants, find_process, wait_until
from hybridkit.dev._servers._probes import mongo_answers, postgres_answers, rabbitmq_answers, redis_answers
from hybridkit.dev._servers._server_root import state_directory
from hybridkit.testing.plugin import _give_up

ANSWERS = {
    "postgres": postgres_answers,
    "mongo": mongo_answers,
    "redis": redis_answers,
    "rabbitmq": rabbitmq_answers,
}
Servers = dict[str, dict[str, Any]]


@contextmanager
def servers_command(*arguments: str) -> Generator[tuple[subprocess.Popen[str], Servers]]:
    """The running command and what it printed; killed at the end, where it still runs."""
    argv = [sys.executable, "-m", "hybridkit.dev", "servers", "--json", *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as command:
        try:
            assert command.stdout is not None
            line = command.stdout.readline()
            if not line:
                _give_up("not every server can be had here")
            yield command, json.loads(line)
        finally:
            command.kill()


def port_of(server: dict[str, Any]) -> int:
    port = urlsplit(str(server["url"])).port
    assert port is not None
    return port


def children_of(command: subprocess.Popen[str]) -> list[ProcessId]:
    found = find_process(command.pid)
    assert found is not None
    return descendants([found])[1:]


def test_all_four_start_answer_and_say_where_they_come_from() -> None:
    """It prints one line of JSON; SIGTERM ends the servers and the command, with exit code 0."""
    with servers_command() as (command, servers):
        assert list(servers) == list(ANSWERS)
        for kind, server in servers.items():
            assert ANSWERS[kind](port_of(server)), kind
            assert server["source"].partition(":")[0] in {"binary", "container", "embedded"}
        command.terminate()
        assert command.wait(60) == 0
        assert not any(ANSWERS[kind](port_of(server)) for kind, server in servers.items())


def test_a_server_that_ends_by_itself_is_told_and_ends_the_command() -> None:
    """The command names it, prints its log and ends with exit code 1."""
    argv = [sys.executable, "-m", "hybridkit.dev", "servers", "redis"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        try:
            assert command.stdout is not None
            if not command.stdout.readline():
                _give_up("no Redis can be had here")
            for child in children_of(command):
                child.send(signal.SIGKILL)
            _, told = command.communicate(timeout=60)
        finally:
            command.kill()
    assert command.returncode == 1
    assert told.startswith("error: redis (")
    assert "has ended" in told


def test_ctrl_c_in_the_middle_of_the_start_leaves_nothing() -> None:
    """Servers that are still starting end as well, and the exit code is 0."""
    argv = [sys.executable, "-m", "hybridkit.dev", "servers", "postgres", "rabbitmq"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as command:
        try:
            assert wait_until(lambda: len(children_of(command)) >= 2, timeout_seconds=20)
            children = children_of(command)
            command.send_signal(signal.SIGINT)
            assert command.wait(60) == 0
            assert wait_until(lambda: not any(child.is_alive() for child in children), timeout_seconds=5)
        finally:
            command.kill()


def test_after_kill_9_the_kernel_ends_the_servers_and_the_next_start_removes_the_rest() -> None:
    """The servers get a signal by the owner's death, and the next owner removes the folder."""
    with servers_command("redis", "postgres") as (command, servers):
        children = children_of(command)
        (run,) = [
            path
            for path in (state_directory(os.environ) / "runs").iterdir()
            if f"-{command.pid}-" in path.name
        ]
        command.kill()
        command.wait()
        assert wait_until(lambda: not any(child.is_alive() for child in children), timeout_seconds=10)
        with LocalServers():
            assert not run.exists()
        assert not any(ANSWERS[kind](port_of(server)) for kind, server in servers.items())


def test_a_frozen_orphan_is_killed_by_the_next_start() -> None:
    """A stopped process outlives its owner, and is found by its record."""
    with servers_command("postgres") as (command, _):
        children = children_of(command)
        for child in children:
            child.send(signal.SIGSTOP)
        command.kill()
        command.wait()
        with LocalServers():
            assert wait_until(lambda: not any(child.is_alive() for child in children), timeout_seconds=10)


def test_a_program_that_is_there_and_does_not_start_is_an_error(tmp_path: Path) -> None:
    """The next origin is not tried in place of a broken Redis."""
    redis = tmp_path / "redis-server"
    redis.write_text("#!/bin/sh\n[ $# = 1 ] && echo Redis server v=99.0.0 || exit 1\n")
    redis.chmod(0o755)
    argv = [sys.executable, "-m", "hybridkit.dev", "servers", "redis"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: redis (binary: Redis 99.0.0 (this machine)) did not come up")


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    """The exit code is 2."""
    argv = [sys.executable, "-m", "hybridkit.dev", "servers", "oracle"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    known = "postgres, mongo, redis, rabbitmq, mongo_transactions"
    assert f"unknown kind of server: oracle (choose from {known})" in done.stderr


def test_a_url_is_only_named_and_its_password_hidden() -> None:
    """Nothing is started for it, and the table may be read by others."""
    environment = {**os.environ, "HYBRIDKIT_REDIS_URL": "redis://me:secret@example:6379/0"}
    argv = [sys.executable, "-m", "hybridkit.dev", "servers", "redis"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as command:
        assert command.stdout is not None
        line = command.stdout.readline()
        command.terminate()
        assert command.wait(60) == 0
    assert line.split() == ["redis", "redis://me:***@example:6379/0", "URL:", "HYBRIDKIT_REDIS_URL"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_development_broker_runs_until_a_signal(number: signal.Signals) -> None:
    """It prints its URL, warns, and ends with exit code 0."""
    argv = [sys.executable, "-m", "hybridkit.dev", "broker", "--port", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        url = command.stdout.readline().strip()
        assert rabbitmq_answers(urlsplit(url).port or 0)
        command.send_signal(number)
        _, warning = command.communicate(timeout=60)
    assert command.returncode == 0
    assert "for development and tests only" in warning


def test_a_port_that_is_taken_is_an_error() -> None:
    """The message has the port, and the exit code is 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        argv = [sys.executable, "-m", "hybridkit.dev", "broker", "--port", port]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: the development broker can't listen on port {port}" in done.stderr
