"""Traces: spans through the OpenTelemetry API, and an exporter where one is configured.

The API alone records nothing. With the extra `otel` and `OTEL_EXPORTER_OTLP_ENDPOINT` set, spans go to that collector
over HTTP; headers, certificates and compression of these requests follow OpenTelemetry's own variables
(https://opentelemetry.io/docs/specs/otel/protocol/exporter/). `TRACE_SAMPLE_RATIO` says which part of the traces is
recorded. That is decided where a trace enters our services, whatever an outside caller's `traceparent` says, and obeyed
by all others.
"""

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, override

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue

from hybridkit.context import bound
from hybridkit.errors import MissingExtraError
from hybridkit.observability._flushing import flushed_within
from hybridkit.observability._redaction import masked, remember_secrets
from hybridkit.observability._texts import class_name, printable, stack_of
from hybridkit.observability._trace_context import PROPAGATOR, outside_trace, remote_trace
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
_tracer = trace.get_tracer("hybridkit")  # a proxy, for whatever provider comes later


def span(
    name: str,
    *,
    kind: Literal["internal", "server", "client", "producer", "consumer"] = "internal",
    parent: Mapping[str, str] | None = None,
    linked: Mapping[str, str] | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    from_outside: bool = False,
) -> AbstractContextManager[Span]:
    """Open a span that is the current one inside the block; an error that leaves the block is recorded in it.

    Its status is then `ERROR`, and `error.type` the name of the error's class.

    Args:
        name: a name of low variety: a route's template, `user.created process`, never an id.
        kind: which side of a call this is.
        parent: headers whose trace this span continues; without them it is a child of the current span.
        linked: headers of a message whose span is linked.
        attributes: by the names of OpenTelemetry's semantic conventions.
        from_outside: whether somebody outside of our services sends `parent`. Of theirs only the ids are taken:
            whether the trace is recorded is decided anew.
    """
    if parent is None and not is_tracing():
        return nullcontext(trace.get_current_span())
    read = outside_trace if from_outside else remote_trace
    context = get_current() if parent is None else read(parent)
    return _Recorded(name, _KINDS[kind], context, linked, attributes)


def root_span(
    name: str,
    *,
    kind: Literal["internal", "consumer"] = "internal",
    attributes: Mapping[str, AttributeValue] | None = None,
) -> AbstractContextManager[Span]:
    """Open the span of work that begins here, such as a job or an update: a trace of its own, wherever it is started.

    Args:
        name: a name of low variety.
        kind: `consumer` for what somebody else has sent.
        attributes: as in `span`.
    """
    if not is_tracing():
        return nullcontext(trace.INVALID_SPAN)
    return _Recorded(name, _KINDS[kind], Context(), None, attributes)


class _Recorded(AbstractContextManager[Span]):
    """A span that is the current one inside the block: a class, as a generator costs each request more."""

    __slots__ = ("_attributes", "_context", "_kind", "_linked", "_name", "_span", "_token")

    _span: Span
    _token: Token[Context]

    def __init__(
        self,
        name: str,
        kind: SpanKind,
        context: Context,
        linked: Mapping[str, str] | None,
        attributes: Mapping[str, AttributeValue] | None,
    ) -> None:
        self._name = name
        self._kind = kind
        self._context = context
        self._linked = linked
        self._attributes = attributes

    def __enter__(self) -> Span:
        links = _links(self._linked) if self._linked else None
        self._span = _started(self._name, self._kind, self._context, self._attributes, links)
        # Without an SDK, older versions of the API make a span of nothing, and the caller's is to be passed on.
        is_there = self._span is not trace.INVALID_SPAN
        self._token = attach(
            trace.set_span_in_context(self._span, self._context) if is_there else self._context
        )
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, Exception):
                _note_error(self._span, error)
        finally:
            detach(self._token)
            with suppress(Exception):  # a processor of the application's own must not fail what it observes
                self._span.end()


