"""From a duration in a metric to one trace that took so long."""

from opentelemetry import trace

from hybridkit.observability._tracing import is_tracing


def exemplar() -> dict[str, str] | None:
    """Return the current trace, as `observe` of a histogram takes it; None where it is not exported."""
    if not is_tracing():
        return None
    current = trace.get_current_span().get_span_context()
    return {"trace_id": trace.format_trace_id(current.trace_id)} if current.trace_flags.sampled else None
