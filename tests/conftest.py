"""What the whole suite needs of pytest; fixtures with servers come from hybridkit's own plugin."""

from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings
from structlog.testing import capture_logs

pytest_plugins = ["pytester"]

# How long an example takes says how busy the machine is. The rest is as hypothesis has it, in CI and elsewhere.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _logs_unconfigured() -> None:
    """Each test finds structlog as a process does that has configured nothing, whatever ran before it."""
    structlog.reset_defaults()


@pytest.fixture
def logs(_logs_unconfigured: None) -> Iterator[list[MutableMapping[str, Any]]]:
    """What is logged, instead of writing it out: a stack for each failing handler takes longer than the test."""
    with capture_logs() as written:
        yield written


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry comes after its longest delay."""
    monkeypatch.setattr("random.random", lambda: 1.0)
