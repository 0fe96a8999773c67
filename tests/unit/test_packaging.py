"""The built wheel is what the tests import, and it holds what it should and nothing else."""

import os
import re
import tomllib
from importlib.metadata import Distribution, distribution, entry_points
from pathlib import Path

import pytest

import hybridkit

ROOT = Path(__file__).resolve().parents[2]
built_wheel = pytest.mark.skipif(
    os.environ.get("HYBRIDKIT_TEST_WHEEL") != "1", reason="`make test` runs this, on the built wheel"
)


@pytest.fixture
def installed() -> Distribution:
    return distribution("hybridkit")


@pytest.fixture
def wheel_files(installed: Distribution) -> set[str]:
    return {path.as_posix() for path in installed.files or ()}


@built_wheel
def test_the_tests_import_the_built_wheel() -> None:
    """The sources lie in `src/`, so nothing but an installation can be what was imported."""
    assert "site-packages" in Path(hybridkit.__file__).parts


@built_wheel
def test_the_wheel_holds_every_source_file(wheel_files: set[str]) -> None:
    """The folder of migrations and the mark of typing too."""
    sources = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src/hybridkit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources - wheel_files == set()
    assert "hybridkit/py.typed" in wheel_files


@built_wheel
def test_the_wheel_holds_nothing_but_the_package_and_its_metadata(wheel_files: set[str]) -> None:
    """No tests, no examples, no top-level module that could shadow somebody else's."""
    assert {path.partition("/")[0] for path in wheel_files} <= {
        "hybridkit",
        f"hybridkit-{hybridkit_version()}.dist-info",
        "..",  # scripts go to the environment's bin/
    }
    assert [path for path in wheel_files if "test_" in path or "conftest" in path] == []


def test_the_metadata_says_what_pip_needs(installed: Distribution) -> None:
    """Versions, license, and all extras."""
    metadata = installed.metadata
    assert metadata["Requires-Python"] == ">=3.12"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert set(metadata.get_all("Provides-Extra") or ()) == {
        "fastapi",
        "aiogram",
        "postgres",
        "mongo",
        "otel",
        "sentry",
        "security",
        "gunicorn",
        "fast",
        "cli",
        "testing",
    }


def test_what_is_optional_is_not_required(installed: Distribution) -> None:
    """A worker installs no web framework, no bot framework and no database driver."""
    required = {re.split(r"[^\w.-]", line)[0] for line in installed.requires or () if "extra ==" not in line}
    assert required == {
        "aio-pika",
        "h11",
        "httpx",
        "opentelemetry-api",
        "opentelemetry-instrumentation-fastapi",
        "orjson",
        "prometheus-client",
        "pydantic",
        "pydantic-settings",
        "redis",
        "structlog",
        "tenacity",
        "uuid6",
    }


def test_pytest_finds_the_plugin() -> None:
    """By its entry point, without a `conftest.py`."""
    plugins = {plugin.name: plugin.value for plugin in entry_points(group="pytest11")}
    assert plugins["hybridkit"] == "hybridkit.testing.plugin"


def hybridkit_version() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version
