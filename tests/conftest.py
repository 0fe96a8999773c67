"""What the whole suite needs of pytest; fixtures with servers come from hybridkit's own plugin."""

import pytest
import structlog

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _logs_unconfigured() -> None:
    """Each test finds structlog as a process does that has configured nothing, whatever ran before it."""
    structlog.reset_defaults()
