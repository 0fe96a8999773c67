"""What messaging costs a service: CPU and wall time per event, beside aio-pika, FastStream and a C client.

All sides speak to the same broker in the same run and do the same work: an envelope of about 512 bytes from a pydantic
model, headers, persistent, mandatory, confirmed; a quorum queue; a typed handler and an acknowledgement. Each side runs
in a process of its own, the sides take turns, and the median of the rounds counts. Where the goal is a number, the peer
is that number ("limit").

Without `--url` a RabbitMQ and a Redis are started for it, as `hybridkit.dev` finds them.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Final

from aio_pika import ExchangeType

from benchmarks._librabbitmq import c_client
from benchmarks._payload import CONSUMER, EVENT_TYPE, EXCHANGE, PEER_QUEUE, SINK
from benchmarks._report import Result, show
from benchmarks._side import Sample, channel_of
from hybridkit.dev import LocalServers, Server

ROUNDS: Final = 3
EVENTS: Final = 5_000
FEW_EVENTS: Final = 1_500
MANY_EVENTS: Final = 20_000
OURS: Final = "benchmarks._ours"
AIO_PIKA: Final = "benchmarks._peer_aio_pika"
FASTSTREAM: Final = "benchmarks._peer_faststream"
SIDE_SECONDS: Final = 1_800

type Side = Callable[[], Sample]
type Compared = Mapping[str, Sample]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.messaging",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument(
        "--url", help="a RabbitMQ to use; queues `bench_*` are created there, and deleted at the end"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each comparison; {ROUNDS} by default")
    parser.add_argument("--only", default="", help="only comparisons whose name contains this")
    parser.add_argument(
        "--long", action="store_true", help="a million messages instead of 100,000 for `flat`"
    )
    chosen = parser.parse_args()
    with LocalServers() as servers:
        url = chosen.url or _real(servers.start("rabbitmq")).url
        bench = Bench(url, servers, rounds=chosen.rounds, flat_events=10**6 if chosen.long else 10**5)
        for name, comparison in bench.comparisons().items():
            if chosen.only in name:
                for result in comparison():
                    show(result, as_json=chosen.json)


class Bench:
    """The comparisons, on one broker."""

    def __init__(self, url: str, servers: LocalServers, *, rounds: int, flat_events: int) -> None:
        self._url = url
        self._servers = servers
        self._rounds = rounds
        self._flat_events = flat_events

    def comparisons(self) -> Mapping[str, Callable[[], Iterator[Result]]]:
        """By name, in their order."""
        return {
            "publish in flight": self.publish_in_flight,
            "publish one by one": self.publish_one_by_one,
            "publish many": self.publish_many,
            "consume": self.consume,
            "consume guarded": self.consume_guarded,
            "flat": self.flat,
        }

    def publish_in_flight(self) -> Iterator[Result]:
        """500 events in flight: CPU against FastStream and aio-pika, the rate against C."""
        sides = {
            "ours": self._side(OURS, "publish_in_flight", MANY_EVENTS),
            "FastStream": self._side(FASTSTREAM, "publish_in_flight", MANY_EVENTS),
            "aio-pika": self._side(AIO_PIKA, "publish_in_flight", MANY_EVENTS),
        }
        with ExitStack() as stack:
            client = stack.enter_context(c_client())
            if client is not None:
                sides["librabbitmq"] = partial(client.publish, self._url, MANY_EVENTS)
            else:
                _say("librabbitmq is not available (gcc and librabbitmq-dev): its row is left out")
            medians = self._compare("publish in flight", sides)
        name = "publish, 500 in flight"
        yield _result(name, medians, "FastStream", goal=9.0)
        yield _result(name, medians, "aio-pika", goal=1.0)
        yield _limit(name, medians, microseconds=20.0)
        if "librabbitmq" in medians:
            yield _result(f"{name}, wall", medians, "librabbitmq", goal=0.9, figure="wall")

    def publish_one_by_one(self) -> Iterator[Result]:
        """Each awaited before the next: the round trip to the broker, and its CPU."""
        sides = {
            "ours": self._side(OURS, "publish_one_by_one", FEW_EVENTS),
            "aio-pika": self._side(AIO_PIKA, "publish_one_by_one", FEW_EVENTS),
        }
        medians = self._compare("publish one by one", sides)
        yield _result("publish, one by one", medians, "aio-pika", goal=1.0)
        yield _result("publish, one by one, wall", medians, "aio-pika", goal=1.0, figure="wall")

    def publish_many(self) -> Iterator[Result]:
        """`publish_many`, against its limit."""
        medians = self._compare("publish many", {"ours": self._side(OURS, "publish_many", MANY_EVENTS)})
        yield _limit("publish_many", medians, microseconds=15.0)

    def consume(self) -> Iterator[Result]:
        """Typed handler and acknowledgement."""
        sides = {
            "ours": self._side(OURS, "consume"),
            "FastStream": self._side(FASTSTREAM, "consume"),
        }
        medians = self._compare("consume", sides)
        yield _result("consume", medians, "FastStream", goal=5.5)
        yield _limit("consume", medians, microseconds=64.0)

    def consume_guarded(self) -> Iterator[Result]:
        """Consume with the idempotency guard; FastStream's handler does SET NX and SET by hand."""
        os.environ["BENCHMARK_REDIS_URL"] = _real(self._servers.start("redis")).url
        sides = {
            "ours": self._side(OURS, "consume_guarded"),
            "FastStream": self._side(FASTSTREAM, "consume_guarded"),
        }
        medians = self._compare("consume guarded", sides)
        yield _result("consume with the guard", medians, "FastStream", goal=5.0)
        yield _limit("consume with the guard", medians, microseconds=90.0)

    def flat(self) -> Iterator[Result]:
        """Publish and consume in one process: what a message costs early and late, and the memory early and late."""
        _say(f"flat: {self._flat_events} messages")
        self._set_up()
        sample = _run_side(OURS, "flat", self._url, self._flat_events)
        for what, unit in (("cpu", "us"), ("memory", "MiB")):
            yield Result(
                name=f"flat, {what} at {self._flat_events}",
                ours=sample[f"{what}_late"],
                peer=sample[f"{what}_early"],
                peer_name="ours, at 1,000",
                unit=unit,
                goal=0.9,
            )
        asyncio.run(_delete_queues(self._url))

    def _side(self, module: str, scenario: str, count: int = EVENTS) -> Side:
        return partial(_run_side, module, scenario, self._url, count)

    def _compare(self, name: str, sides: Mapping[str, Side]) -> Compared:
        """Return the median of each side's figures; the sides take turns."""
        samples: dict[str, list[Sample]] = {side: [] for side in sides}
        for number in range(self._rounds):
            for side, measure in sides.items():
                self._set_up()
                sample = measure()
                samples[side].append(sample)
                _say(
                    f"{name}, round {number + 1}: {side}: {sample['cpu']:.1f} us CPU, {sample['wall']:.1f} us"
                )
        asyncio.run(_delete_queues(self._url))
        return {side: _median(of_side) for side, of_side in samples.items()}

    def _set_up(self) -> None:
        """Declare an empty queue for published events; no consumer has it."""
        asyncio.run(_delete_queues(self._url))
        asyncio.run(_declare_sink(self._url))


