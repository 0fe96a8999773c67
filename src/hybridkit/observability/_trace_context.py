"""The trace that a request or message comes with, and whether its sender decides what is recorded.

https://www.w3.org/TR/trace-context/
"""

from collections.abc import Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context, get_value, set_value
from opentelemetry.trace import NonRecordingSpan, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

PROPAGATOR: Final = TraceContextTextMapPropagator()

_DECIDED_ANEW: Final = "hybridkit.decided_anew"
"""The key in a context whose remote parent was sent by somebody outside."""


def remote_trace(headers: Mapping[str, str]) -> Context:
    """Read the caller's trace as a context for OpenTelemetry's own functions; malformed headers make an empty one."""
    return PROPAGATOR.extract(headers, context=Context())


def untrusted(context: Context) -> Context:
    """Return a context in which sampling is decided anew, without the state that the caller wants handed on."""
    theirs = trace.get_current_span(context).get_span_context()
    if not theirs.is_valid:
        return context
    parent = SpanContext(theirs.trace_id, theirs.span_id, is_remote=True, trace_flags=theirs.trace_flags)
    return set_value(_DECIDED_ANEW, True, trace.set_span_in_context(NonRecordingSpan(parent), Context()))


def is_decided_anew(context: Context | None) -> bool:
    """Return whether the remote parent in a context has no say in what is sampled."""
    return get_value(_DECIDED_ANEW, context) is True
