"""The spans of calls, where something records them."""

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hybridkit._asgi_types import ASGIApp
from hybridkit.clients import AsgiTransport, ClientPolicy
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._pipeline._pipeline import Pipeline
from hybridkit.errors import ResponseError
from hybridkit.retry import Retry
from tests.helpers.spans import recording

READ = Intent(method="GET", path="/v1/users/7", safe=True)


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    with recording(monkeypatch) as exporter:
        yield exporter


def answering(*statuses: int, seen: list[bytes]) -> ASGIApp:
    left = list(statuses)

    async def application(
        scope: MutableMapping[str, Any], _: object, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        if scope["type"] == "http":
            seen.append(dict(scope["headers"])[b"traceparent"])
            headers = [(b"server-timing", b"db;dur=1.5, total;dur=2, odd")]
            await send({"type": "http.response.start", "status": left.pop(0), "headers": headers})
            await send({"type": "http.response.body", "body": b"{}"})

    return application


async def call(application: ASGIApp) -> None:
    wire = AsgiTransport(application)
    policy = ClientPolicy(retry=Retry.immediate(attempts=3))
    try:
        await Pipeline(wire, base_url="http://u", target="u:1", service="api", policy=policy).run(READ)
    finally:
        await wire.aclose()


async def test_a_call_is_one_span_however_many_attempts(exporter: InMemorySpanExporter) -> None:
    """The service continues the trace of the span, which has the answer's `Server-Timing`."""
    seen: list[bytes] = []
    await call(answering(503, 200, seen=seen))
    [span] = exporter.get_finished_spans()
    assert (span.name, span.kind) == ("GET u:1", trace.SpanKind.CLIENT)
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "server.address": "u",
        "server.port": 1,
        "http.response.status_code": 200,
        "server_timing.db_seconds": 0.0015,
        "server_timing.total_seconds": 0.002,
    }
    assert span.context is not None
    assert len(seen) == 2
    assert all(f"{span.context.span_id:016x}".encode() in header for header in seen)


async def test_a_failed_call_is_a_failed_span(exporter: InMemorySpanExporter) -> None:
    """The span has the status of an error and the class of the exception."""
    with pytest.raises(ResponseError):
        await call(answering(500, seen=[]))
    [span] = exporter.get_finished_spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "ResponseError"
