"""The no-loss proof: `python -m tests.proofs.ledger --minutes 3 --cluster`.

Two publishers and two replicas of three consumers, processes of their own, work on a real RabbitMQ (one node, or a
cluster of three) and a real Redis, while the broker is killed, frozen, restarted, put under a memory alarm, made to
close all its connections, and bereft of queues. Every id is written down before it is published and after it is
confirmed, and every effect when it is done. At the end nothing that was confirmed may be missing, and nothing may have
happened twice.

The faults and their order follow from the seed; the moment at which each hits doesn't.
"""

import argparse
import asyncio
import contextlib
import json
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit, urlunsplit

from hybridkit.dev import LocalServers, Server
from tests.proofs._books import Balance, Book, balance, read_books
from tests.proofs._faults import Injector, schedule

PUBLISHERS = 2
REPLICAS = 2
SETTLE_SECONDS = 240.0
"""How long nothing may happen before what is missing counts as lost.

Longer than leases and waits for their holders, and than RabbitMQ's own wait: what its dead-letter worker had in hand
when the broker died, it publishes again after three minutes (`dead_letter_worker_publisher_confirm_timeout`).
"""
SETTLE_PAUSE_SECONDS = 3.0
MORE_TASKS = 5
MORE_FUTURES = 25
MORE_MIB = 16.0


def main() -> int:
    """Run the command; return 0 when the books balance and no process leaks."""
    parser = argparse.ArgumentParser(
        prog="ledger", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="how long faults are injected; 3 by default"
    )
    parser.add_argument("--seed", type=int, default=None, help="of the faults; printed, random by default")
    parser.add_argument("--cluster", action="store_true", help="three nodes instead of one")
    parser.add_argument("--keep", type=Path, help="a new folder for the books and the processes' logs")
    options = parser.parse_args()
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    folder = options.keep or Path(tempfile.mkdtemp(prefix="ledger-"))
    folder.mkdir(parents=True, exist_ok=True)
    holds = asyncio.run(_run(folder, minutes=options.minutes, seed=seed, cluster=options.cluster))
    if holds and not options.keep:
        shutil.rmtree(folder)
    else:
        _write(f"the books are in {folder}")
    return 0 if holds else 1


async def _run(folder: Path, *, minutes: float, seed: int, cluster: bool) -> bool:
    with LocalServers() as servers, Book(folder / "conductor.book") as book:
        _say(f"seed {seed}; starting servers")
        nodes: Sequence[Server] = (
            servers.start_rabbitmq_cluster() if cluster else [servers.start("rabbitmq", private=True)]
        )
        redis = servers.start("redis", private=True)
        _say(f"{nodes[0].source}; {redis.source}")
        if not (nodes[0].is_real and redis.is_real):
            sys.exit("a stand-in proves nothing: RabbitMQ and Redis are needed as programs")
        injector = Injector(nodes, book)
        injected: Counter[str] = Counter()
        async with AsyncExitStack() as stack:
            for number in range(REPLICAS):
                url = _url(nodes, first=number)
                await stack.enter_async_context(
                    _process(folder, "_worker", f"worker_{number}", url, redis.url)
                )
            async with AsyncExitStack() as publishing:
                for number in range(PUBLISHERS):
                    url = _url(nodes, first=number + 1)
                    name, seeded = f"producer_{number}", str(seed + number)
                    await publishing.enter_async_context(
                        _process(folder, "_producer", name, url, last=seeded)
                    )
                await _inject(injector, injected, seed=seed, minutes=minutes, nodes=len(nodes))
                _say("no more faults; publishing what is left")
            await _settle(folder, injector)
        return _report(folder, injector, injected, seed=seed)


async def _inject(
    injector: Injector, injected: Counter[str], *, seed: int, minutes: float, nodes: int
) -> None:
    ends_at = time.monotonic() + minutes * 60
    for fault in schedule(seed, nodes=nodes, count=10_000):
        if time.monotonic() + fault.calm_seconds + fault.seconds > ends_at:
            return
        await asyncio.sleep(fault.calm_seconds)
        _say(str(fault))
        injected[fault.kind] += 1
        await injector.inject(fault)


def _url(nodes: Sequence[Server], *, first: int) -> str:
    """Return a URL with all nodes, beginning with another one each time."""
    urls = [urlsplit(nodes[(first + number) % len(nodes)].url) for number in range(len(nodes))]
    hosts = ",".join(f"{url.hostname}:{url.port}" for url in urls)
    return urlunsplit(urls[0]._replace(netloc=f"{urls[0].username}:{urls[0].password}@{hosts}"))


