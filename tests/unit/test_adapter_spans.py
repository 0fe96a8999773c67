"""The span of a request: one, by stable names, without secrets, and sampled by our own decision."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from hybridkit.adapters.fastapi import create_app
from hybridkit.errors import UnavailableError
from hybridkit.observability import render_metrics, trace_headers
from hybridkit.observability._otlp import EdgeSampler
from tests.helpers.apis import Settings, serving
from tests.helpers.spans import attributes_of, recording

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-00"}


def application(*, internal: bool = False) -> FastAPI:
    app = create_app(Settings, title="Test", internal=internal)

    @app.get("/orders/{number}")
    async def read(number: int) -> dict[str, str]:
        return trace_headers()

    @app.get("/missing")
    async def missing() -> None:
        raise HTTPException(404, "no such thing")

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("no way to postgresql://user:hunter2@db/orders")

    @app.get("/away")
    async def away() -> None:
        raise UnavailableError("the database is away")

    return app


@asynccontextmanager
async def client(*, internal: bool = False) -> AsyncGenerator[httpx.AsyncClient]:
    async with serving(application(internal=internal)) as opened:
        yield opened


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    with recording(monkeypatch) as exporter:
        yield exporter


async def test_a_request_is_one_span_by_the_stable_names_without_its_query(
    exporter: InMemorySpanExporter,
) -> None:
    """No message of ASGI has a span, and the query is nowhere."""
    async with client() as api:
        await api.get("/orders/7?token=hunter2", headers={"x-request-id": "r-1"})
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind) == ("GET /orders/{number}", SpanKind.SERVER)
    assert attributes_of(span) == {
        "http.request.method": "GET",
        "http.route": "/orders/{number}",
        "http.response.status_code": 200,
        "url.path": "/orders/7",
        "url.scheme": "http",
        "server.address": "test",
        "request_id": "r-1",
    }
    assert span.status.is_unset
    assert "hunter2" not in span.to_json()


async def test_what_clients_invent_does_not_name_a_span(exporter: InMemorySpanExporter) -> None:
    """An unknown path or method would make as many names as there are requests."""
    async with client() as api:
        await api.get("/nowhere/7")
        await api.request("BREW", "/orders/7")
        await api.request("BREW", "/nowhere")
    names = [
        (span.name, attributes_of(span)["http.request.method"]) for span in exporter.get_finished_spans()
    ]
    assert names == [("GET", "GET"), ("HTTP /orders/{number}", "_OTHER"), ("HTTP", "_OTHER")]


@pytest.mark.parametrize(
    ("path", "status", "error", "events"),
    [
        ("/missing", StatusCode.UNSET, None, 0),
        ("/broken", StatusCode.ERROR, "RuntimeError", 1),
        ("/away", StatusCode.ERROR, "503", 0),
    ],
)
async def test_only_what_the_server_failed_is_an_error(
    exporter: InMemorySpanExporter, path: str, status: StatusCode, error: str | None, events: int
) -> None:
    """A mistake has its exception in the span, without the secrets in its text."""
    async with client() as api:
        await api.get(path)
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is status
    assert attributes_of(span).get("error.type") == error
    assert len(span.events) == events
    assert "hunter2" not in span.to_json()


async def test_probes_have_no_spans(exporter: InMemorySpanExporter) -> None:
    """They come every second, and tell nothing."""
    async with client() as api:
        for path in ("/health", "/ready", "/metrics"):
            await api.get(path)
    assert exporter.get_finished_spans() == ()


async def test_without_tracing_there_is_no_span_for_a_handler() -> None:
    """Nothing is sent on either."""
    async with client() as api:
        answer = await api.get("/orders/7", headers=SAMPLED)
    assert answer.json() == {}
    assert trace.get_current_span() is trace.INVALID_SPAN


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sent", [SAMPLED, UNSAMPLED, {}])
@pytest.mark.parametrize("ratio", [0.0, 1.0])
async def test_a_caller_from_outside_has_no_say_in_sampling(
    monkeypatch: pytest.MonkeyPatch, sent: dict[str, str], ratio: float
) -> None:
    """Its trace's id is taken, and what it wants to be handed on is not."""
    with recording(monkeypatch, sampler=EdgeSampler(ratio)) as exporter:
        async with client() as api:
            answer = await api.get("/orders/7", headers={**sent, "tracestate": "vendor=1"})
    assert len(exporter.get_finished_spans()) == ratio
    handed_on = answer.json()
    assert handed_on.keys() == {"traceparent"}
    _, trace_id, span_id, flags = handed_on["traceparent"].split("-")
    assert int(flags, 16) & 1 == ratio
    if sent:
        assert trace_id == TRACE_ID
        assert span_id != "b7ad6b7169203331"


@pytest.mark.parametrize(("sent", "recorded"), [(SAMPLED, 1), (UNSAMPLED, 0)])
@pytest.mark.parametrize("ratio", [0.0, 1.0])
async def test_our_own_services_decide_for_those_that_they_call(
    monkeypatch: pytest.MonkeyPatch, sent: dict[str, str], recorded: int, ratio: float
) -> None:
    """A trace is recorded in all of them or in none."""
    with recording(monkeypatch, sampler=EdgeSampler(ratio)) as exporter:
        async with client(internal=True) as api:
            await api.get("/orders/7", headers=sent)
    assert len(exporter.get_finished_spans()) == recorded


async def test_no_trace_id_forces_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that looked at the id would let a caller choose one that is always recorded."""
    drawn = iter([0.4, 0.6])
    with recording(monkeypatch, sampler=EdgeSampler(0.5)) as exporter:
        monkeypatch.setattr("hybridkit.observability._otlp.random.random", lambda: next(drawn))
        async with client() as api:
            lowest = {"traceparent": f"00-{'0' * 31}1-b7ad6b7169203331-01"}
            await api.get("/orders/1", headers=lowest)
            await api.get("/orders/2", headers=lowest)
    assert [attributes_of(span)["url.path"] for span in exporter.get_finished_spans()] == ["/orders/1"]
    assert repr(EdgeSampler(0.5).get_description()) == "'EdgeSampler(0.5)'"


async def test_a_duration_leads_to_a_trace(exporter: InMemorySpanExporter) -> None:
    """In OpenMetrics; a request whose trace is not exported is no example."""
    async with client() as api:
        await api.get("/orders/7")
    (span,) = exporter.get_finished_spans()
    assert span.context is not None
    page, _ = render_metrics("application/openmetrics-text; version=1.0.0")
    [line] = [line for line in page.decode().splitlines() if f"{span.context.trace_id:032x}" in line]
    assert line.startswith("hybridkit_http_server_duration_seconds_bucket{")
    assert 'route="/orders/{number}"' in line


async def test_an_unsampled_request_is_no_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trace can't be found anywhere."""
    trace_id = "ab" * 16
    with recording(monkeypatch, sampler=ALWAYS_OFF):
        async with client() as api:
            await api.get("/missing", headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"})
    page, _ = render_metrics("application/openmetrics-text; version=1.0.0")
    assert trace_id.encode() not in page
