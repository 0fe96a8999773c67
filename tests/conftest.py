"""What the whole suite needs of pytest; fixtures with servers come from hybridkit's own plugin."""

import pytest
import structlog
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

# How long an example takes says how busy the machine is. The rest is as hypothesis has it, in CI and elsewhere.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _logs_unconfigured() -> None:
    """Each test finds structlog as a process does that has configured nothing, whatever ran before it."""
    structlog.reset_defaults()