@asynccontextmanager
async def _process(folder: Path, module: str, name: str, url: str, last: str) -> AsyncGenerator[None]:
    """Run one of the ledger's processes inside the block; SIGTERM ends it, and its failure ends the proof."""
    words = [sys.executable, "-m", f"tests.proofs.{module}", name, url, str(folder), last]
    with (folder / f"{name}.errors").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE, stderr=errors)
    try:
        assert process.stdout is not None
        if await process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{name} did not start: {(folder / f'{name}.errors').read_text()}")
        yield
        process.send_signal(signal.SIGTERM)
        if code := await asyncio.wait_for(process.wait(), 300):
            raise RuntimeError(f"{name} ended with {code}: {(folder / f'{name}.errors').read_text()}")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _settle(folder: Path, injector: Injector) -> None:
    """Wait until everything is accounted for and all queues are empty, or nothing happens any more."""
    done, changed_at = (0, 0), time.monotonic()
    while time.monotonic() - changed_at < SETTLE_SECONDS:
        await injector.take_dead_letters()
        backlog = await injector.backlog()
        books = balance(read_books(folder), injector.deletions)
        if not backlog and not books.lost:
            return
        now_done = books.effects, books.dead_letters
        if now_done != done:
            done, changed_at = now_done, time.monotonic()
            _say(f"{len(books.lost)} to come, {backlog} in queues")
        await asyncio.sleep(SETTLE_PAUSE_SECONDS)


def _report(folder: Path, injector: Injector, injected: Counter[str], *, seed: int) -> bool:
    lines = list(read_books(folder))
    books = balance(lines, injector.deletions)
    samples = {path.stem: _read_samples(path) for path in sorted(folder.glob("*.samples"))}
    leaks = [leak for name, of in samples.items() for leak in _leaks(name, of)]
    problems = [*injector.problems, *leaks]
    figures = {
        "seed": seed,
        "faults injected": injected.total(),
        **{f"  {kind}": count for kind, count in sorted(injected.items())},
        "published": books.published,
        "confirmed": books.confirmed,
        "attempts with an unknown outcome": books.unknown,
        "attempts not sent": sum(line.verb == "unsent" for line in lines),
        "refused": books.refused,
        "effects": books.effects,
        "duplicates removed": int(sum(of[-1].get("duplicates", 0) for of in samples.values())),
        "dead letters": books.dead_letters,
        "dead letters that are there twice": books.dead_letter_copies,
        "gone with a deleted queue": books.deleted_with_queue,
        "early": books.early,
        "LOST": len(books.lost),
        "DOUBLED": len(books.doubled),
        "handlers through twice": len(books.repeated),
    }
    for name, figure in figures.items():
        _write(f"{name:<36}{figure:>10}")
    for name, of in samples.items():
        before, after = of[0], of[-1]
        flat = ", ".join(
            f"{what} {before[what]:.0f} -> {after[what]:.0f}" for what in ("tasks", "futures", "mib")
        )
        _write(f"{name:<36}{flat}")
    _name_ids(books)
    for problem in problems:
        _write(f"PROBLEM {problem}")
    return books.holds and not problems and not books.refused


def _name_ids(books: Balance) -> None:
    for what, places in (("LOST", books.lost), ("DOUBLED", books.doubled), ("TWICE", books.repeated)):
        for queue, event_id in random.sample(places, min(len(places), 5)):
            _write(f"{what} {event_id} in {queue}")


def _read_samples(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _leaks(name: str, samples: list[dict[str, Any]]) -> list[str]:
    """Return what an idle process has more of after the run than before; memory counts from a third of the run on."""
    before, after, third = samples[0], samples[-1], samples[len(samples) // 3]
    if after["moment"] != "after":
        return [f"{name} has no sample from its end"]
    leaks: list[str] = []
    for what, first, limit in (
        ("tasks", before["tasks"], MORE_TASKS),
        ("futures", before["futures"], MORE_FUTURES),
        ("mib", third["mib"], MORE_MIB),
    ):
        if after[what] > first + limit:
            leaks.append(f"{name} holds more {what}: {first:.0f} -> {after[what]:.0f}")
    return leaks


def _write(line: str, *, to: TextIO = sys.stdout) -> None:
    to.write(line + "\n")
    to.flush()


def _say(line: str) -> None:
    _write(f"{time.strftime('%H:%M:%S')} {line}", to=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
