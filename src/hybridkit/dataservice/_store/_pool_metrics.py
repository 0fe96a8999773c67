"""The metrics of a pool of connections to the database, whichever it is."""

from typing import Protocol

from hybridkit.observability import metrics


class Countable(Protocol):
    """A pool that counts its connections."""

    @property
    def pool_size(self) -> int:
        """The largest number of connections."""
        ...

    @property
    def in_use(self) -> int:
        """The number of connections that work for somebody."""
        ...

    @property
    def waiting(self) -> int:
        """The number of those who wait for a connection."""
        ...


def sample_pool(name: str, pool: Countable) -> None:
    """Set the gauges of the pool of a name."""
    metrics.database_pool_limit.labels(name).set(pool.pool_size)
    metrics.database_pool_in_use.labels(name).set(pool.in_use)
    metrics.database_pool_waiting.labels(name).set(pool.waiting)
