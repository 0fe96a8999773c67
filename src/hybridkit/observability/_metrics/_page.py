"""The page `/metrics`."""

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from hybridkit._worker_metrics import VARIABLE, being_read
from hybridkit.observability._metrics._declare import registry
from hybridkit.observability._metrics._sampling import take_samples


class _Together:
    """The default registry and ours, as one collector."""

    def collect(self) -> Iterable[Metric]:
        return chain(REGISTRY.collect(), registry.collect())


def render_metrics(accept: str = "") -> tuple[bytes, str]:
    """Return the body of `/metrics` and its content type.

    With `PROMETHEUS_MULTIPROC_DIR` in the environment (several workers, see
    https://prometheus.github.io/client_python/multiprocess/) it shows the sum over all of them, and no exemplars.
    Otherwise OpenMetrics has the trace id of a recent case in each bucket of a duration, if traces are exported.

    Args:
        accept: the request's `Accept` header; OpenMetrics where it asks for it, the classic text form otherwise.
    """
    take_samples()
    encode, content_type = choose_encoder(accept)
    if VARIABLE not in os.environ:
        return encode(_Together()), content_type
    shared = CollectorRegistry()
    MultiProcessCollector(shared)  # type: ignore[no-untyped-call] # has no annotations
    with being_read(Path(os.environ[VARIABLE])):
        return encode(shared), content_type
