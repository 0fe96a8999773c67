"""The proof of jobs: `python -m tests.proofs.jobs`.

Three replicas run two jobs of one second, which write through a data service before and after their work. Meanwhile a
replica is killed with SIGKILL in the middle of a run, stopped by SIGTERM in the middle of a run, or frozen for longer
than its lease, and the clock of Redis is set forward and back. Of the job that makes up for every missed slot, each
slot has its effects once, with none left out; of the job that makes up for the last one, none has them twice, and of
the slots that were jumped over, the last one has them.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from hybridkit.coordination import Redis, connect_redis
from hybridkit.dev import LocalServers
from hybridkit.testing import FakeDataService
from tests.helpers import until
from tests.helpers.job_clock import set_clock, shift_clock_of_jobs
from tests.proofs._job_replica import EFFECTS, SERVICE, JobRecord, NewEffect

FAULTS = ("kill", "stop", "freeze", "forward", "back")
FREEZE_SECONDS = 6.0
JUMP_SECONDS = 20.0
SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        slots: how many slots the two jobs have effects of.
        missing: slots of `each` without one of their effects.
        doubled: effects that are there more than once.
        unmade: jumps over slots of `last` whose last slot has no effect.
        faults: how often each fault was done.
        rerun: how many runs were begun again.
        repeated: how many runs have come to their end more than once. The effects are there once nevertheless; but only
            a replica that dies or freezes between the last effect and its record may have it so, and a clock that is
            set forward beyond the end of a lease, which is a time of that clock.
    """

    slots: int
    missing: list[str]
    doubled: list[str]
    unmade: list[str]
    faults: Counter[str] = field(default_factory=Counter[str])
    rerun: int = 0
    repeated: int = 0

    @property
    def holds(self) -> bool:
        """Whether every slot had its effects once, and was run again for a reason only."""
        reasons = sum(self.faults[fault] for fault in ("kill", "stop", "freeze", "forward"))
        return not (self.missing or self.doubled or self.unmade) and self.repeated <= reasons

    def __str__(self) -> str:
        faults = ", ".join(f"{count} times {fault}" for fault, count in sorted(self.faults.items()))
        found = (("missing", self.missing), ("doubled", self.doubled), ("not made up for", self.unmade))
        return (
            f"{self.slots} slots; {self.rerun} runs begun again and {self.repeated} ended again ({faults}); "
            + ", ".join(f"{len(which)} {what} {which[:3]}" for what, which in found)
        )


def judge(effects: Sequence[NewEffect], jumps: Iterable[tuple[datetime, datetime]] = ()) -> Verdict:
    """Compare the effects with what was promised.

    Args:
        effects: all that are stored.
        jumps: the times between which the clock was set forward, without those over which it had gone before.
    """
    counts = Counter((effect.job, effect.slot, effect.step) for effect in effects)
    doubled = [" ".join(each) for each, count in counts.items() if count > 1]
    slots = {job: sorted({slot for of, slot, _ in counts if of == job}) for job in ("each", "last")}
    missing: list[str] = []
    if each := slots["each"]:
        at, end = (datetime.fromisoformat(slot) for slot in (each[0], each[-1]))
        while at <= end:
            wanted = [("each", at.isoformat(), step) for step in ("before", "after")]
            missing += [" ".join(effect) for effect in wanted if effect not in counts]
            at += SECOND
    last = [datetime.fromisoformat(slot) for slot in slots["last"]]
    # The first slot after the landing may come before the one that makes up for the jump is begun, and take its part.
    near = 3 * SECOND
    unmade = [
        f"{start} to {end}"
        for start, end in jumps
        if not any(end - near <= slot <= end + near for slot in last)
    ]
    return Verdict(sum(map(len, slots.values())), missing, doubled, unmade)


class Replica:
    """A process that runs the jobs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @classmethod
    async def start(cls, environment: dict[str, str]) -> "Replica":
        """Start a process, and wait until it looks for due jobs."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.proofs._job_replica",
            env=os.environ | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=None if os.environ.get("PROOF_LOGS") else asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        await process.stdout.readuntil(b"ready\n")
        asyncio.get_running_loop().create_task(process.stdout.read(), name="the rest of its log")
        return cls(process)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    async def end(self, number: signal.Signals) -> None:
        """Send a signal, and wait for the end."""
        if self._process.returncode is None:
            self.send(number)
        await self._process.wait()