def _real(server: Server) -> Server:
    """No stand-in: its figures would say nothing about anybody's broker."""
    if not server.is_real:
        sys.exit(f"a real {server.kind} server is needed, and there is only a stand-in: {server.source}")
    return server


def _run_side(module: str, scenario: str, url: str, count: int) -> Sample:
    command = [sys.executable, "-m", module, scenario, url, str(count)]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        command, stdout=subprocess.PIPE, check=True, timeout=SIDE_SECONDS
    )
    sample: Sample = json.loads(done.stdout)
    return sample


async def _declare_sink(url: str) -> None:
    async with channel_of(url) as channel:
        exchange = await channel.declare_exchange(EXCHANGE, ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(SINK, durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind(exchange, EVENT_TYPE)


async def _delete_queues(url: str) -> None:
    async with channel_of(url) as channel:
        for name in (SINK, CONSUMER, f"{CONSUMER}.dlq", PEER_QUEUE):
            await channel.queue_delete(name)


def _median(samples: list[Sample]) -> Sample:
    return {figure: statistics.median(sample[figure] for sample in samples) for figure in samples[0]}


def _result(name: str, medians: Compared, peer: str, *, goal: float, figure: str = "cpu") -> Result:
    return Result(
        name=name,
        ours=medians["ours"][figure],
        peer=medians[peer][figure],
        peer_name=peer,
        unit="us",
        goal=goal,
    )


def _limit(name: str, medians: Compared, *, microseconds: float) -> Result:
    return Result(
        name=name, ours=medians["ours"]["cpu"], peer=microseconds, peer_name="limit", unit="us", goal=1.0
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
