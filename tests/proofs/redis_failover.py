"""The proof of Redis' fail-overs: `python -m tests.proofs.redis_failover`.

Real servers on loopback: a master with two replicas and three sentinels, and a cluster of three masters with a replica
each. Three writers (the shared connection, the client, its pipelines) write every 20 ms while servers are told to fail
over, killed with SIGKILL and frozen with SIGSTOP. Nothing that was confirmed may be lost, no call may last longer than
its deadline, and work goes on within three seconds of the new master's being known, by the same client. Then a random
walk: every reply has to be that to its own command.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from urllib.parse import urlsplit

from hybridkit.coordination import connect_redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.dev import LocalServers
from hybridkit.testing import FaultProxy
from tests.helpers.redis_failovers import TIMEOUT_SECONDS, Failover
from tests.helpers.redis_topologies import (
    MASTER_NAME,
    Cluster,
    Node,
    SentinelSet,
    redis_cluster,
    sentinel_set,
    start_all,
    until_holds,
)
from tests.helpers.redis_walk import Walk

FAULTS = ("planned", "killed", "frozen")


async def by_sentinels(servers: SentinelSet, fault: str) -> str:
    async with connect_redis(servers.url, timeout_seconds=TIMEOUT_SECONDS) as redis:
        old = servers.master()
        failover = Failover(redis, name=f"sentinel, {fault}")
        harm = {
            "planned": lambda: servers.sentinels[0].ask("SENTINEL", "FAILOVER", MASTER_NAME),
            "killed": old.kill,
            "frozen": old.freeze,
        }
        is_other = partial(until_holds, lambda: servers.master_port() != old.port)
        try:
            await failover.run(harm[fault], until_announced=is_other)
            await failover.check()
        finally:
            await asyncio.to_thread(mend, old)
        await asyncio.to_thread(until_holds, servers.is_settled)
        return failover.told()


async def in_a_cluster(servers: Cluster, fault: str) -> str:
    async with connect_redis(servers.url, timeout_seconds=TIMEOUT_SECONDS) as redis:
        old = servers.owner("{a}:key")
        [replica] = servers.replicas_of(old)
        failover = Failover(redis, name=f"cluster, {fault}", tag="{a}")
        harm: dict[str, Callable[[], object]] = {
            "planned": lambda: replica.ask("CLUSTER", "FAILOVER"),
            "killed": old.kill,
            "frozen": old.freeze,
        }
        is_promoted = partial(until_holds, lambda: replica.ask("ROLE")[0] == "master")
        try:
            await failover.run(harm[fault], until_announced=is_promoted)
            await failover.check()
        finally:
            await asyncio.to_thread(mend, old)
        await asyncio.to_thread(until_holds, servers.is_settled)
        return failover.told()


async def without_a_successor(servers: Cluster) -> str:
    """Freeze an owner whose only replica is dead: its calls end at their deadlines, and work when it is back."""
    async with connect_redis(servers.url, timeout_seconds=TIMEOUT_SECONDS) as redis:
        old = servers.owner("{a}:key")
        replicas = servers.replicas_of(old)
        for replica in replicas:
            replica.kill()
        failover = Failover(redis, name="cluster, frozen without a successor", tag="{a}")
        try:
            await failover.run(old.freeze, until_announced=None)
            await failover.check(recovers=False)
        finally:
            old.resume()
            await asyncio.to_thread(start_all, replicas)
        await asyncio.to_thread(until_holds, servers.is_settled)
        return failover.told()


def mend(server: Node) -> None:
    """Wake a server, or start it again."""
    if server.is_running:
        server.resume()
    else:
        server.start()


class Network:
    """A proxy before a real Redis, as the walk harms it."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.freeze, self.thaw, self.cut = proxy.freeze, proxy.let_pass, proxy.reset
        self._proxy = proxy

    def disturb(self, randomly: random.Random) -> None:
        self._proxy.delay(randomly.choice([0.0, 0.001, 0.02]))


async def walk(url: str, *, commands: int, seed: int) -> str:
    parts = urlsplit(url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 0) as proxy,
        connect_redis(proxy.url_for(url), timeout_seconds=0.1) as redis,
    ):
        walked = Walk(multiplexer_of(redis), Network(proxy), seed=seed)
        await walked.run(commands=commands)
    assert walked.shifted == [], walked.shifted
    assert walked.outcomes["answered"] > commands / 4, walked.outcomes
    return f"walk of {commands} commands, seed {seed}: {dict(walked.outcomes)}, no reply shifted"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="how often each fault is made")
    parser.add_argument("--commands", type=int, default=20_000, help="the commands of each walk")
    options = parser.parse_args()
    since = time.monotonic()
    with sentinel_set() as sentinels, redis_cluster() as cluster, LocalServers() as servers:
        scenarios: list[Callable[[], Awaitable[str]]] = [
            *(partial(by_sentinels, sentinels, fault) for fault in FAULTS),
            *(partial(in_a_cluster, cluster, fault) for fault in FAULTS),
            partial(without_a_successor, cluster),
        ]
        for _ in range(options.rounds):
            for scenario in scenarios:
                report(asyncio.run(told(scenario)))
        url = servers.start("redis", private=True).url
        for seed in range(3):
            report(asyncio.run(walk(url, commands=options.commands, seed=seed)))
    report(f"all of it holds, after {time.monotonic() - since:.0f} s")


async def told(scenario: Callable[[], Awaitable[str]]) -> str:
    return await scenario()


def report(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
