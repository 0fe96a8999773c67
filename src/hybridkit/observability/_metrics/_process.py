"""The process itself."""

from hybridkit.observability._metrics._declare import counter, gauge, histogram

_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ProcessMetrics:
    """The process itself."""

    build_info = gauge(
        "hybridkit_build_info",
        "1, with the service's name, version and commit in the labels.",
        ("service", "version", "commit"),
        workers="livemax",
    )
    event_loop_lag = histogram(
        "hybridkit_event_loop_lag_seconds",
        "How late the event loop runs what is due, sampled by the watchdog.",
        buckets=_LAG_SECONDS,
    )
    event_loop_stalls = counter(
        "hybridkit_event_loop_stalls_total",
        "Times in which the event loop was blocked for longer than LOOP_STALL_SECONDS.",
    )
    log_lines_dropped = counter("hybridkit_log_lines_dropped_total", "Log lines that could not be written.")
    error_reports_dropped = counter(
        "hybridkit_error_reports_dropped_total",
        "Unexpected errors that were not reported.",
        ("reason",),  # repeated, too_many, queue_full, not_sent
    )
    spans_dropped = counter(
        "hybridkit_spans_dropped_total",
        "Spans that no collector has got.",
        ("reason",),  # queue_full, not_sent
    )
