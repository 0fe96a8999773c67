"""The list of metrics, and what `/metrics` answers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, Counter
from prometheus_client.parser import text_string_to_metric_families

from hybridkit.observability import metrics, render_metrics, sampled
from hybridkit.observability._metrics import registry

UNITS = (
    "_calls",
    "_ratio",
    "_seconds",
    "_requests",
    "_messages",
    "_events",
    "_paused",
    "_state",
    "_runs",
    "_connections",
    "_sagas",
    "_info",
)  # the last is a state: 0 or 1


def test_names_carry_a_prefix_and_a_unit() -> None:
    """Each has a sentence as its help too."""
    families = list(registry.collect())
    assert len(families) == len({family.name for family in families}) > 15
    for family in families:
        assert re.fullmatch(r"hybridkit_[a-z]+(_[a-z]+)*", family.name)
        assert family.type == "counter" or family.name.endswith(
            UNITS
        )  # a counter gets _total, its unit is the thing
        assert family.documentation.endswith(".")


def test_every_metric_is_an_attribute_of_metrics() -> None:
    """A class of an area that is left out of `Metrics` would be on the page and in no list."""
    attributes = [getattr(metrics, name) for name in dir(metrics) if not name.startswith("_")]
    assert sorted(metric.describe()[0].name for metric in attributes) == sorted(
        family.name for family in registry.collect()
    )


def test_a_page_holds_ours_the_process_and_the_application() -> None:
    """One page has all that a scraper wants to know."""
    own = Counter("my_application_things", "Things.", registry=REGISTRY)
    try:
        own.inc(3)
        metrics.events_published.labels("user.created", "confirmed").inc()
        page, content_type = render_metrics()
    finally:
        REGISTRY.unregister(own)
    assert content_type.startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(page.decode())}
    assert families.keys() >= {
        "my_application_things",
        "hybridkit_events_published",
        "python_gc_objects_collected",
    }
    labels = [sample.labels for sample in families["hybridkit_events_published"].samples]
    assert {"event_type": "user.created", "outcome": "confirmed"} in labels


def test_a_page_comes_as_openmetrics_on_demand() -> None:
    """By the `Accept` header of the scraper."""
    page, content_type = render_metrics("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert page.endswith(b"# EOF\n")


WORKER = """
from hybridkit.observability import metrics
metrics.events_published.labels("user.created", "confirmed").inc({number})
metrics.outbox_pending.set({number})
metrics.outbox_lag.set({number})
metrics.http_server_in_flight.inc()
metrics.handler_duration.labels("worker.analytics", "user.created").observe(0.2)
"""
SCRAPE = "from hybridkit.observability import render_metrics; print(render_metrics()[0].decode(), end='')"


def test_a_page_adds_up_all_workers_of_gunicorn(tmp_path: Path) -> None:
    """prometheus-client keeps values in files then, one per process."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def run(program: str) -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    run(WORKER.format(number=2))
    run(WORKER.format(number=3))
    page = run(SCRAPE)
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert values["hybridkit_events_published_total", "user.created", "confirmed"] == 5
    assert values["hybridkit_handler_duration_seconds_count", "worker.analytics", "user.created"] == 2
    assert values["hybridkit_outbox_pending_events",] == 5
    assert values["hybridkit_outbox_lag_seconds",] == 3
    assert values["hybridkit_http_server_in_flight_requests",] == 2


def test_importing_observability_does_not_import_an_application_framework() -> None:
    """Nor OpenTelemetry's instrumentation for it, which needs FastAPI."""
    program = "import sys, hybridkit.observability; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert not loaded & {
        "fastapi",
        "starlette",
        "aiogram",
        "opentelemetry.sdk",
        "opentelemetry.instrumentation.fastapi",
    }


def test_a_missing_directory_for_workers_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A page of one worker would pass for that of all."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="PROMETHEUS_MULTIPROC_DIR is not set or not a directory"):
        render_metrics()


def test_a_gauge_that_is_sampled_is_up_to_date_on_the_page() -> None:
    """What changes too often to be counted at each change."""
    values = iter((3, 4))
    with sampled(lambda: metrics.database_pool_waiting.labels("test").set(next(values))):
        render_metrics()
        assert metrics.database_pool_waiting.labels("test")._value.get() == 3
        render_metrics()
    render_metrics()
    assert metrics.database_pool_waiting.labels("test")._value.get() == 4
