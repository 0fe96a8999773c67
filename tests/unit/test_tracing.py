"""Traces pass through without an exporter, and reach a collector with one."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping, Sequence
from queue import Queue
from typing import Any, Never
from unittest.mock import Mock

import pytest
from opentelemetry import trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from hybridkit.errors import MissingExtraError
from hybridkit.observability import (
    Tracing,
    _tracing,
    configure_tracing,
    remote_trace,
    root_span,
    span,
    trace_headers,
)
from hybridkit.observability._metrics import registry
from hybridkit.observability._otlp import BATCH_SPANS, MAX_WAITING_SPANS, EdgeSampler, SpanQueue
from hybridkit.settings import SecretUrl, ServiceSettings
from tests.helpers.collector import Collector

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def settings(endpoint: str | None = None) -> ServiceSettings:
    url = None if endpoint is None else SecretUrl(endpoint)
    return ServiceSettings(service_name="users_api", environment="test", otel_exporter_otlp_endpoint=url)


# ── without an exporter ──────────────────────────────────────────────────────────────────────────


def test_opentelemetry_has_the_name_that_makes_the_question_cheap() -> None:
    """Without it, `is_tracing` would only be slower: nothing else would fail."""
    assert hasattr(trace, "_TRACER_PROVIDER")


def test_there_are_no_headers_outside_of_a_trace() -> None:
    """A span that nobody records makes none."""
    assert trace_headers() == {}
    with span("work"):
        assert trace_headers() == {}


def test_the_caller_s_trace_is_passed_on() -> None:
    """Also by a service that exports nothing itself."""
    headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}
    with span("GET /users/{id}", kind="server", parent=headers), span("work"):
        assert trace_headers() == headers
    assert trace_headers() == {}


@pytest.mark.parametrize("value", ["", "nonsense", f"00-{'0' * 32}-b7ad6b7169203331-01", "00-" + "a" * 500])
def test_a_malformed_header_starts_no_trace(value: str) -> None:
    """Neither as a parent nor as a link."""
    with span("work", parent={"traceparent": value}, linked={"traceparent": value}):
        assert trace_headers() == {}


def test_a_parent_replaces_the_current_trace() -> None:
    """A request that comes without a trace is not part of whatever runs here."""
    with span("outer", parent={"traceparent": TRACEPARENT}), span("inner", parent={}):
        assert trace_headers() == {}


@pytest.mark.parametrize("broken", ["start_span", "end"])
def test_what_records_spans_can_not_fail_the_work(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler or a processor of the application's own may raise; an error of the block is still its own."""

    def fail(*_: object, **__: object) -> Never:
        raise RuntimeError("a processor")

    recorded = Mock(spec=trace.Span)
    tracer = Mock(start_span=fail if broken == "start_span" else lambda *_, **__: recorded)
    recorded.end.side_effect = fail
    monkeypatch.setattr(_tracing, "_tracer", tracer)
    with span("work", parent={}):
        pass
    with pytest.raises(ZeroDivisionError), span("work", parent={}):
        _ = 1 / 0


def test_a_remote_trace_is_a_context_of_opentelemetry() -> None:
    """Its own functions take it."""
    remote = trace.get_current_span(remote_trace({"traceparent": TRACEPARENT})).get_span_context()
    assert trace.format_trace_id(remote.trace_id) == TRACE_ID


async def test_without_an_endpoint_nothing_is_exported() -> None:
    """Closing it does nothing."""
    async with configure_tracing(settings()) as tracing:
        assert repr(tracing) == "Tracing(exporting=False)"
    await tracing.aclose()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is configured, and not at the first span."""
    monkeypatch.delitem(sys.modules, "hybridkit.observability._otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingExtraError, match=r'pip install "hybridkit\[otel\]"'):
        configure_tracing(settings("http://127.0.0.1:4318"))


# ── with an exporter ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


PROGRAM = """
import asyncio
from hybridkit.observability import configure_tracing, root_span, span
from hybridkit.settings import ServiceSettings

PARENT = {"traceparent": "%s"}

async def main():
    async with configure_tracing(ServiceSettings()):
        with span("GET /users", kind="server", parent=PARENT, attributes={"http.route": "/users"}):
            try:
                with span("work"):
                    raise LookupError("no such user in https://user:hunter2@host/users?token=hunter2")
            except LookupError:
                pass
        with span("user.created process", kind="consumer", linked=PARENT):
            pass

async def again():
    async with configure_tracing(ServiceSettings(service_name="second_start")):
        with root_span("job"):
            pass
    with span("after the end"):
        pass

