"""Connections of a data service to its database."""

from hybridkit.observability._metrics._declare import gauge


class DatabaseMetrics:
    """Connections of a data service to its database."""

    database_pool_in_use = gauge(
        "hybridkit_database_pool_in_use_connections",
        "Connections to the database that work for a request, as last sampled.",
        ("pool",),
        workers="livesum",
    )
    database_pool_waiting = gauge(
        "hybridkit_database_pool_waiting_requests",
        "Requests that wait for a free connection to the database, as last sampled.",
        ("pool",),
        workers="livesum",
    )
    database_pool_limit = gauge(
        "hybridkit_database_pool_limit_connections",
        "The largest number of connections to the database.",
        ("pool",),
        workers="livesum",
    )
