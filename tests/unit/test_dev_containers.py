"""Servers in containers, with a fake testcontainers: the calls to it, and their order."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

from hybridkit.dev._processes._runs import Run
from hybridkit.dev._servers import _containers as containers
from hybridkit.dev._servers._containers import container_problem, start_container
from hybridkit.errors import NotSupportedError, ServerStartError


class DockerError(Exception):
    """What docker-py raises for everything."""


class PlayedContainer:
    """Takes every call of testcontainers' and docker-py's that we make, and notes it."""

    pull_fails = False
    latest: "PlayedContainer"

    def __init__(self, image: str) -> None:
        self.image = image
        self.env: dict[str, str] = {}
        self.ports: dict[int, int] = {}
        self.asked: list[str] = []
        type(self).latest = self

    def with_envs(self, **env: str) -> Self:
        self.env = env
        return self

    def with_bind_ports(self, inside: int, outside: int) -> None:
        self.ports[inside] = outside

    def with_command(self, command: list[str]) -> None:
        self.asked.append(" ".join(command))

    def start(self) -> None:
        if self.pull_fails:
            raise DockerError("no such image")

    def get_container_host_ip(self) -> str:
        return "localhost"

    def get_wrapped_container(self) -> Any:
        calls = ("stop", "kill", "pause", "unpause", "restart")
        noted = {name: lambda name=name: self.asked.append(name) for name in calls}
        return SimpleNamespace(exec_run=self.exec_run, logs=lambda tail: b"no space left", **noted)

    def exec_run(self, command: list[str]) -> tuple[int, bytes]:
        return (0, " ".join(command).encode()) if command[-1] != "nonsense" else (64, b"unknown command")

    def stop(self) -> None:
        self.asked.append("removed")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path) as run:
        yield run


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    docker: Any = ModuleType("docker")
    docker.errors = SimpleNamespace(DockerException=DockerError)
    testcontainers: Any = ModuleType("testcontainers.core.container")
    testcontainers.DockerContainer = PlayedContainer
    monkeypatch.setitem(sys.modules, "docker", docker)
    monkeypatch.setitem(sys.modules, "testcontainers.core.container", testcontainers)
    monkeypatch.setattr(PlayedContainer, "pull_fails", False)
    all_answer = {
        kind: dataclasses.replace(image, answers=lambda port, host: True)
        for kind, image in containers.IMAGES.items()
    }
    monkeypatch.setattr(containers, "IMAGES", all_answer)


def test_the_port_is_chosen_here_so_that_a_restart_keeps_it(run: Run) -> None:
    """The URL has the bound port, and so has RabbitMQ's HTTP API."""
    server = start_container("rabbitmq", run)
    ports = PlayedContainer.latest.ports
    assert PlayedContainer.latest.image == "rabbitmq:3.13-management"
    assert urlsplit(server.url).port == ports[5672]
    assert server.management_url == f"http://guest:guest@127.0.0.1:{ports[15672]}"
    assert (server.source, server.is_real) == ("container: rabbitmq:3.13-management", True)


def test_postgresql_lets_everybody_in(run: Run) -> None:
    """It needs no password, like a PostgreSQL that runs as a process."""
    server = start_container("postgres", run)
    assert PlayedContainer.latest.env == {"POSTGRES_HOST_AUTH_METHOD": "trust"}
    assert urlsplit(server.url).username == "postgres"


def test_faults_reach_the_whole_container(run: Run) -> None:
    """A freeze pauses the container."""
    server = start_container("mongo", run)
    for fault in (server.freeze, server.resume, server.kill, server.stop, server.restart):
        fault()
    assert PlayedContainer.latest.asked == ["pause", "unpause", "kill", "stop", "restart"]


def test_rabbitmqctl_runs_inside(run: Run) -> None:
    """Its output is returned, and its failure is an error with the output."""
    server = start_container("rabbitmq", run)
    assert server.ctl("list_queues", "name") == "rabbitmqctl list_queues name"
    with pytest.raises(ServerStartError, match="ended with 64: unknown command"):
        server.ctl("nonsense")


def test_no_other_server_has_a_rabbitmqctl(run: Run) -> None:
    """The error names the server that was asked."""
    with pytest.raises(NotSupportedError, match="redis server"):
        start_container("redis", run).ctl("status")


def test_the_container_goes_with_its_run(run: Run) -> None:
    """Closing the run stops it once."""
    start_container("redis", run)
    run.close()
    run.close()
    assert PlayedContainer.latest.asked.count("removed") == 1


def test_an_image_that_cannot_be_had_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine may answer and have no network."""
    monkeypatch.setattr(PlayedContainer, "pull_fails", True)
    with pytest.raises(ServerStartError, match="redis:7 for redis: no such image"):
        start_container("redis", run)


def test_a_server_that_does_not_come_up_shows_its_log(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the end of the container's log."""
    silent = dataclasses.replace(containers.IMAGES["redis"], answers=lambda port, host: False)
    monkeypatch.setattr(containers, "IMAGES", {"redis": silent})
    monkeypatch.setattr(containers, "_READY_WITHIN_SECONDS", 0.0)
    with pytest.raises(ServerStartError, match="did not come up; its log ends with:\nno space left"):
        start_container("redis", run)


@pytest.mark.parametrize(
    ("exit_code", "problem"), [(0, None), (1, "start Docker or Podman: no container engine answers")]
)
def test_an_engine_is_asked_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int, problem: str | None
) -> None:
    """Many machines have the client without an engine."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert container_problem() == problem


def test_without_the_client_no_engine_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem names the package to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert container_problem() == "pip install testcontainers, and start Docker or Podman"
