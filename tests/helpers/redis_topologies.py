"""Real servers of Redis on loopback: a master with replicas and sentinels, and a cluster."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from hybridkit.dev._processes._process import Process, wait_until
from hybridkit.dev._processes._runs import Run
from hybridkit.dev._servers._local import discovery
from hybridkit.dev._servers._probes import LOOPBACK, free_port, redis_answers
from hybridkit.dev._servers._programs import Program, newest
from hybridkit.dev._servers._server import ProcessServer
from hybridkit.dev._servers._server_root import state_directory

MASTER_NAME = "mymaster"
START_SECONDS = 90.0
SLOTS = 16384

_DATA = {
    "save": '""',
    "appendonly": "no",
    # Else a replica is empty for its first five seconds.
    "repl-diskless-sync-delay": "0",
    "repl-ping-replica-period": "1",
}
_REPLICATED = {**_DATA, "min-replicas-to-write": "1", "min-replicas-max-lag": "3"}
_SENTINEL = {
    f"sentinel down-after-milliseconds {MASTER_NAME}": "1000",
    f"sentinel failover-timeout {MASTER_NAME}": "3000",
    f"sentinel parallel-syncs {MASTER_NAME}": "1",
}
_CLUSTER = {
    **_DATA,
    "cluster-enabled": "yes",
    "cluster-config-file": "nodes.conf",
    "cluster-node-timeout": "1000",
    "cluster-require-full-coverage": "no",
    # With a node timeout this short a replica would soon count as too old to be elected.
    "cluster-replica-validity-factor": "0",
}


class Node(ProcessServer):
    """One process, a server or a sentinel; both write their own configuration."""

    def __init__(
        self, program: Program, run: Run, options: Mapping[str, str], *, is_sentinel: bool = False
    ) -> None:
        self.port = free_port()
        super().__init__("redis", f"redis://{LOOPBACK}:{self.port}/0", source=str(program))
        self._program = program
        self._run = run
        self._is_sentinel = is_sentinel
        owner = program.root.owner("redis")
        self._folder = run.folder("redis", owner=owner)
        own = {"port": self.port, "bind": LOOPBACK, "dir": self._folder, "protected-mode": "no"}
        self._configuration = self._folder / "redis.conf"
        self._configuration.write_text(
            "".join(f"{name} {value}\n" for name, value in {**own, **options}.items())
        )
        owner.give(self._configuration)

    def ask(self, *words: str | int) -> Any:
        """Send one command, over a connection of its own."""
        with redis.Redis(LOOPBACK, self.port, socket_timeout=5, decode_responses=True, protocol=2) as client:
            return client.execute_command(*words)

    def _spawn(self) -> Sequence[Process]:
        root = self._program.root
        words = [str(self._program.path), str(self._configuration), *["--sentinel"] * self._is_sentinel]
        command = root.wrap(words, user="redis")
        return [self._run.spawn(command, name="redis", folder=self._folder, env=root.environment)]

    def _answers(self) -> bool:
        return redis_answers(self.port)


class SentinelSet:
    """A master, two replicas, and three sentinels."""

    def __init__(self, program: Program, run: Run) -> None:
        master = Node(program, run, _REPLICATED)
        follow = {"replicaof": f"{LOOPBACK} {master.port}"}
        self.servers = [master, *(Node(program, run, {**_REPLICATED, **follow}) for _ in range(2))]
        watch = {f"sentinel monitor {MASTER_NAME}": f"{LOOPBACK} {master.port} 2", **_SENTINEL}
        self.sentinels = [Node(program, run, watch, is_sentinel=True) for _ in range(3)]
        self.url = f"redis+sentinel://{_hosts(self.sentinels)}/{MASTER_NAME}/0"

    def start(self) -> None:
        start_all(self.servers)
        start_all(self.sentinels)
        until_holds(self.is_settled)

    def master_port(self) -> int:
        """The present master as the first sentinel that answers names it."""
        _, port = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME)
        return int(port)

    def master(self) -> Node:
        port = self.master_port()
        return next(server for server in self.servers if server.port == port)

    def is_settled(self) -> bool:
        """Both replicas follow the master that all sentinels name, and they know each other."""
        states = [_pairs(sentinel.ask("SENTINEL", "MASTER", MASTER_NAME)) for sentinel in self.sentinels]
        role, _, replicas = self.master().ask("ROLE")
        return (
            role == "master"
            and len(replicas) == 2
            and len({state["port"] for state in states}) == 1
            and all(
                (state["num-other-sentinels"], state["num-slaves"], state["flags"]) == ("2", "2", "master")
                for state in states
            )
        )


class Cluster:
    """Three masters with a replica each."""

    def __init__(self, program: Program, run: Run) -> None:
        self.ports = {}
        self.nodes: list[Node] = []
        for _ in range(6):
            bus = free_port()
            node = Node(program, run, {**_CLUSTER, "cluster-port": str(bus)})
            self.ports[node.port] = bus
            self.nodes.append(node)
        self.url = f"redis+cluster://{_hosts(self.nodes)}"

    def start(self) -> None:
        start_all(self.nodes)
        masters, replicas = self.nodes[:3], self.nodes[3:]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            self.nodes[0].ask("CLUSTER", "MEET", LOOPBACK, node.port, self.ports[node.port])
        for number, node in enumerate(masters):
            first, after = SLOTS * number // 3, SLOTS * (number + 1) // 3
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, after - 1)
        until_holds(lambda: all(_knows_all(node) for node in self.nodes))
        for node, master in zip(replicas, masters, strict=True):
            node.ask("CLUSTER", "REPLICATE", master.ask("CLUSTER", "MYID"))
        until_holds(self.is_settled)

    def is_settled(self) -> bool:
        """Every node sees all slots served, and each of the three masters has a replica that is in step."""
        states = [node.ask("CLUSTER", "INFO") for node in self.nodes]
        is_served = all("cluster_state:ok" in each and f"cluster_slots_ok:{SLOTS}" in each for each in states)
        roles = [node.ask("ROLE") for node in self.nodes]
        masters = [role for role in roles if role[0] == "master" and role[2]]
        return (
            is_served
            and len(masters) == 3
            and all(role[3] == "connected" for role in roles if role[0] == "slave")
        )

    def owner(self, key: str) -> Node:
        """The master of a key's slot, as the nodes that answer see it."""
        slot = int(self._answering().ask("CLUSTER", "KEYSLOT", key))
        for first, last, (_, port, *_), *_ in self._answering().ask("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody owns slot {slot}")

    def replicas_of(self, owner: Node) -> list[Node]:
        ports = {int(port) for _, port, _ in owner.ask("ROLE")[2]}
        return [node for node in self.nodes if node.port in ports]

    def _answering(self) -> Node:
        return next(node for node in self.nodes if node.is_running and redis_answers(node.port))


