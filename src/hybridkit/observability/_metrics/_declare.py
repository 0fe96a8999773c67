"""Declare a metric in one line; all of them are in one registry of ours."""

from collections.abc import Sequence
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

registry: Final = CollectorRegistry()

CALL_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
WORK_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
AGE_SECONDS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)


def counter(name: str, meaning: str, labels: Sequence[str] = ()) -> Counter:
    """Declare a number of cases, which only grows."""
    return Counter(name, meaning, labels, registry=registry)


def gauge(
    name: str, meaning: str, labels: Sequence[str] = (), *, workers: Literal["livesum", "livemax"]
) -> Gauge:
    """Declare a value that rises and falls.

    Args:
        name: the name, with its unit.
        meaning: the meaning, a sentence.
        labels: the names of the labels.
        workers: what `/metrics` shows of several workers of one process group: the sum or the highest, of live ones.
    """
    return Gauge(name, meaning, labels, registry=registry, multiprocess_mode=workers)


def histogram(name: str, meaning: str, labels: Sequence[str] = (), *, buckets: Sequence[float]) -> Histogram:
    """Declare durations in seconds; the count is the number of cases."""
    return Histogram(name, meaning, labels, registry=registry, buckets=buckets)
