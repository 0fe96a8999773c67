"""The proof of tracing: `python -m tests.proofs.trace`.

The five services of `examples/` run as processes on real servers and send their spans to a real Jaeger. One
registration is made, and Jaeger is asked for its trace: it has to have all five services in it. Then Jaeger is frozen,
so that it takes connections and answers nothing, and then killed: requests have to succeed as fast as before, each
process may say it once, and what is lost has to be counted. Jaeger comes back, and gets the next registration's trace.
At the end it is killed again, and the services have to stop in time nevertheless.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from examples.demo.stack import SERVICES, make_stack
from hybridkit.dev import KINDS, LocalServers, Server, Service, Supervisor, free_port
from hybridkit.testing import Stack

REQUESTS = 300
"""How many requests each phase makes, one after another."""
SLOWER = 1.5
"""How many times the median without a collector may be that with one; a machine is never quiet."""
WAIT_SECONDS = 60.0
JAEGER = "jaeger"


class Jaeger:
    """A Jaeger that keeps traces in memory, on ports of its own.

    Args:
        program: the path of the program.
        directory: gets its configuration.
    """

    def __init__(self, program: Path, directory: Path) -> None:
        self.query_url = f"http://127.0.0.1:{free_port()}"
        self.otlp_url = f"http://127.0.0.1:{free_port()}"
        configuration = directory / "jaeger.yaml"
        configuration.write_text(json.dumps(self._configuration()))  # JSON is YAML
        self.service = Service(
            name=JAEGER,
            argv=[str(program), "--config", f"file:{configuration}"],
            ready_url=f"{self.query_url}/api/services",
        )

    def _configuration(self) -> dict[str, Any]:
        otlp, query = (url.removeprefix("http://") for url in (self.otlp_url, self.query_url))
        exporter, storage = "jaeger_storage_exporter", "jaeger_storage"
        return {
            "service": {
                "extensions": [storage, "jaeger_query"],
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": [exporter]}},
                "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            },
            "extensions": {
                storage: {"backends": {"memory": {"memory": {"max_traces": 10_000}}}},
                "jaeger_query": {
                    "storage": {"traces": "memory"},
                    "http": {"endpoint": query},
                    "grpc": {"endpoint": f"127.0.0.1:{free_port()}"},
                },
            },
            "receivers": {"otlp": {"protocols": {"http": {"endpoint": otlp}}}},
            "exporters": {exporter: {"trace_storage": "memory"}},
        }

    async def trace(self, request_id: str) -> list[dict[str, Any]]:
        """Return the spans of the trace that the registration with this request id has made."""
        asked = {
            "service": "api_service",
            "operation": "POST /users",
            "tags": json.dumps({"request_id": request_id}),
        }
        async with httpx.AsyncClient(base_url=self.query_url, timeout=10) as client:
            found = (await client.get("/api/traces", params=asked)).json()["data"] or []
        return [
            {**span, "service": trace["processes"][span["processID"]]["serviceName"]}
            for trace in found
            for span in trace["spans"]
        ]


class Proof:
    """The stack under observation, and what came out of it so far."""

    def __init__(self, stack: Stack, supervisor: Supervisor, jaeger: Jaeger, logs: Path) -> None:
        self.stack = stack
        self.logs = logs
        self.supervisor = supervisor
        self.jaeger = jaeger
        self.failures: list[str] = []
        self.api = httpx.AsyncClient(base_url=stack.url("api_service"), timeout=30)

    def check(self, what: str, *, holds: bool, figures: str = "") -> None:
        """Print what was found, and remember what does not hold."""
        say(f"  {'yes' if holds else 'NO '}  {what}{figures and ': ' + figures}")
        if not holds:
            self.failures.append(what)

    async def register(self) -> tuple[str, str]:
        """Register a user, wait for the greeting, and return the request's id and the user's."""
        unique = uuid4().hex[:12]
        person = {
            "email": f"ada.{unique}@example.org",
            "name": "Ada",
            "language": "en",
            "telegram_id": int(unique, 16),
        }
        headers = {"idempotency-key": f'"{unique}"', "x-request-id": unique}
        answer = await self.api.post("/users", json=person, headers=headers)
        answer.raise_for_status()

        async def greeted() -> bool:
            return any(sent.chat_id == person["telegram_id"] for sent in self.stack.telegram.messages)

        await until(greeted, "the greeting on Telegram")
        return unique, str(answer.json()["id"])

    async def show_trace(self, request_id: str) -> None:
        """Wait until Jaeger has all five services in the registration's trace, and print it."""
        spans: list[dict[str, Any]] = []

        async def is_complete() -> bool:
            spans[:] = await self.jaeger.trace(request_id)
            return {span["service"] for span in spans} == set(SERVICES)

        with suppress(TimeoutError):
            await until(is_complete, "the trace in Jaeger")
        services = {span["service"] for span in spans}
        traces = {span["traceID"] for span in spans}
        self.check(
            "the five services are in one trace",
            holds=services == set(SERVICES) and len(traces) == 1,
            figures=", ".join(sorted(services)),
        )
        known = {span["spanID"] for span in spans}
        parents = {parent["spanID"] for span in spans for parent in span["references"]}
        self.check("no span hangs in the air", holds=parents <= known, figures=f"{len(spans)} spans")
        began = min((span["startTime"] for span in spans), default=0)
        for span in sorted(spans, key=lambda span: span["startTime"]):
            offset, lasted = (span["startTime"] - began) / 1000, span["duration"] / 1000
            say(f"       {offset:8.1f} ms {lasted:7.1f} ms  {span['service']:<20} {span['operationName']}")

    async def ask(self, user_id: str) -> list[float]:
        """Read the user many times, and return the milliseconds that each took."""
        took: list[float] = []
        for _ in range(REQUESTS):
            began = time.perf_counter()
            answer = await self.api.get(f"/users/{user_id}")
            answer.raise_for_status()
            took.append((time.perf_counter() - began) * 1000)
        return took

    async def lost(self) -> Mapping[str, float]:
        """Return how many spans each service says that it has lost."""
        counted: dict[str, float] = {}
        async with httpx.AsyncClient(timeout=10) as client:
            for name in SERVICES:
                page = (await client.get(f"{self.stack.management_url(name)}/metrics")).text
                lines = [
                    line for line in page.splitlines() if line.startswith("hybridkit_spans_dropped_total{")
                ]
                counted[name] = sum(float(line.rsplit(" ", 1)[1]) for line in lines)
        return counted

    def said(self, event: str) -> Mapping[str, int]:
        """Return how often each service has said something."""
        return {name: (self.logs / f"{name}.log").read_text().count(event) for name in SERVICES}


