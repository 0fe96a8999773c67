"""Servers in containers, through testcontainers where it is installed and a container engine answers.

The host's port is chosen here, so that it stays the same after a restart. testcontainers' reaper removes the containers
of an owner that was killed.
"""

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybridkit.dev._processes._process import wait_until
from hybridkit.dev._processes._runs import Run
from hybridkit.dev._servers._probes import (
    LOOPBACK,
    free_port,
    mongo_answers,
    postgres_answers,
    rabbitmq_answers,
    redis_answers,
)
from hybridkit.dev._servers._server import Kind, Server
from hybridkit.errors import ServerStartError

_ASK_ENGINE = "from testcontainers.core.docker_client import DockerClient; DockerClient().client.ping()"
_READY_WITHIN_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Image:
    """The image and settings for one kind of server; the images are those of the deployment files."""

    name: str
    port: int
    url: str
    answers: Callable[..., bool]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    command: Sequence[str] = ()
    management_port: int | None = None


IMAGES: Mapping[Kind, Image] = {
    "postgres": Image(
        "postgres:16",
        5432,
        "postgresql://postgres@{host}:{port}/postgres",
        postgres_answers,
        env={"POSTGRES_HOST_AUTH_METHOD": "trust"},
    ),
    "mongo": Image("mongo:7", 27017, "mongodb://{host}:{port}/", mongo_answers),
    "redis": Image(
        "redis:7",
        6379,
        "redis://{host}:{port}/0",
        redis_answers,
        command=("redis-server", "--appendonly", "yes", "--appendfsync", "no", "--databases", "1024"),
    ),
    "rabbitmq": Image(
        "rabbitmq:3.13-management",
        5672,
        "amqp://guest:guest@{host}:{port}/",
        rabbitmq_answers,
        management_port=15672,
    ),
}


def container_problem() -> str | None:
    """Return why no container can be started, or None."""
    if importlib.util.find_spec("testcontainers") is None:
        return "pip install testcontainers, and start Docker or Podman"
    # In a process of its own, as the ping leaves open sockets and a changed environment behind.
    asked = subprocess.run([sys.executable, "-c", _ASK_ENGINE], capture_output=True, check=False)  # noqa: S603 # nosec B603
    return None if asked.returncode == 0 else "start Docker or Podman: no container engine answers"


class ContainerServer(Server):
    """A server in a container of its own; faults affect the whole container."""

    def __init__(
        self, kind: Kind, container: Any, *, host: str, port: int, management_port: int | None
    ) -> None:
        image = IMAGES[kind]
        super().__init__(
            kind,
            image.url.format(host=host, port=port),
            source=f"container: {image.name}",
            management_url=f"http://guest:guest@{host}:{management_port}" if management_port else None,
        )
        self._container = container
        self._host = host
        self._port = port

    def start(self) -> None:
        """Wait until the server in the container answers.

        Raises:
            ServerStartError: there was no answer for two minutes; the message has the end of the log.
        """
        answers = IMAGES[self.kind].answers
        if not wait_until(
            lambda: answers(self._port, host=self._host), timeout_seconds=_READY_WITHIN_SECONDS
        ):
            log = self._wrapped.logs(tail=15).decode(errors="replace")
            raise ServerStartError(f"{self.kind} ({self.source}) did not come up; its log ends with:\n{log}")

    def stop(self) -> None:
        """See `Server.stop`."""
        self._wrapped.stop()

    def kill(self) -> None:
        """See `Server.kill`."""
        self._wrapped.kill()

    def freeze(self) -> None:
        """See `Server.freeze`."""
        self._wrapped.pause()

    def resume(self) -> None:
        """See `Server.resume`."""
        self._wrapped.unpause()

    def restart(self) -> None:
        """See `Server.restart`."""
        self._wrapped.restart()
        self.start()

    def ctl(self, *arguments: str) -> str:
        """See `Server.ctl`.

        Raises:
            ServerStartError: rabbitmqctl failed; the message has its output.
        """
        if self.kind != "rabbitmq":
            return super().ctl(*arguments)
        code, output = self._wrapped.exec_run(["rabbitmqctl", *arguments])
        said = output.decode(errors="replace")
        if code:
            raise ServerStartError(f"rabbitmqctl {' '.join(arguments)} ended with {code}: {said.strip()}")
        return str(said)

    @property
    def _wrapped(self) -> Any:
        return self._container.get_wrapped_container()


def start_container(kind: Kind, run: Run) -> ContainerServer:
    """Start a new container and wait until its server answers; closing the run removes it.

    Raises:
        ServerStartError: the image is not available, or the server did not come up.
    """
    docker: Any = importlib.import_module("docker")
    testcontainers: Any = importlib.import_module("testcontainers.core.container")
    image = IMAGES[kind]
    port = free_port()
    management_port = free_port() if image.management_port else None
    container = testcontainers.DockerContainer(image.name).with_envs(**image.env)
    container.with_bind_ports(image.port, port)
    if image.management_port:
        container.with_bind_ports(image.management_port, management_port)
    if image.command:
        container.with_command(list(image.command))
    run.on_close(container.stop)
    try:
        container.start()
    except docker.errors.DockerException as error:
        raise ServerStartError(f"no container of {image.name} for {kind}: {error}") from error
    host = container.get_container_host_ip().replace("localhost", LOOPBACK)
    server = ContainerServer(kind, container, host=host, port=port, management_port=management_port)
    server.start()
    return server