@contextmanager
def sentinel_set() -> Generator[SentinelSet]:
    with Run(state_directory(os.environ)) as run:
        found = SentinelSet(_program(), run)
        found.start()
        yield found


@contextmanager
def redis_cluster() -> Generator[Cluster]:
    with Run(state_directory(os.environ)) as run:
        found = Cluster(_program(), run)
        found.start()
        yield found


def start_all(nodes: Sequence[Node]) -> None:
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(Node.start, nodes))


def until_holds(condition: Callable[[], bool]) -> None:
    """Wait until a condition about servers that still start holds."""

    def holds() -> bool:
        try:
            return condition()
        except (redis.RedisError, OSError, LookupError, StopIteration):
            return False

    assert wait_until(holds, timeout_seconds=START_SECONDS)


def _program() -> Program:
    program = newest(discovery(os.environ).find_programs("redis-server", "Redis"))
    if program is None:
        pytest.skip("a topology of Redis needs redis-server as a program: run `make servers` as root")
    return program


def _hosts(nodes: Sequence[Node]) -> str:
    return ",".join(f"{LOOPBACK}:{node.port}" for node in nodes)


def _knows_all(node: Node) -> bool:
    lines = node.ask("CLUSTER", "NODES").splitlines()
    return len(lines) == 6 and not any("handshake" in line for line in lines)


def _pairs(words: Sequence[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))
