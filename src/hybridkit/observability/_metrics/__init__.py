"""Every metric of hybridkit, a module per area, and the page that shows them.

A metric is one line in the class of its area and one row in `docs/reference/metrics.md`, where the values of labels are
listed; a test compares the two. Names carry the unit; labels hold only what has few values: a route's template, never
its path; an event's type, never its id. The application's own metrics belong into prometheus-client's default registry.
"""

from typing import Final

from hybridkit.observability._metrics._coordination import CoordinationMetrics
from hybridkit.observability._metrics._database import DatabaseMetrics
from hybridkit.observability._metrics._declare import registry as registry
from hybridkit.observability._metrics._events import EventMetrics, OutboxMetrics
from hybridkit.observability._metrics._http import HttpClientMetrics, HttpServerMetrics
from hybridkit.observability._metrics._jobs import JobMetrics
from hybridkit.observability._metrics._page import render_metrics as render_metrics
from hybridkit.observability._metrics._process import ProcessMetrics
from hybridkit.observability._metrics._projections import ProjectionMetrics
from hybridkit.observability._metrics._sagas import SagaMetrics
from hybridkit.observability._metrics._sampling import sampled as sampled
from hybridkit.observability._metrics._sampling import take_samples as take_samples
from hybridkit.observability._metrics._streams import StreamMetrics
from hybridkit.observability._metrics._telegram import TelegramMetrics


class Metrics(
    HttpServerMetrics,
    HttpClientMetrics,
    EventMetrics,
    OutboxMetrics,
    DatabaseMetrics,
    TelegramMetrics,
    CoordinationMetrics,
    JobMetrics,
    StreamMetrics,
    SagaMetrics,
    ProjectionMetrics,
    ProcessMetrics,
):
    """All metrics of hybridkit, each as an attribute: `metrics.events_published.labels(…).inc()`."""


metrics: Final = Metrics()
