"""The proof of a bot's replicas: `python -m tests.proofs.bot_replicas --updates 10000`.

Three replicas of a bot with `UPDATES=queue`, processes of their own, share the updates of a fake Telegram through a
real RabbitMQ and Redis. In the middle the replica that polls is killed with SIGKILL. At the end each update must have
had its effect once, and those of each chat in their order. A handler that the kill has interrupted runs again; that is
counted.
"""

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hybridkit.coordination import connect_redis
from hybridkit.dev import LocalServers, Service, Supervisor, free_port
from hybridkit.testing import FakeTelegram, TelegramUser
from tests.proofs._bot_replica import BY_REPLICA, CHAT, DONE, RUNS

REPLICAS = 3
POLLS = "this replica polls for updates"
SETTLE_SECONDS = 90.0
"""How long nothing may be handled before what is missing counts as lost: more than a dead replica's leases."""
INTERRUPTED = 16 * 16
"""How many updates a replica handles at the same time at most, and so how many may run again after its death."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a run.

    Attributes:
        sent: the updates that were sent.
        handled: the updates that had their effect.
        seconds: the time from the first to the last.
        shares: the handlers' runs of each replica.
        reruns: the runs beyond the first of each update.
        disordered: the chats whose effects have another order than their updates.
        killed_after: the number of updates that were handled at the kill.
        stalled_seconds: the longest time without an effect, which is the cost of the death.
    """

    sent: int
    handled: int
    seconds: float
    shares: Sequence[int]
    reruns: int
    disordered: Sequence[int]
    killed_after: int
    stalled_seconds: float

    @property
    def holds(self) -> bool:
        """Whether everything is as promised."""
        is_shared = len(self.shares) == REPLICAS
        return self.handled == self.sent and not self.disordered and self.reruns <= INTERRUPTED and is_shared

    def lines(self) -> Sequence[tuple[str, object]]:
        """The figures, by name."""
        return [
            ("updates sent", self.sent),
            ("updates handled", self.handled),
            ("  before the kill", self.killed_after),
            ("  runs of each replica", "/".join(map(str, self.shares))),
            ("seconds", round(self.seconds, 1)),
            ("  longest without an update", round(self.stalled_seconds, 1)),
            ("handlers run again after the kill", self.reruns),
            ("LOST", self.sent - self.handled),
            ("CHATS OUT OF ORDER", len(self.disordered)),
        ]


def main() -> int:
    """Run the command; return 0 when everything is as promised."""
    parser = argparse.ArgumentParser(
        prog="bot_replicas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=10_000, help="how many updates; 10,000 by default")
    parser.add_argument("--chats", type=int, default=500, help="from how many chats; 500 by default")
    parser.add_argument("--keep", type=Path, help="a new folder for the processes' logs")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="bot-replicas-"))
    with LocalServers() as servers:
        redis, rabbitmq = servers.start("redis"), servers.start("rabbitmq")
        _say(f"{redis.source}; {rabbitmq.source}")
        if not rabbitmq.is_real:
            sys.exit("a stand-in proves nothing: RabbitMQ is needed as a program")
        proving = prove(
            redis.url, rabbitmq.url, folder, updates=options.updates, chats=options.chats, say=_say
        )
        outcome = asyncio.run(proving)
    for name, figure in outcome.lines():
        _write(f"{name:<40}{figure:>16}")
    if outcome.holds and not options.keep:
        shutil.rmtree(folder)
    else:
        _write(f"the logs are in {folder}")
    return 0 if outcome.holds else 1


async def prove(
    redis_url: str,
    broker_url: str,
    folder: Path,
    *,
    updates: int,
    chats: int,
    lease_seconds: float = 30.0,
    say: Callable[[str], None],
) -> Outcome:
    """Send so many updates, kill the replica that polls after a third of them, and wait for the rest.

    Args:
        redis_url: an empty database.
        broker_url: a virtual host of its own.
        folder: for the processes' logs.
        updates: the number of updates.
        chats: the number of chats that they come from.
        lease_seconds: how long a replica that has died keeps its chats.
        say: told what goes on.
    """
    async with (
        FakeTelegram(token=f"{secrets.randbelow(10**9)}:fake-telegram-token") as telegram,
        connect_redis(redis_url, timeout_seconds=30) as redis,
        Supervisor(folder) as supervisor,
    ):
        services = [
            _replica(number, telegram, redis_url, broker_url, lease_seconds) for number in range(REPLICAS)
        ]
        await supervisor.start(*services, timeout_seconds=180)
        say(f"{REPLICAS} replicas are ready")
        ledger = _Ledger(redis, updates)
        began = time.monotonic()
        for number in range(updates):
            telegram.push_text(str(number // chats), from_user=TelegramUser(id=1 + number % chats))
        await ledger.until(updates // 3)
        killed_after = await ledger.count()
        logs = {service.name: supervisor.logs[service.name].read_text() for service in services}
        poller = next(name for name, text in logs.items() if POLLS in text)
        await supervisor.kill(poller)
        say(f"killed {poller}, which polls, after {killed_after} updates")
        await ledger.until(updates)
        seconds = time.monotonic() - began
        runs = await redis.hvals(RUNS)
        shares = await redis.hvals(BY_REPLICA)
        handled = await ledger.count()
        disordered = [
            chat
            for chat in range(1, chats + 1)
            if await redis.lrange(f"{CHAT}{chat}", 0, -1)
            != [str(number // chats) for number in range(updates) if number % chats == chat - 1]
        ]
    return Outcome(
        sent=updates,
        handled=handled,
        seconds=seconds,
        shares=sorted(map(int, shares), reverse=True),
        reruns=sum(map(int, runs)) - len(runs),
        disordered=disordered,
        killed_after=killed_after,
        stalled_seconds=ledger.stalled_seconds,
    )


class _Ledger:
    """The effects, as they come in."""

    def __init__(self, redis: Any, updates: int) -> None:
        self._redis = redis
        self._updates = updates
        self.stalled_seconds = 0.0

    async def count(self) -> int:
        return int(await self._redis.scard(DONE))

    async def until(self, count: int) -> None:
        """Wait for so many effects, or until none comes any more."""
        seen, changed_at = await self.count(), time.monotonic()
        while seen < count and time.monotonic() - changed_at < SETTLE_SECONDS:
            await asyncio.sleep(0.05)
            found, now = await self.count(), time.monotonic()
            if found != seen:
                self.stalled_seconds = max(self.stalled_seconds, now - changed_at)
                seen, changed_at = found, now


def _replica(
    number: int, telegram: FakeTelegram, redis_url: str, broker_url: str, lease_seconds: float
) -> Service:
    port = free_port()
    return Service(
        name=f"replica_{number}",
        argv=[sys.executable, "-m", "tests.proofs._bot_replica"],
        environment={
            "SERVICE_NAME": "proof_bot",
            "UPDATES": "queue",
            "BOT_TOKEN": telegram.token,
            "TELEGRAM_API_URL": telegram.url,
            "REDIS_URL": redis_url,
            "RABBITMQ_URL": broker_url,
            "MANAGEMENT_PORT": str(port),
            "LEASE_SECONDS": str(lease_seconds),
            "WEBHOOK_URL": None,
        },
        ready_url=f"http://127.0.0.1:{port}/ready",
    )


def _write(line: str, *, to: TextIO = sys.stdout) -> None:
    to.write(line + "\n")
    to.flush()


def _say(line: str) -> None:
    _write(f"{time.strftime('%H:%M:%S')} {line}", to=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