def _started(
    name: str,
    kind: SpanKind,
    context: Context,
    attributes: Mapping[str, AttributeValue] | None,
    links: list[Link] | None,
) -> Span:
    about = bound()
    if about is not None:
        attributes = {**(attributes or {}), "request_id": about.request_id}
    try:
        return _tracer.start_span(name, context, kind=kind, attributes=attributes, links=links)
    except Exception:  # noqa: BLE001 # a processor or sampler of the application's own must not fail what it observes
        return trace.INVALID_SPAN


def is_tracing() -> bool:
    """Return whether anything records spans; where nothing does, a span is empty work of 12 µs."""
    # Until there is a provider, `get_tracer_provider` looks into the environment, which costs each message 1 µs. What
    # the environment names was loaded when `_tracer` was made. Without the private name the answer is only slower.
    provider = getattr(trace, "_TRACER_PROVIDER", trace)
    if provider is None:
        return False
    if provider is _global:
        return _global.chosen is not None
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def fail_span(error: BaseException) -> None:
    """Mark the current span as failed by an error that does not leave its block."""
    _note_error(trace.get_current_span(), error)


def describe_span(
    attributes: Mapping[str, AttributeValue], *, linked: Mapping[str, str] | None = None
) -> None:
    """Add to the current span, if one is recorded.

    Args:
        attributes: the attributes to set.
        linked: headers with the `traceparent` of another trace to link to; None for no link.
    """
    current = trace.get_current_span()
    if current.is_recording():
        current.set_attributes(attributes)
        for link in _links(linked or {}):
            current.add_link(link.context)


def _note_error(span: Span, error: BaseException) -> None:
    if not span.is_recording():
        return
    name, message = printable(type(error).__qualname__), masked(printable(error))
    attributes = {"exception.message": message, "exception.stacktrace": masked(stack_of(error))}
    span.add_event("exception", {"exception.type": class_name(error), **attributes})
    span.set_status(StatusCode.ERROR, f"{name}: {message}")
    span.set_attribute("error.type", name)


def trace_headers() -> dict[str, str]:
    """Return `traceparent` and `tracestate` of the current span (https://www.w3.org/TR/trace-context/), or nothing."""
    headers: dict[str, str] = {}
    if trace.get_current_span() is not trace.INVALID_SPAN:
        PROPAGATOR.inject(headers)
    return headers


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


class _GlobalProvider(trace.TracerProvider):
    """OpenTelemetry's global provider of this process, which can be set once, while an application may start again.

    Attributes:
        chosen: the provider of the last start; None when it has stopped.
    """

    def __init__(self) -> None:
        self.chosen: trace.TracerProvider | None = None

    @override
    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return (self.chosen or trace.NoOpTracerProvider()).get_tracer(*args, **kwargs)


_global: Final = _GlobalProvider()


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
        if _global.chosen is provider:
            _global.chosen = None
        await flushed_within(provider.shutdown, seconds=timeout_seconds, what="traces")


def configure_tracing(settings: ServiceSettings) -> Tracing:
    """Send this process's spans to `settings.otel_exporter_otlp_endpoint`; without one, do nothing.

    Call it once per start of the process's application, as OpenTelemetry has one global provider.

    Raises:
        MissingExtraError: an endpoint is set, but the extra `otel` is not installed.
    """
    global _tracer  # a provider's tracers are its own, and each start has another provider
    endpoint = settings.otel_exporter_otlp_endpoint
    if endpoint is None:
        return Tracing(None)
    try:
        from hybridkit.observability._otlp import otlp_provider  # noqa: PLC0415 # needs the extra
    except ImportError:
        raise MissingExtraError("OTEL_EXPORTER_OTLP_ENDPOINT", extra="otel") from None
    remember_secrets(settings)
    provider = otlp_provider(settings, endpoint.get_secret_value())
    _global.chosen, _tracer = provider, provider.get_tracer("hybridkit")
    if getattr(trace, "_TRACER_PROVIDER", None) is not _global:
        trace.set_tracer_provider(_global)
    return Tracing(provider)
