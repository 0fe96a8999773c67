"""The five services as five processes on real servers: the demo is the test."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from examples.demo.stack import SERVICES
from hybridkit.dev._processes._process import ProcessId, descendants, find_process
from tests.helpers.collector import Collector, text_of
from tests.helpers.ecs import lines_of, refusals

ROOT = Path(__file__).parents[2]

# A demo that hangs says itself what it waited for; this only bounds a machine that is far too slow.
pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("unmeasured_test")]


@pytest.fixture
def environment(postgres_url: str, mongo_url: str, redis_url: str, rabbitmq_url: str) -> dict[str, str]:
    return {
        **os.environ,
        "HYBRIDKIT_POSTGRES_URL": postgres_url,
        "HYBRIDKIT_MONGO_URL": mongo_url,
        "HYBRIDKIT_REDIS_URL": redis_url,
        "HYBRIDKIT_RABBITMQ_URL": rabbitmq_url,
    }


async def start_demo(environment: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "examples.demo", *arguments),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def test_what_arrives_once_or_twice_happens_once_in_all_five_services(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Every check of the demo holds on real servers, and a registration is one trace over all services.

    Every line of their logs fits a strict index of the Elastic Common Schema.
    """
    with Collector() as collector:
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        demo = await start_demo(
            environment, "--report", str(tmp_path / "report.json"), "--logs", str(tmp_path)
        )
        output, _ = await demo.communicate()
        spans = collector.spans()
    assert demo.returncode == 0, output.decode()
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    assert [check["name"] for check in report["checks"]] == [
        "POST /users is answered with 201",
        "the user is a row in PostgreSQL",
        "the relay has published user.created",
        "the worker has put analytics into MongoDB",
        "the bot has welcomed the user",
        "/start is answered, by name",
        "the answer is the first one, replayed",
        "there is one row",
        "the key with another body is refused",
        "it is recognised, and answered once",
        "the answer is for the one who asked",
        "worker and bot recognise it",
        "the analytics were not touched again",
        "nobody is welcomed twice",
        "all of this was one event",
        "all five services tell of it",
        "every process has ended with exit code 0",
    ]
    assert any("db_mongo_service" in line and "PUT /v1/user_stats/" in line for line in report["story"])
    check_trace_of_registration(spans)
    for service in SERVICES:
        lines = list(lines_of(tmp_path / f"{service}.log"))
        assert {line["service.name"] for line in lines} == {service}
        assert [refusal for line in lines for refusal in refusals(line)] == []


def check_trace_of_registration(spans: list[tuple[str, Span]]) -> None:
    """Follow the first registration through the spans that all processes have sent."""
    first = next(span for service, span in spans if (service, span.name) == ("api_service", "POST /users"))
    trace = [(service, span) for service, span in spans if span.trace_id == first.trace_id]
    assert {service for service, _ in trace} == set(SERVICES)
    names = {(service, span.name) for service, span in trace}
    assert names >= {
        ("db_postgres_service", "POST /v1:transact"),
        ("db_postgres_service", "INSERT users"),
        ("db_postgres_service", "publish hk.events:user.created"),
        ("db_mongo_service", "PUT /v1/user_stats/{id}"),
        ("db_mongo_service", "update user_stats"),
    }
    known = {span.span_id for _, span in trace}
    assert [span.name for _, span in trace if span.parent_span_id and span.parent_span_id not in known] == []
    processed = [(service, span) for service, span in trace if span.kind == Span.SPAN_KIND_CONSUMER]
    assert {service for service, _ in processed} == {"worker_service", "bot_service"}
    assert all([link.trace_id for link in span.links] == [first.trace_id] for _, span in processed)
    assert len({text_of(span, "request_id") for _, span in trace}) == 1
    updates = [span for service, span in spans if service == "bot_service" and span.name == "update message"]
    assert updates
    assert all(not span.parent_span_id for span in updates)


@pytest.mark.parametrize("chapter", ["Services", "A registration"])
async def test_a_signal_at_any_time_stops_everything(environment: dict[str, str], chapter: str) -> None:
    """Whatever chapter the demo is in, no process below it survives."""
    demo = await start_demo(environment)
    assert demo.stdout is not None
    while chapter not in (line := (await demo.stdout.readline()).decode()):
        assert line, "the demo ended by itself"
    async with asyncio.timeout(60):
        while not (children := processes_below(demo.pid)):  # noqa: ASYNC110  # another process's children
            await asyncio.sleep(0.01)
    demo.send_signal(signal.SIGTERM)
    output, _ = await demo.communicate()
    assert demo.returncode == 130, output.decode()
    assert "Interrupted; everything is stopped." in output.decode()
    assert [child for child in children if child.is_alive()] == []


def processes_below(pid: int) -> list[ProcessId]:
    demo = find_process(pid)
    return descendants([demo])[1:] if demo else []
