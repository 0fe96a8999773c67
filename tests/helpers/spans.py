"""The spans that this process records in a test, without a collector."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from hybridkit.observability import _tracing


@contextmanager
def recording(
    monkeypatch: pytest.MonkeyPatch, *, sampler: Sampler | None = None
) -> Generator[InMemorySpanExporter]:
    """Record spans inside the block; OpenTelemetry's own setter of a provider works once per process."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with monkeypatch.context() as patches:
        patches.setattr(trace, "_TRACER_PROVIDER", provider)
        patches.setattr(_tracing, "_tracer", provider.get_tracer("hybridkit"))
        yield exporter
    provider.shutdown()


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes of a span."""
    return dict(span.attributes or {})