class Proof:
    """Replicas, what they have written, and the faults that are done to them."""

    def __init__(self, redis: Redis, environment: dict[str, str], ledger: Path, seed: int) -> None:
        self._redis = redis
        self._environment = environment
        self._ledger = ledger
        self._random = random.Random(seed)
        self._replicas: list[Replica] = []
        self._shift_seconds = self._furthest_seconds = 0.0
        self.faults: Counter[str] = Counter()
        self.jumps: list[tuple[datetime, datetime]] = []

    async def start(self, count: int) -> None:
        """Start replicas."""
        self._replicas += await asyncio.gather(*(Replica.start(self._environment) for _ in range(count)))

    async def until_ended_runs(self, count: int) -> None:
        """Wait until so many more runs have ended."""
        wanted = len(self._lines("ended")) + count
        await until(lambda: len(self._lines("ended")) >= wanted)

    async def harm(self, fault: str) -> None:
        """Do one fault, and make up for what it has taken away."""
        self.faults[fault] += 1
        match fault:
            case "kill" | "stop":
                replica = await self._one_frozen_in_mid_run()
                if fault == "stop":
                    replica.send(signal.SIGTERM)  # it finds the signal when it is woken
                    await replica.end(signal.SIGCONT)
                await replica.end(signal.SIGKILL)
                self._replicas.remove(replica)
                await self.start(1)
            case "freeze":
                replica = await self._one_frozen_in_mid_run()
                await asyncio.sleep(FREEZE_SECONDS)
                replica.send(signal.SIGCONT)
            case "forward":
                before = await self._now()
                # Beyond all where it was before, as the slots up to there are settled.
                self._shift_seconds = self._furthest_seconds = self._furthest_seconds + JUMP_SECONDS
                await set_clock(self._redis, shift_seconds=self._shift_seconds)
                self.jumps.append((before, await self._now()))
            case _:
                self._shift_seconds -= JUMP_SECONDS / 10
                await set_clock(self._redis, shift_seconds=self._shift_seconds)

    def random_fault(self) -> str:
        """Choose the next fault."""
        return self._random.choice(FAULTS)

    async def finish(self) -> None:
        """Wait until no slot is left, and stop all."""
        target = await self._now()
        await until(lambda: self._has_caught_up(target))
        for replica in self._replicas:
            replica.send(signal.SIGTERM)
        await asyncio.gather(*(replica.end(signal.SIGTERM) for replica in self._replicas))
        # What was given back is run once more, so that no slot is left half done.
        await self._settle()

    def repetitions(self, what: str) -> int:
        """Return how many runs were begun again, or have ended again."""
        runs = Counter(line.partition(f" {what} ")[2] for line in self._lines(what))
        return sum(count - 1 for count in runs.values())

    async def _has_caught_up(self, target: datetime) -> bool:
        states = [await self._record(job).look() for job in ("each", "last")]
        return all(state.cursor is not None and state.cursor > target - SECOND for state in states)

    async def close(self) -> None:
        """Kill what still runs."""
        await asyncio.gather(*(replica.end(signal.SIGKILL) for replica in self._replicas))

    async def _settle(self) -> None:
        while any([(await self._record(job).look()).slot for job in ("each", "last")]):
            replica = await Replica.start(self._environment)
            await self.until_ended_runs(1)
            await replica.end(signal.SIGTERM)

    async def _now(self) -> datetime:
        return (await self._record("each").look()).now

    def _record(self, job: str) -> JobRecord:
        return JobRecord(self._redis, service=SERVICE, job=job)

    async def _one_frozen_in_mid_run(self) -> Replica:
        """Wait until a replica is in the middle of a run, freeze it there, and return it."""
        while True:
            replica = await self._one_that_runs()
            replica.send(signal.SIGSTOP)
            # What it was writing at that moment is written before it stops.
            await until(lambda: psutil.Process(replica.pid).status() == psutil.STATUS_STOPPED)  # noqa: B023
            if replica.pid in self._running():
                return replica
            replica.send(signal.SIGCONT)  # it was faster, and has written the end of its run

    async def _one_that_runs(self) -> Replica:
        found: list[Replica] = []

        def look() -> bool:
            running = self._running()
            found[:] = [replica for replica in self._replicas if replica.pid in running]
            return bool(found)

        await until(look)
        return self._random.choice(found)

    def _running(self) -> set[int]:
        """Return the processes whose last line says that they have begun."""
        open_runs: Counter[int] = Counter()
        for line in self._ledger.read_text().splitlines():
            pid, what, _ = line.split(" ", 2)
            open_runs[int(pid)] += 1 if what == "begun" else -1
        return {pid for pid, count in open_runs.items() if count > 0}

    def _lines(self, what: str) -> list[str]:
        return [line for line in self._ledger.read_text().splitlines() if f" {what} " in line]


@asynccontextmanager
async def proving(
    redis_url: str, *, replicas: int, seed: int
) -> AsyncGenerator[tuple[Proof, FakeDataService]]:
    """Start everything, and end it after the block."""
    shift_clock_of_jobs()
    effects = FakeDataService([EFFECTS])
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        ledger = Path(folder) / "ledger"
        ledger.touch()
        data_url = await stack.enter_async_context(effects.serve())
        redis = await stack.enter_async_context(connect_redis(redis_url, timeout_seconds=10.0))
        environment = {"REDIS_URL": redis_url, "DATA_URL": data_url, "LEDGER": str(ledger)}
        proof = Proof(redis, environment, ledger, seed)
        stack.push_async_callback(proof.close)
        await proof.start(replicas)
        yield proof, effects


async def prove(redis_url: str, faults: Iterable[str], *, replicas: int = 3, seed: int = 0) -> Verdict:
    """Do the faults one after another while the jobs run, and judge the effects.

    Args:
        redis_url: an empty database.
        faults: as many as wanted; an empty text chooses by chance.
        replicas: the processes.
        seed: of the choices.
    """
    async with proving(redis_url, replicas=replicas, seed=seed) as (proof, effects):
        await proof.until_ended_runs(2)
        for fault in faults:
            await proof.harm(fault or proof.random_fault())
            await proof.until_ended_runs(2)
        await proof.finish()
        async with effects.postgres_client(service="proof") as client:
            stored = [effect async for effect in client.find(EFFECTS).order_by("slot")]
        return replace(
            judge(stored, proof.jumps),
            faults=proof.faults,
            rerun=proof.repetitions("begun"),
            repeated=proof.repetitions("ended"),
        )


def main() -> int:
    """Run the proof for some time, print what was found, and return 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    sys.stdout.write(f"seed {arguments.seed}\n")
    until_then = time.monotonic() + arguments.seconds
    by_chance = iter(lambda: time.monotonic() < until_then, False)
    with LocalServers() as servers:
        redis_url = servers.start("redis").url
        verdict = asyncio.run(prove(redis_url, ("" for _ in by_chance), seed=arguments.seed))
    sys.stdout.write(f"{verdict}\n")
    return 0 if verdict.holds else 1


if __name__ == "__main__":
    sys.exit(main())
