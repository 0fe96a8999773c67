"""The exporter of spans over OTLP/HTTP: the one module that needs the extra `otel`."""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, override

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from hybridkit.observability._logging import get_logger
from hybridkit.observability._metrics import metrics
from hybridkit.observability._trace_context import is_decided_anew
from hybridkit.settings import ServiceSettings

MAX_WAITING_SPANS: Final = 2048
"""More would be memory that a dead collector takes."""
BATCH_SPANS: Final = 512
INTERVAL_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 30.0
EXPORT_SECONDS: Final = 5.0
"""How long one batch may take, repetitions included."""
MAX_ATTRIBUTE_CHARS: Final = 8192

_log = get_logger("hybridkit.tracing")


def otlp_provider(settings: ServiceSettings, endpoint: str) -> TracerProvider:
    """Make a provider that sends spans in batches, from a thread of its own.

    The exporter reads what else a collector wants from OpenTelemetry's variables, such as `OTEL_EXPORTER_OTLP_HEADERS`.

    Args:
        settings: give the resource its names, and the ratio of the traces that are recorded.
        endpoint: the collector's base URL, as in `OTEL_EXPORTER_OTLP_ENDPOINT`.
    """
    # It warns at each failed attempt; the queue tells once that the collector is gone, and once that it is back.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    resource = {
        "service.name": settings.service_name,
        "deployment.environment.name": settings.environment,
        **({"service.version": settings.service_version} if settings.service_version else {}),
    }
    provider = TracerProvider(
        sampler=EdgeSampler(settings.trace_sample_ratio),
        resource=_HashedResource(Resource.create(resource).attributes),
        span_limits=SpanLimits(max_attribute_length=MAX_ATTRIBUTE_CHARS),
        # Not at exit: whoever configured it closes it, within the time that there is.
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces", timeout=EXPORT_SECONDS)
    provider.add_span_processor(SpanQueue(exporter))
    return provider


class _HashedResource(Resource):
    """A resource that is hashed once; OpenTelemetry encodes it as JSON for each span that is sent."""

    def __init__(self, attributes: Attributes) -> None:
        super().__init__(attributes or {})
        self._hash = super().__hash__()

    @override
    def __hash__(self) -> int:
        return self._hash

    @override
    def __eq__(self, other: object) -> bool:
        return self is other or super().__eq__(other)


class EdgeSampler(Sampler):
    """Decides at random for a trace that begins here or comes from outside, and obeys our own services otherwise.

    The id of the trace has no say in it, unlike in OpenTelemetry's own sampler of a ratio, since a caller from outside
    chooses the id.

    Args:
        ratio: the part of the traces to record, from 0 to 1.
    """

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio

    @override
    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Return the decision for a new span."""
        parent = get_current_span(parent_context).get_span_context()
        if parent.is_valid and not (parent.is_remote and is_decided_anew(parent_context)):
            is_sampled = parent.trace_flags.sampled
        else:
            is_sampled = random.random() < self._ratio  # noqa: S311 # nosec B311 # no secret
        decision = Decision.RECORD_AND_SAMPLE if is_sampled else Decision.DROP
        return SamplingResult(decision, attributes, parent.trace_state if parent.is_valid else None)

    @override
    def get_description(self) -> str:
        """Return the name with the ratio."""
        return f"EdgeSampler({self._ratio:g})"


class SpanQueue(SpanProcessor):
    """Keeps ended spans until a thread has sent them; a span that finds no place is counted and forgotten.

    Args:
        exporter: sends a batch, and returns whether it was taken.
        interval_seconds: the longest wait for a batch to fill; after a failure it doubles, up to half a minute.
    """

    def __init__(self, exporter: SpanExporter, *, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._exporter = exporter
        self._interval_seconds = interval_seconds
        self._waiting: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._is_sending = False
        self._failures = 0
        self._lost = 0
        self._queue_full = metrics.spans_dropped.labels("queue_full")
        self._not_sent = metrics.spans_dropped.labels("not_sent")
        self._thread = threading.Thread(target=self._run, name="hybridkit-send-spans", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"SpanQueue({len(self._waiting)} waiting, failures={self._failures})"

    @override
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing."""

    @override
    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span that is sampled, if there is a place."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if len(self._waiting) >= MAX_WAITING_SPANS or self._closing.is_set():
            self._queue_full.inc()
            return
        self._waiting.append(span)
        if len(self._waiting) == BATCH_SPANS and not self._failures:
            self._wake.set()

    @override
    def shutdown(self) -> None:
        """Send what is left, and end the thread."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        self._exporter.shutdown()

    @override
    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Have the thread send now, and return whether it has tried all spans within the time."""
        until = time.monotonic() + timeout_millis / 1000
        while (self._waiting or self._is_sending) and time.monotonic() < until:
            self._wake.set()
            self._closing.wait(0.01)
        return not (self._waiting or self._is_sending)

    def _run(self) -> None:
        while not self._closing.is_set():
            pause = min(self._interval_seconds * 2**self._failures, LONGEST_PAUSE_SECONDS)
            self._wake.wait(pause)
            self._wake.clear()
            self._is_sending = True
            self._send()
            self._is_sending = False
        self._send()
        self._not_sent.inc(len(self._waiting))

    def _send(self) -> None:
        """Send batches until nothing waits, or one is not taken."""
        while batch := [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_SPANS))]:
            if self._export(batch):
                self._note_success()
            else:
                self._note_failure(len(batch))
                return

    def _export(self, batch: list[ReadableSpan]) -> bool:
        try:
            with suppress_instrumentation():  # else the request that sends spans would make another one
                return self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception:  # noqa: BLE001 # an attribute that can't be encoded, a library's mistake
            return False

    def _note_success(self) -> None:
        if self._failures:
            _log.info("spans are sent again", lost=self._lost)
        self._failures = self._lost = 0

    def _note_failure(self, count: int) -> None:
        self._not_sent.inc(count)
        self._lost += count
        self._failures = min(self._failures + 1, 10)
        if self._failures == 1:
            _log.warning("spans can't be sent", spans=count, remedy="see OTEL_EXPORTER_OTLP_ENDPOINT")
