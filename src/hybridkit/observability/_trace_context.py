"""The trace that a request or message comes with, and whether its sender decides what is recorded.

https://www.w3.org/TR/trace-context/
"""

import re
from collections.abc import Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context, get_value, set_value
from opentelemetry.trace import NonRecordingSpan, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

PROPAGATOR: Final = TraceContextTextMapPropagator()

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")

_DECIDED_ANEW: Final = "hybridkit.decided_anew"
"""The key in a context whose remote parent was sent by somebody outside."""


def remote_trace(headers: Mapping[str, str]) -> Context:
    """Read the caller's trace as a context for OpenTelemetry's own functions; malformed headers make an empty one."""
    return PROPAGATOR.extract(headers, context=Context())


def outside_trace(headers: Mapping[str, str]) -> Context:
    """Return a context with the ids of a caller from outside, in which sampling is decided anew.

    The caller's `tracestate` is dropped, as it would be handed on to all our services.
    """
    found = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    if found is None:
        return Context()
    parent = SpanContext(int(found[1], 16), int(found[2], 16), is_remote=True)
    if not parent.is_valid:
        return Context()
    return set_value(_DECIDED_ANEW, True, trace.set_span_in_context(NonRecordingSpan(parent), Context()))


def is_decided_anew(context: Context | None) -> bool:
    """Return whether the remote parent in a context has no say in what is sampled."""
    return get_value(_DECIDED_ANEW, context) is True
