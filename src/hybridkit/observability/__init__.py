"""Observe a process through logs, metrics and traces: one pipeline each, with the request id in all of them.

```python
configure_logging(settings)
log = get_logger(__name__)
log.info("user registered", plan="free")     # JSON with service, request id and trace id
metrics.events_published.labels("user.created", "confirmed").inc()
with span("import users"):
    ...
```

Nothing here may disturb the work it observes: a log line that cannot be written is counted, an exporter that does not
answer is left behind, and neither raises.
"""

from hybridkit.observability._error_reports import ErrorReports, configure_error_reports, report_error
from hybridkit.observability._exemplars import exemplar
from hybridkit.observability._logging import configure_logging, get_logger
from hybridkit.observability._metrics import (
    Metrics,
    metrics,
    render_metrics,
    sampled,
)
from hybridkit.observability._output import flush_logs
from hybridkit.observability._texts import class_name, printable, stack_of
from hybridkit.observability._trace_context import remote_trace
from hybridkit.observability._tracing import (
    Tracing,
    configure_tracing,
    describe_span,
    fail_span,
    in_trace,
    is_tracing,
    root_span,
    span,
    trace_headers,
)
from hybridkit.observability._watchdog import Watchdog

__all__ = [
    "ErrorReports",
    "Metrics",
    "Tracing",
    "Watchdog",
    "class_name",
    "configure_error_reports",
    "configure_logging",
    "configure_tracing",
    "describe_span",
    "exemplar",
    "fail_span",
    "flush_logs",
    "get_logger",
    "in_trace",
    "is_tracing",
    "metrics",
    "printable",
    "remote_trace",
    "render_metrics",
    "report_error",
    "root_span",
    "sampled",
    "span",
    "stack_of",
    "trace_headers",
]
