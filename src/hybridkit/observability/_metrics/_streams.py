"""Streams of events."""

from hybridkit.observability._metrics._declare import counter, gauge


class StreamMetrics:
    """Streams of events."""

    stream_snapshots = counter(
        "hybridkit_stream_snapshots_total",
        "Snapshots of streams that a client has met, by what became of them.",
        ("stream", "outcome"),
    )
    stream_conflicts = counter(
        "hybridkit_stream_conflicts_total",
        "Tries of `decide` that another append to the stream has overtaken.",
        ("stream",),
    )
    stream_horizon = gauge(
        "hybridkit_stream_horizon_seconds",
        "The age of the oldest committed event that readers of the log can't have yet, when the log was last read.",
        ("stream",),
        workers="livemax",
    )