asyncio.run(main())
asyncio.run(again())
"""


def run(endpoint: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ,
        "ENVIRONMENT": "test",
        "SERVICE_NAME": "users_api",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
    }
    command = [sys.executable, "-c", PROGRAM % TRACEPARENT]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)


def test_spans_reach_the_collector_before_the_process_ends(collector: Collector) -> None:
    """With parents, links, errors and the names of the service."""
    run(collector.url)
    resource, spans = collector.next_request()
    assert resource["service.name"] == "users_api"
    assert resource["deployment.environment.name"] == "test"
    server, work, consumer = (spans[name] for name in ("GET /users", "work", "user.created process"))
    assert server.trace_id.hex() == work.trace_id.hex() == TRACE_ID
    assert (server.kind, consumer.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CONSUMER)
    assert work.parent_span_id == server.span_id
    (event,) = work.events
    texts = {pair.key: pair.value.string_value for pair in event.attributes}
    assert texts["exception.type"] == "builtins.LookupError"
    assert "no such user" in texts["exception.message"]
    assert "hunter2" not in str(work)
    assert consumer.trace_id.hex() != TRACE_ID
    assert [link.trace_id.hex() for link in consumer.links] == [TRACE_ID]
    resource, spans = collector.next_request()
    assert (resource["service.name"], list(spans)) == ("second_start", ["job"])


class Exporter(SpanExporter):
    """A collector's stand-in: it answers as it is told, and waits while it is told to."""

    def __init__(self) -> None:
        self.batches: Queue[list[str]] = Queue()
        self.result = SpanExportResult.SUCCESS
        self.error: Exception | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.batches.put([each.name for each in spans])
        self.may_answer.wait(60)
        if self.error:
            raise self.error
        return self.result

    def shutdown(self) -> None:
        self.batches.put(["shutdown"])


def dropped(reason: str) -> float:
    return registry.get_sample_value("hybridkit_spans_dropped_total", {"reason": reason}) or 0.0


@pytest.fixture
def exporter() -> Exporter:
    return Exporter()


@pytest.fixture
def queue(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> Iterator[SpanQueue]:
    """A queue with which this process records; nothing is sent before it is flushed or full."""
    queue = SpanQueue(exporter, interval_seconds=3600)
    provider = TracerProvider(sampler=EdgeSampler(1.0))
    provider.add_span_processor(queue)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(_tracing, "_tracer", provider.get_tracer("hybridkit"))
    yield queue
    exporter.may_answer.set()
    provider.shutdown()


def work(count: int, name: str = "work") -> None:
    for _ in range(count):
        with root_span(name):
            pass


def test_spans_go_out_in_batches(exporter: Exporter, queue: SpanQueue) -> None:
    """A full batch at once, and the rest when asked, or at the end."""
    work(BATCH_SPANS)
    assert len(exporter.batches.get(timeout=60)) == BATCH_SPANS
    work(1, "asked")
    assert queue.force_flush(60_000)
    assert exporter.batches.get(timeout=60) == ["asked"]
    work(1, "last")
    queue.shutdown()
    assert [exporter.batches.get(timeout=60) for _ in range(2)] == [["last"], ["shutdown"]]
    before = dropped("queue_full")
    work(1, "too late")
    assert dropped("queue_full") - before == 1


def test_a_slow_collector_takes_bounded_memory_and_no_time(exporter: Exporter, queue: SpanQueue) -> None:
    """What finds no place is counted, whatever the collector does meanwhile."""
    before = dropped("queue_full")
    exporter.may_answer.clear()
    work(BATCH_SPANS)
    exporter.batches.get(timeout=60)
    work(MAX_WAITING_SPANS + 7)
    assert dropped("queue_full") - before == 7
    assert repr(queue) == f"SpanQueue({MAX_WAITING_SPANS} waiting, failures=0)"
    assert not queue.force_flush(0)


@pytest.mark.parametrize("error", [None, ValueError("not to be encoded")])
def test_a_dead_collector_is_told_of_once(
    exporter: Exporter, queue: SpanQueue, logs: list[MutableMapping[str, Any]], error: Exception | None
) -> None:
    """And once when it is back; each lost span is counted."""
    before = dropped("not_sent")
    exporter.result, exporter.error = SpanExportResult.FAILURE, error
    for _ in range(3):
        work(2)
        assert queue.force_flush(60_000)
        exporter.batches.get(timeout=60)
    exporter.result, exporter.error = SpanExportResult.SUCCESS, None
    work(1)
    assert queue.force_flush(60_000)
    queue.shutdown()
    assert dropped("not_sent") - before == 6
    assert [(line["log_level"], line["event"]) for line in logs] == [
        ("warning", "spans can't be sent"),
        ("info", "spans are sent again"),
    ]
    assert logs[1]["lost"] == 6


def test_what_is_not_sampled_waits_nowhere(exporter: Exporter, queue: SpanQueue) -> None:
    """A caller's decision inside the network is obeyed by dropping the span."""
    with span("work", parent={"traceparent": TRACEPARENT[:-1] + "0"}):
        pass
    queue.shutdown()
    assert exporter.batches.get(timeout=60) == ["shutdown"]


class Stuck(TracerProvider):
    """A provider whose collector never answers."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.ended = threading.Event()

    def shutdown(self) -> None:
        self.released.wait()
        self.ended.set()


async def test_a_collector_that_does_not_answer_is_left_behind() -> None:
    """Closing takes its time and no more."""
    provider = Stuck()
    tracing = Tracing(provider)
    assert repr(tracing) == "Tracing(exporting=True)"
    started = time.monotonic()
    await tracing.aclose(timeout_seconds=0.05)
    assert time.monotonic() - started < 5
    provider.released.set()
    assert await asyncio.to_thread(provider.ended.wait, 10)


def test_a_flush_that_outlives_its_loop_ends_quietly() -> None:
    """Its thread finds no loop to report to."""
    provider = Stuck()
    asyncio.run(Tracing(provider).aclose(timeout_seconds=0.01))
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "hybridkit-flush-traces")
    provider.released.set()
    thread.join(10)
    assert not thread.is_alive()
