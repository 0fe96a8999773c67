"""Traces: spans through the OpenTelemetry API, and an exporter where one is configured.

The API alone records nothing and passes the caller's trace on. With the extra `otel` and
`OTEL_EXPORTER_OTLP_ENDPOINT` set, spans go to that collector over HTTP. Sampling and batching follow OpenTelemetry's
own variables (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
"""

import asyncio
import threading
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from hybridkit.errors import MissingExtraError
from hybridkit.observability._texts import class_name, printable, stack_of
from hybridkit.settings import ServiceSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

FLUSH_SECONDS: Final = 5.0

_KINDS: Final = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_tracer: Final = trace.get_tracer("hybridkit")  # a proxy, for whatever provider comes later
_propagator: Final = TraceContextTextMapPropagator()


def span(
    name: str,
    *,
    kind: Literal["internal", "server", "client", "producer", "consumer"] = "internal",
    parent: Mapping[str, str] | None = None,
    linked: Mapping[str, str] | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> AbstractContextManager[Span]:
    """Open a span that is the current one inside the block; an error that leaves the block is recorded in it.

    Its status is then `ERROR`, and `error.type` the name of the error's class.

    Args:
        name: a name of low variety: a route's template, `user.created process`, never an id.
        kind: which side of a call this is.
        parent: headers whose trace this span continues; without them it is a child of the current span.
        linked: headers of a message whose trace is linked instead, as it may be long over.
        attributes: by the names of OpenTelemetry's semantic conventions.
    """
    if parent is None and not is_tracing():
        return nullcontext(trace.get_current_span())
    return _recorded(name, _KINDS[kind], parent, linked, attributes)


@contextmanager
def _recorded(
    name: str,
    kind: SpanKind,
    parent: Mapping[str, str] | None,
    linked: Mapping[str, str] | None,
    attributes: Mapping[str, AttributeValue] | None,
) -> Generator[Span]:
    # Attached, not passed to the tracer: without an SDK, older versions of the API drop what it is passed.
    token = attach(get_current() if parent is None else remote_trace(parent))
    try:
        started = _started(name, kind, attributes, _links(linked or {}))
        try:
            with trace.use_span(started):
                yield started
        except Exception as error:
            started.set_attribute("error.type", type(error).__qualname__)
            raise
        finally:
            with suppress(Exception):  # the same
                started.end()
    finally:
        detach(token)


def _started(
    name: str, kind: SpanKind, attributes: Mapping[str, AttributeValue] | None, links: list[Link]
) -> Span:
    try:
        return _tracer.start_span(name, kind=kind, attributes=attributes, links=links)
    except Exception:  # noqa: BLE001 # a processor or sampler of the application's own must not fail what it observes
        return trace.INVALID_SPAN


def is_tracing() -> bool:
    """Return whether anything records spans; where nothing does, a span is empty work of 12 µs."""
    # Until there is a provider, `get_tracer_provider` looks into the environment, which costs each message 1 µs. What
    # the environment names was loaded when `_tracer` was made. Without the private name the answer is only slower.
    if getattr(trace, "_TRACER_PROVIDER", trace) is None:
        return False
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def fail_span(error: BaseException) -> None:
    """Mark the current span as failed by an error that does not leave its block."""
    current = trace.get_current_span()
    if current.is_recording():
        attributes = {"exception.message": printable(error), "exception.stacktrace": stack_of(error)}
        current.add_event("exception", {"exception.type": class_name(error), **attributes})
        name = printable(type(error).__qualname__)
        current.set_status(StatusCode.ERROR, f"{name}: {printable(error)}")
        current.set_attribute("error.type", name)


def trace_headers() -> dict[str, str]:
    """Return `traceparent` and `tracestate` of the current span (https://www.w3.org/TR/trace-context/), or nothing."""
    headers: dict[str, str] = {}
    if trace.get_current_span() is not trace.INVALID_SPAN:
        _propagator.inject(headers)
    return headers


def remote_trace(headers: Mapping[str, str]) -> Context:
    """Read the caller's trace as a context for OpenTelemetry's own functions; malformed headers make an empty one."""
    return _propagator.extract(headers, context=Context())


@contextmanager
def in_trace(headers: Mapping[str, str]) -> Generator[None]:
    """Continue the caller's trace inside the block, without a span of its own; without headers there is none."""
    token = attach(remote_trace(headers))
    try:
        yield
    finally:
        detach(token)


def _links(headers: Mapping[str, str]) -> list[Link]:
    linked = trace.get_current_span(remote_trace(headers)).get_span_context()
    return [Link(linked)] if linked.is_valid else []


class Tracing:
    """The exporter of this process. As `async with`, it sends what is left when the block ends."""

    def __init__(self, provider: "TracerProvider | None") -> None:
        self._provider = provider

    def __repr__(self) -> str:
        return f"Tracing(exporting={self._provider is not None})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self, *, timeout_seconds: float = FLUSH_SECONDS) -> None:
        """Send the spans that are left; a collector that does not answer in time is left behind."""
        provider, self._provider = self._provider, None
        if provider is None:
            return
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def flush() -> None:
            provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        # A daemon thread of its own: the loop's executor is joined at the end of `asyncio.run`, however long it takes.
        threading.Thread(target=flush, name="hybridkit-flush-traces", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_seconds):
                await done.wait()
        except TimeoutError:
            return


def configure_tracing(settings: ServiceSettings) -> Tracing:
    """Send this process's spans to `settings.otel_exporter_otlp_endpoint`; without one, do nothing.

    Call it once per process, as OpenTelemetry has one global provider.

    Raises:
        MissingExtraError: an endpoint is set, but the extra `otel` is not installed.
    """
    endpoint = settings.otel_exporter_otlp_endpoint
    if endpoint is None:
        return Tracing(None)
    try:
        from hybridkit.observability._otlp import otlp_provider  # noqa: PLC0415 # needs the extra
    except ImportError:
        raise MissingExtraError("OTEL_EXPORTER_OTLP_ENDPOINT", extra="otel") from None
    provider = otlp_provider(settings, endpoint.get_secret_value())
    trace.set_tracer_provider(provider)
    return Tracing(provider)
