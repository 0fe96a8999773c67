"""Projections of event streams."""

from typing import Final

from hybridkit.observability._metrics._declare import counter, gauge

_LABELS: Final = ("projection", "version")


class ProjectionMetrics:
    """Events that projections have counted, and how far behind they are."""

    projection_events = counter(
        "hybridkit_projection_events_total", "Events that a projection has counted in this process.", _LABELS
    )
    projection_lag = gauge(
        "hybridkit_projection_lag_seconds",
        "The age of the last event that a projection has counted while more are there; 0 when it has caught up.",
        _LABELS,
        workers="livemax",
    )
    projection_lag_events = gauge(
        "hybridkit_projection_lag_events",
        "Events that are there and that a projection has not counted, as far as it has looked.",
        _LABELS,
        workers="livemax",
    )
    projection_state = gauge(
        "hybridkit_projection_state",
        "0: a projection counts events; 1: another replica does; 2: it stands at an event that fails.",
        _LABELS,
        workers="livemax",
    )
