"""Sagas."""

from typing import Final

from hybridkit.observability._metrics._declare import counter, gauge, histogram

_SAGA_SECONDS: Final = (1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0, 604800.0, 2592000.0)


class SagaMetrics:
    """Messages of sagas, their moves and ends, and what waits."""

    saga_events = counter(
        "hybridkit_saga_events_total",
        "Messages of a saga, by what they meant for it.",
        ("saga", "event_type", "outcome"),
    )
    saga_transitions = counter(
        "hybridkit_saga_transitions_total",
        "Moves of a saga from state to state.",
        ("saga", "from_state", "to_state"),
    )
    saga_ended = counter("hybridkit_saga_ended_total", "Sagas that have ended.", ("saga", "status"))
    saga_duration = histogram(
        "hybridkit_saga_seconds",
        "Time from the start of a saga to its end.",
        ("saga", "status"),
        buckets=_SAGA_SECONDS,
    )
    saga_conflicts = counter(
        "hybridkit_saga_conflicts_total",
        "Tries that another message of the same saga, or the data service, refused.",
        ("saga",),
    )
    live_sagas = gauge(
        "hybridkit_live_sagas",
        "Sagas that have not ended, by state, once a minute.",
        ("saga", "state"),
        workers="livemax",
    )
    failed_sagas = gauge(
        "hybridkit_failed_sagas", "Sagas whose error needs a person.", ("saga",), workers="livemax"
    )
    overdue_sagas = gauge(
        "hybridkit_overdue_sagas",
        "Sagas whose timer should have come 90 seconds ago.",
        ("saga",),
        workers="livemax",
    )
    unserved_sagas = gauge(
        "hybridkit_unserved_sagas",
        "Sagas in a state that this code doesn't have, or that newer code has written.",
        ("saga",),
        workers="livemax",
    )
    saga_oldest = gauge(
        "hybridkit_saga_oldest_seconds",
        "Age of the oldest saga that has not ended.",
        ("saga",),
        workers="livemax",
    )
