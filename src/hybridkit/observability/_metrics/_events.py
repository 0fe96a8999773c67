"""Events and commands, from the publisher to the handler, and the outbox."""

from hybridkit.observability._metrics._declare import (
    AGE_SECONDS,
    CALL_SECONDS,
    WORK_SECONDS,
    counter,
    gauge,
    histogram,
)


class EventMetrics:
    """Events that this process publishes or handles."""

    events_published = counter(
        "hybridkit_events_published_total",
        "Events given to the broker, by what came of it.",
        ("event_type", "outcome"),
    )
    event_publish_duration = histogram(
        "hybridkit_event_publish_duration_seconds",
        "Time from a publish to the broker's verdict.",
        ("event_type",),
        buckets=CALL_SECONDS,
    )
    events_consumed = counter(
        "hybridkit_events_consumed_total",
        "Deliveries that were settled, by how.",
        ("consumer", "event_type", "outcome"),
    )
    events_retried = counter(
        "hybridkit_events_retried_total",
        "Deliveries sent to a later attempt, by the error that asked for it.",
        ("consumer", "event_type", "error"),
    )
    events_dead_lettered = counter(
        "hybridkit_events_dead_lettered_total",
        "Deliveries given up, by reason.",
        ("consumer", "event_type", "reason"),
    )
    handler_duration = histogram(
        "hybridkit_handler_duration_seconds",
        "Time in a handler of events.",
        ("consumer", "event_type"),
        buckets=WORK_SECONDS,
    )
    event_age = histogram(
        "hybridkit_event_age_seconds",
        "How long ago an event had been made when it was delivered: the lag of its queue.",
        ("consumer",),
        buckets=AGE_SECONDS,
    )
    queue_backlog = gauge(
        "hybridkit_queue_backlog_messages",
        "Messages ready in a consumer's queue, as last seen.",
        ("consumer",),
        workers="livemax",
    )
    consumer_wait = gauge(
        "hybridkit_consumer_wait_seconds",
        "For how long the oldest delivered message has waited for a handler, as last seen.",
        ("consumer",),
        workers="livemax",
    )
    consumer_paused = gauge(
        "hybridkit_consumer_paused",
        "1 while a consumer takes no messages because a dependency is down.",
        ("consumer",),
        workers="livemax",
    )


class OutboxMetrics:
    """Events that a data service keeps until the broker has them."""

    outbox_pending = gauge(
        "hybridkit_outbox_pending_events",
        "Events stored with their rows and not confirmed by the broker yet; this replica's part of them.",
        workers="livesum",
    )
    outbox_parked = gauge(
        "hybridkit_outbox_parked_events",
        "Events that cannot be published and wait for a person; this replica's part of them.",
        workers="livesum",
    )
    outbox_lag = gauge(
        "hybridkit_outbox_lag_seconds",
        "For how long the oldest pending event could have been published; the replica's that publishes it.",
        workers="livemax",
    )
