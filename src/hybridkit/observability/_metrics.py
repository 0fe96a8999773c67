"""Every metric of hybridkit, in one place.

Names carry the unit; labels hold only what has few values: a route's template, never its path; an event's type, never
its id. The application's own metrics belong into prometheus-client's default registry: `render_metrics` shows both.
"""

import os
from collections.abc import Iterable
from itertools import chain
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

_CALL_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_WORK_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_AGE_SECONDS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)


class Metrics:
    """All metrics, registered with one registry.

    The comments say what the labels hold. Durations are in seconds; a histogram's count is the number of cases.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.http_server_duration = Histogram(
            "hybridkit_http_server_duration_seconds",
            "Time from a request's arrival to the end of its response.",
            ("method", "route", "status"),  # route: the template, as in /users/{id}; status: as in 200
            registry=registry,
            buckets=_CALL_SECONDS,
        )
        self.http_server_in_flight = Gauge(
            "hybridkit_http_server_in_flight_requests",
            "Requests that are being answered now.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.http_server_refused = Counter(
            "hybridkit_http_server_refused_total",
            "Connections closed before there was a request: a head too large or too slow, or no HTTP.",
            ("status",),
            registry=registry,
        )
        self.http_client_duration = Histogram(
            "hybridkit_http_client_duration_seconds",
            "Time of one attempt to call another service.",
            ("target", "method", "outcome"),  # target: host and port; outcome: success, or the error's code
            registry=registry,
            buckets=_CALL_SECONDS,
        )
        self.http_client_in_flight = Gauge(
            "hybridkit_http_client_in_flight_requests",
            "Attempts to call another service that have no answer yet.",
            ("target",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.http_client_retries = Counter(
            "hybridkit_http_client_retries_total",
            "Attempts after the first of a call.",
            ("target",),
            registry=registry,
        )
        self.http_client_queued = Gauge(
            "hybridkit_http_client_queued_requests",
            "Attempts to call another service that wait for a place among those in flight.",
            ("target",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.http_client_breaker_state = Gauge(
            "hybridkit_http_client_breaker_state",
            "0: calls go through; 1: one is let through to try; 2: calls are held back.",
            ("target",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.events_published = Counter(
            "hybridkit_events_published_total",
            "Events given to the broker, by what came of it.",
            ("event_type", "outcome"),  # outcome: confirmed, unrouted, cancelled, or an error's code
            registry=registry,
        )
        self.event_publish_duration = Histogram(
            "hybridkit_event_publish_duration_seconds",
            "Time from a publish to the broker's verdict.",
            ("event_type",),
            registry=registry,
            buckets=_CALL_SECONDS,
        )
        self.events_consumed = Counter(
            "hybridkit_events_consumed_total",
            "Deliveries that were settled, by how.",
            (
                "consumer",
                "event_type",
                "outcome",
            ),  # outcome: done, duplicate, retried, dead_lettered, rejected, requeued
            registry=registry,
        )
        self.events_retried = Counter(
            "hybridkit_events_retried_total",
            "Deliveries sent to a later attempt, by the error that asked for it.",
            ("consumer", "event_type", "error"),  # error: a class name
            registry=registry,
        )
        self.events_dead_lettered = Counter(
            "hybridkit_events_dead_lettered_total",
            "Deliveries given up, by reason.",
            ("consumer", "event_type", "reason"),  # reason: malformed, unknown_type, permanent, exhausted, …
            registry=registry,
        )
        self.handler_duration = Histogram(
            "hybridkit_handler_duration_seconds",
            "Time in a handler of events.",
            ("consumer", "event_type"),
            registry=registry,
            buckets=_WORK_SECONDS,
        )
        self.event_age = Histogram(
            "hybridkit_event_age_seconds",
            "How long ago an event had been made when it was delivered: the lag of its queue.",
            ("consumer",),
            registry=registry,
            buckets=_AGE_SECONDS,
        )
        self.queue_backlog = Gauge(
            "hybridkit_queue_backlog_messages",
            "Messages ready in a consumer's queue, as last seen.",
            ("consumer",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.consumer_paused = Gauge(
            "hybridkit_consumer_paused",
            "1 while a consumer takes no messages because a dependency is down.",
            ("consumer",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.bot_update_duration = Histogram(
            "hybridkit_bot_update_duration_seconds",
            "Time in the handlers of a Telegram update.",
            # outcome: done, unhandled, duplicate, error, given_up (a temporary error did not pass), too_long
            ("update_type", "outcome"),
            registry=registry,
            buckets=_WORK_SECONDS,
        )
        self.bot_update_retries = Counter(
            "hybridkit_bot_update_retries_total",
            "Handlers of Telegram updates that will run again, because what they met was temporary.",
            ("update_type",),
            registry=registry,
        )
        self.bot_updates_skipped = Counter(
            "hybridkit_bot_updates_skipped_total",
            "Telegram updates that could not be read; usually the library is older than the Bot API.",
            ("update_type",),
            registry=registry,
        )
        self.bot_chat_wait = Histogram(
            "hybridkit_bot_chat_wait_seconds",
            "Time for which a Telegram update has waited for another replica to finish its chat's previous one.",
            registry=registry,
            buckets=_WORK_SECONDS,
        )
        self.bot_chat_takeovers = Counter(
            "hybridkit_bot_chat_takeovers_total",
            "Chats that were taken over from a replica which had died or frozen.",
            registry=registry,
        )
        self.sessions = Counter(
            "hybridkit_sessions_total",
            "Sessions, by what became of them, and ids that opened none.",
            (
                "sessions",
                "outcome",
            ),  # outcome: created, rotated, ended, revoked, crowded_out; malformed, unknown, wrong_secret, …
            registry=registry,
        )
        self.idempotency_outcomes = Counter(
            "hybridkit_idempotency_outcomes_total",
            "What the guard answered to a claim.",
            (
                "scope",
                "outcome",
            ),  # scope: http, bot or a consumer; outcome: acquired, taken_over, completed, …
            registry=registry,
        )
        self.cache_outcomes = Counter(
            "hybridkit_cache_outcomes_total",
            "Reads of a cache by where the value came from, and what happened to its loads.",
            # outcome: hit, stale, miss, fallback (one per read); wait, takeover, oversized (per load)
            ("cache", "outcome"),
            registry=registry,
        )
        self.broadcast_messages = Counter(
            "hybridkit_broadcast_messages_total",
            "Messages of a broadcast, by what came of them.",
            # outcome: published, received, dropped (a subscriber was too slow), unreadable
            ("broadcast", "outcome"),
            registry=registry,
        )
        self.lock_outcomes = Counter(
            "hybridkit_lock_outcomes_total",
            "Locks that were asked for or lost, by what came of it.",
            ("scope", "outcome"),  # scope: the key's context; outcome: acquired, taken_over, timed_out, …
            registry=registry,
        )
        self.lock_wait = Histogram(
            "hybridkit_lock_wait_seconds",
            "Time until a lock was acquired.",
            ("scope",),
            registry=registry,
            buckets=_WORK_SECONDS,
        )
        self.rate_limit_decisions = Counter(
            "hybridkit_rate_limit_decisions_total",
            "Requests that a rate limiter has decided on.",
            ("limiter", "outcome"),  # outcome: allowed, denied; with _locally while Redis doesn't answer
            registry=registry,
        )
        self.outbox_pending = Gauge(
            "hybridkit_outbox_pending_events",
            "Events stored with their rows and not confirmed by the broker yet; this replica's part of them.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.outbox_parked = Gauge(
            "hybridkit_outbox_parked_events",
            "Events that cannot be published and wait for a person; this replica's part of them.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.outbox_lag = Gauge(
            "hybridkit_outbox_lag_seconds",
            "For how long the oldest pending event could have been published; the replica's that publishes it.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.log_lines_dropped = Counter(
            "hybridkit_log_lines_dropped_total",
            "Log lines that could not be written.",
            registry=registry,
        )


_registry: Final = CollectorRegistry()

metrics: Final = Metrics(_registry)


class _Together:
    """The default registry and ours, as one collector."""

    def collect(self) -> Iterable[Metric]:
        return chain(REGISTRY.collect(), _registry.collect())


def render_metrics(accept: str = "") -> tuple[bytes, str]:
    """Return the body of `/metrics` and its content type.

    With `PROMETHEUS_MULTIPROC_DIR` in the environment (several Gunicorn workers, see
    https://prometheus.github.io/client_python/multiprocess/) it shows the sum over all of them.

    Args:
        accept: the request's `Accept` header; OpenMetrics where it asks for it, the classic text form otherwise.
    """
    encode, content_type = choose_encoder(accept)
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return encode(_Together()), content_type
    shared = CollectorRegistry()
    MultiProcessCollector(shared)  # type: ignore[no-untyped-call] # has no annotations
    return encode(shared), content_type
