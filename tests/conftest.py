"""What the whole suite needs of pytest; fixtures with servers come from hybridkit's own plugin."""

import gc
import sys
from collections.abc import Generator, Iterator, MutableMapping
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings
from structlog.testing import capture_logs

from tests.helpers._measuring import Measuring, take_over, unmeasured

pytest_plugins = ["pytester"]

# httpcore looks for it at each request: where it is not there, a full search each time.
if find_spec("sniffio") is None:
    sys.modules["sniffio"] = None  # type: ignore[assignment] # how the import system is told so

# How long an example takes says how busy the machine is. The gates run often and draw half of the usual hundred;
# `make properties` draws a thousand.
_UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("gate", _UNHURRIED, max_examples=50)
settings.register_profile("thorough", _UNHURRIED, max_examples=1000)
settings.load_profile("gate")

_MEASURING = pytest.StashKey[Measuring]()


def pytest_configure(config: pytest.Config) -> None:
    """Take over the measuring of coverage, if there is any, and collect tests without collecting garbage."""
    gc.disable()
    if measuring := take_over(has_workers=bool(config.getoption("numprocesses", None))):
        config.stash[_MEASURING] = measuring


def pytest_collection_finish() -> None:
    """Leave what was imported, which stays until the end, to no collection of garbage."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Save the coverage while xdist still waits: it ends a worker ten seconds after the session."""
    if measuring := session.config.stash.get(_MEASURING, None):
        measuring.stop()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Measure each test as its module needs."""
    if measuring := item.config.stash.get(_MEASURING, None):
        measuring.prepare(item.path)
    return (yield)


@pytest.fixture
def unmeasured_test() -> Iterator[None]:
    """No coverage of the test: it adds none, and takes half the time."""
    with unmeasured():
        yield


@pytest.fixture
def measured_processes(pytestconfig: pytest.Config) -> Iterator[None]:
    """Coverage of the processes that the test starts, too."""
    measuring = pytestconfig.stash.get(_MEASURING, None)
    with measuring.processes() if measuring else nullcontext():
        yield


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
def reported(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """The errors that are reported, instead of sending them to Sentry."""
    noted: list[BaseException] = []
    reporter = SimpleNamespace(report=noted.append)
    monkeypatch.setattr("hybridkit.observability._error_reports._open", [reporter])
    return noted


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry comes after its longest delay."""
    monkeypatch.setattr("random.random", lambda: 1.0)
