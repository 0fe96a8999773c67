"""HTTP, on both sides."""

from hybridkit.observability._metrics._declare import CALL_SECONDS, counter, gauge, histogram


class HttpServerMetrics:
    """Requests that this process answers."""

    http_server_duration = histogram(
        "hybridkit_http_server_duration_seconds",
        "Time from a request's arrival to the end of its response.",
        ("method", "route", "status"),
        buckets=CALL_SECONDS,
    )
    http_server_in_flight = gauge(
        "hybridkit_http_server_in_flight_requests", "Requests that are being answered now.", workers="livesum"
    )
    http_server_refused = counter(
        "hybridkit_http_server_refused_total",
        "Connections closed before there was a request: a head too large or too slow, or no HTTP.",
        ("status",),
    )


class HttpClientMetrics:
    """Calls of other services."""

    http_client_duration = histogram(
        "hybridkit_http_client_duration_seconds",
        "Time of one attempt to call another service.",
        ("target", "method", "outcome"),
        buckets=CALL_SECONDS,
    )
    http_client_in_flight = gauge(
        "hybridkit_http_client_in_flight_requests",
        "Attempts to call another service that have no answer yet.",
        ("target",),
        workers="livesum",
    )
    http_client_retries = counter(
        "hybridkit_http_client_retries_total", "Attempts after the first of a call.", ("target",)
    )
    http_client_queued = gauge(
        "hybridkit_http_client_queued_requests",
        "Attempts to call another service that wait for a place among those in flight.",
        ("target",),
        workers="livesum",
    )
    http_client_breaker_state = gauge(
        "hybridkit_http_client_breaker_state",
        "0: calls go through; 1: one is let through to try; 2: calls are held back.",
        ("target",),
        workers="livemax",
    )