async def prove(servers: list[Server], program: Path, directory: Path) -> list[str]:
    """Run the proof, and return what does not hold."""
    jaeger = Jaeger(program, directory)
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = jaeger.otlp_url
    logs = directory / "logs"
    async with Supervisor(logs) as supervisor:
        await supervisor.start(jaeger.service, timeout_seconds=WAIT_SECONDS)
        say("The services start")
        async with make_stack(servers, logs=logs) as stack:
            proof = Proof(stack, supervisor, jaeger, logs)
            async with proof.api:
                await judge(proof)
            await supervisor.kill(JAEGER)
            began = time.monotonic()
            codes = await stack.stop_all()
        proof.check(
            "all stop in order without a collector",
            holds=not any(codes.values()),
            figures=f"{codes} in {time.monotonic() - began:.1f} s",
        )
        return proof.failures


async def judge(proof: Proof) -> None:
    """Ask what is promised, phase by phase."""
    supervisor, jaeger = proof.supervisor, proof.jaeger
    say("A registration, as Jaeger tells it")
    request_id, user_id = await proof.register()
    await proof.show_trace(request_id)

    say("Requests with a collector, with a frozen one, and with none")
    await proof.ask(user_id)  # warms up
    alive = await proof.ask(user_id)
    supervisor.freeze(JAEGER)
    frozen = await proof.ask(user_id)
    supervisor.thaw(JAEGER)
    await supervisor.kill(JAEGER)
    dead = await proof.ask(user_id)
    for name, took in (("frozen", frozen), ("dead", dead)):
        proof.check(
            f"with a {name} collector every request succeeds as fast",
            holds=statistics.median(took) <= SLOWER * statistics.median(alive),
            figures=f"median {statistics.median(took):.2f} ms, most {max(took):.1f} ms;"
            f" with one {statistics.median(alive):.2f} and {max(alive):.1f} ms",
        )

    async def is_counted() -> bool:
        return (await proof.lost())["api_service"] > 0

    await until(is_counted, "lost spans in the metrics")
    await proof.register()
    proof.check("what is lost is counted", holds=True, figures=str(dict(await proof.lost())))

    say("The collector comes back")
    told_of_loss = proof.said("spans can't be sent")
    await supervisor.start(jaeger.service, timeout_seconds=WAIT_SECONDS)

    async def is_sent_again() -> bool:
        await proof.ask(user_id)
        return proof.said("spans are sent again")["api_service"] > 0

    await until(is_sent_again, "spans that are sent again")
    proof.check(
        "each process says once that spans are lost",
        holds=max(told_of_loss.values()) == 1,
        figures=str(dict(told_of_loss)),
    )
    request_id, _ = await proof.register()
    await proof.show_trace(request_id)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until something has happened.

    Raises:
        TimeoutError: it has not in time; the message names it.
    """
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not await condition():  # noqa: ASYNC110  # what other processes do sets no event here
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise TimeoutError(f"{what}: not after {WAIT_SECONDS:g} s") from None


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the command, and return its exit code."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = Path(os.environ.get("HYBRIDKIT_JAEGER") or cache / "hybridkit" / "jaeger" / "jaeger")
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.trace", description=__doc__)
    parser.add_argument("--jaeger", type=Path, default=built, help="the program of Jaeger 2")
    program = parser.parse_args().jaeger
    if not program.is_file():
        sys.exit(f"there is no {program}: scripts/servers/jaeger/build makes it")
    with LocalServers() as servers, tempfile.TemporaryDirectory(prefix="hybridkit-trace-") as directory:
        started = servers.start_all(KINDS)
        failures = asyncio.run(prove(started, program, Path(directory)))
    say(f"\n{len(failures)} of the promises do not hold" if failures else "\nEverything holds.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
