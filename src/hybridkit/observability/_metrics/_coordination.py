"""What processes share through Redis, and the keys of idempotent work."""

from hybridkit.observability._metrics._declare import WORK_SECONDS, counter, histogram


class CoordinationMetrics:
    """Sessions, keys, caches, broadcasts, locks and rate limits."""

    sessions = counter(
        "hybridkit_sessions_total",
        "Sessions, by what became of them, and ids that opened none.",
        ("sessions", "outcome"),
    )
    idempotency_outcomes = counter(
        "hybridkit_idempotency_outcomes_total", "What the guard answered to a claim.", ("scope", "outcome")
    )
    cache_outcomes = counter(
        "hybridkit_cache_outcomes_total",
        "Reads of a cache by where the value came from, and what happened to its loads.",
        ("cache", "outcome"),
    )
    broadcast_messages = counter(
        "hybridkit_broadcast_messages_total",
        "Messages of a broadcast, by what came of them.",
        ("broadcast", "outcome"),
    )
    lock_outcomes = counter(
        "hybridkit_lock_outcomes_total",
        "Locks that were asked for or lost, by what came of it.",
        ("scope", "outcome"),
    )
    lock_wait = histogram(
        "hybridkit_lock_wait_seconds", "Time until a lock was acquired.", ("scope",), buckets=WORK_SECONDS
    )
    rate_limit_decisions = counter(
        "hybridkit_rate_limit_decisions_total",
        "Requests that a rate limiter has decided on.",
        ("limiter", "outcome"),
    )
