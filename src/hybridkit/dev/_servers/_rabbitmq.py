"""RabbitMQ as a child process: one node, a cluster of several, or the development broker instead.

Each node or cluster has its own Erlang cookie and its own epmd (the daemon through which Erlang nodes find each other)
on a free port. So no node meets a node of another run, and no epmd stays behind.
"""

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from hybridkit.dev._processes._process import Owner, Process, wait_until
from hybridkit.dev._processes._runs import Run
from hybridkit.dev._servers._probes import LOOPBACK, epmd_answers, free_port, rabbitmq_answers
from hybridkit.dev._servers._programs import Program
from hybridkit.dev._servers._server import ProcessServer
from hybridkit.dev._servers._server_root import HostRoot
from hybridkit.errors import ServerStartError

_PLUGINS = "[rabbitmq_management].\n"
_ERLANG_OPTIONS = "-kernel inet_dist_use_interface {127,0,0,1}"


class ErlangDistribution:
    """The cookie and the epmd that the nodes of one cluster share."""

    def __init__(self, program: Program, run: Run) -> None:
        self.cookie = secrets.token_hex(16)
        self.epmd_port = free_port()
        self._program = program
        self._run = run
        self._process: Process | None = None

    def start_epmd(self) -> None:
        """Start epmd unless it runs. It survives the nodes, as it would on a machine of their own.

        Raises:
            ServerStartError: epmd does not answer.
        """
        if self._process and self._process.is_running:
            return
        root = self._program.root
        argv = ["epmd", "-address", LOOPBACK, "-port", str(self.epmd_port)]
        folder = self._run.folder("epmd", owner=root.owner("rabbitmq"))
        command = root.wrap(argv, user="rabbitmq")
        epmd = self._process = self._run.spawn(
            command, name="epmd", folder=folder, env=self._program.root.environment
        )
        wait_until(lambda: epmd_answers(self.epmd_port) or not epmd.is_running, timeout_seconds=60)
        if not epmd_answers(self.epmd_port):
            raise ServerStartError(f"epmd of {self._program} did not come up:\n{epmd.log_tail()}")


class RabbitNode(ProcessServer):
    """A RabbitMQ node with its own name, data, ports and configuration."""

    def __init__(self, program: Program, run: Run, *, source: str, distribution: ErlangDistribution) -> None:
        self.port = free_port()
        self.management_port = free_port()
        super().__init__(
            "rabbitmq",
            f"amqp://guest:guest@{LOOPBACK}:{self.port}/",
            source=source,
            management_url=f"http://guest:guest@{LOOPBACK}:{self.management_port}",
        )
        self.name = f"hybridkit{self.port}@localhost"
        self._program = program
        self._run = run
        self._distribution = distribution
        self._folder = run.folder("rabbitmq", owner=program.root.owner("rabbitmq"))

    def configure(self, *, cluster: Sequence[str] = ()) -> None:
        """Write the node's configuration.

        Args:
            cluster: the names of all nodes of its cluster; none for a single node.
        """
        lines = [
            f"listeners.tcp.1 = {LOOPBACK}:{self.port}",
            f"management.tcp.ip = {LOOPBACK}",
            f"management.tcp.port = {self.management_port}",
        ]
        if cluster:
            lines.append("cluster_formation.peer_discovery_backend = classic_config")
        lines += [f"cluster_formation.classic_config.nodes.{n} = {name}" for n, name in enumerate(cluster, 1)]
        self._write("rabbitmq.conf", "\n".join(lines) + "\n")
        self._write("enabled_plugins", _PLUGINS)
        self._write(".erlang.cookie", self._distribution.cookie, mode=0o400)

    def ctl(self, *arguments: str) -> str:
        """See `Server.ctl`.

        Raises:
            ServerStartError: rabbitmqctl failed; the message has its output.
        """
        argv = [self._program.beside("rabbitmqctl"), "--node", self.name, *arguments]
        command = self._program.root.wrap(argv, user="rabbitmq")
        done = subprocess.run(  # noqa: S603 # nosec B603
            command,
            capture_output=True,
            text=True,
            check=False,
            env=self._environment(),
            cwd="/",
            timeout=180,
        )
        if done.returncode:
            said = f"{done.stdout}{done.stderr}".strip()
            raise ServerStartError(f"rabbitmqctl {' '.join(arguments)} ended with {done.returncode}: {said}")
        return done.stdout

    def _write(self, name: str, text: str, *, mode: int = 0o600) -> None:
        path = self._folder / name
        path.write_text(text)
        path.chmod(mode)
        self._program.root.owner("rabbitmq").give(path)

    def _environment(self) -> Mapping[str, str]:
        return {
            **self._program.root.environment,
            "HOME": str(self._folder),
            # Makes the start script exec the Erlang machine instead of staying its parent.
            "RUNNING_UNDER_SYSTEMD": "true",
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(self._distribution.epmd_port),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_LOGS": "-",
        }

    def _spawn(self) -> Sequence[Process]:
        self._distribution.start_epmd()
        # Chosen at each start: another process may have taken the port of a node that was killed.
        ports = {
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _ERLANG_OPTIONS,
        }
        command = self._program.root.wrap([str(self._program.path)], user="rabbitmq")
        environment = {**self._environment(), **ports}
        return [self._run.spawn(command, name="rabbitmq", folder=self._folder, env=environment)]

    def _answers(self) -> bool:
        return rabbitmq_answers(self.port)


def start_cluster(program: Program, run: Run, *, source: str, size: int) -> list[RabbitNode]:
    """Start nodes that form a cluster, and wait until they answer; three take 6 seconds.

    Raises:
        ServerStartError: a node did not come up.
    """
    distribution = ErlangDistribution(program, run)
    distribution.start_epmd()
    nodes = [RabbitNode(program, run, source=source, distribution=distribution) for _ in range(size)]
    for node in nodes:
        node.configure(cluster=[each.name for each in nodes])
    with ThreadPoolExecutor(max_workers=size) as pool:
        list(pool.map(RabbitNode.start, nodes))
    return nodes


class BrokerServer(ProcessServer):
    """The development broker in its own Python process; in memory, so empty after a restart."""

    def __init__(self, run: Run, *, source: str) -> None:
        self.port = free_port()
        super().__init__(
            "rabbitmq", f"amqp://guest:guest@{LOOPBACK}:{self.port}/", source=source, is_real=False
        )
        self._run = run
        self._folder = run.folder("rabbitmq", owner=Owner())

    def _spawn(self) -> Sequence[Process]:
        argv = [sys.executable, "-m", "hybridkit.dev", "broker", "--port", str(self.port)]
        command = HostRoot().wrap(argv, user=None)
        return [self._run.spawn(command, name="broker", folder=self._folder, env=os.environ)]

    def _answers(self) -> bool:
        return rabbitmq_answers(self.port)
