"""`hybridkit events`: documents of an application's events, and a check that fails with the field named."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hybridkit._cli import _events
from hybridkit._cli._app import app
from hybridkit.events import Command, Event, EventRegistry, Message, registry
from hybridkit.events.schemas import asyncapi_document, event_schemas, to_json
from hybridkit.messaging import RobustConsumer


class Made(Event, type="cli_events.made", key="id"):
    id: str
    email: str


class MadeOtherwise(Event):
    id: str
    email: int


class Make(Command, queue="cli_events_makers", type="command.cli_events_make"):
    id: str


MadeOtherwise.message_type, MadeOtherwise.event_key = "cli_events.made", "id"


def registered(*messages: type[Message]) -> EventRegistry:
    declared = EventRegistry()
    for message in messages:
        declared.add(message)
    return declared


def hybridkit(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["events", *arguments])


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An application that declares `Made` and `Make`, and consumes them."""
    made = ModuleType("cli_events_app.main")
    consumer = RobustConsumer("cli_events_makers")

    @consumer.on(Make)
    async def make(command: Make) -> None:
        pass

    @consumer.on(Made)
    async def count(event: Made) -> None:
        pass

    made.__dict__.update(consumer=consumer, Made=Made, Make=Make)
    monkeypatch.setitem(sys.modules, "cli_events_app", ModuleType("cli_events_app"))
    monkeypatch.setitem(sys.modules, made.__name__, made)
    declared = registered(Made, Make)
    monkeypatch.setattr(_events, "event_schemas", lambda: event_schemas(declared))
    monkeypatch.setattr(
        _events, "asyncapi_document", lambda **options: asyncapi_document(declared, **options)
    )
    return made


def test_the_document_names_service_and_handlers(module: ModuleType) -> None:
    """The AsyncAPI document has an operation for each event that a consumer handles."""
    shown = hybridkit("export", "--app", module.__name__)
    assert shown.exit_code == 0
    document = json.loads(shown.stdout)
    assert (document["asyncapi"], document["info"]["title"]) == ("3.0.0", "cli_events_app")
    assert sorted(document["operations"]) == [
        "receive.cli_events_makers.cli_events.made.v1",
        "receive.cli_events_makers.command.cli_events_make.v1",
    ]


def test_one_consumer_can_be_named(module: ModuleType) -> None:
    """An unknown name is wrong use."""
    assert hybridkit("export", "--app", f"{module.__name__}:consumer").exit_code == 0
    refused = hybridkit("export", "--app", f"{module.__name__}:consumr")
    assert refused.exit_code == 2
    assert "consumr" in refused.output


def test_json_schemas_go_into_a_file(module: ModuleType, tmp_path: Path) -> None:
    """The bytes are the same each time, so that the file can be committed."""
    file = tmp_path / "events.json"
    done = hybridkit("export", "--app", module.__name__, "--format", "json_schema", "--output", str(file))
    assert (done.exit_code, done.output) == (0, "")
    assert file.read_bytes() == to_json(event_schemas(registered(Make, Made)))


@pytest.mark.parametrize("document", ["event_schemas", "asyncapi_document"])
def test_nothing_changed(module: ModuleType, tmp_path: Path, document: str) -> None:
    """An AsyncAPI document and JSON Schemas are both accepted for the comparison."""
    declared = registered(Made, Make)
    made: Any = (
        event_schemas(declared) if document == "event_schemas" else asyncapi_document(declared, service="x")
    )
    saved = tmp_path / "events.json"
    saved.write_bytes(to_json(made))
    done = hybridkit("check", str(saved), "--app", module.__name__)
    assert (done.exit_code, done.output) == (0, "0 breaking and 0 compatible changes\n")


def test_a_breaking_change_fails_with_the_field_named(module: ModuleType, tmp_path: Path) -> None:
    """The line says what the change breaks and what to do."""
    saved = tmp_path / "events.json"
    saved.write_bytes(to_json(event_schemas(registered(MadeOtherwise))))
    done = hybridkit("check", str(saved), "--app", module.__name__)
    assert done.exit_code == 1
    broken, *rest = done.output.splitlines()
    assert broken == (
        "breaking: cli_events.made version 1 /data/email: the type was integer, is string; messages sent before are"
        " refused and services not yet deployed refuse new messages; raise the version to 2 and add an upcaster from 1"
    )
    assert rest == [
        "compatible: command.cli_events_make version 1: added",
        "1 breaking and 1 compatible changes",
    ]


def test_the_differences_as_json(module: ModuleType, tmp_path: Path) -> None:
    """A compatible difference leaves the exit code 0."""
    saved = tmp_path / "events.json"
    saved.write_bytes(to_json(event_schemas(registered(Made))))
    done = hybridkit("check", str(saved), "--app", module.__name__, "--json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["is_compatible"]
    assert document["differences"][0]["event_type"] == "command.cli_events_make"


@pytest.mark.parametrize(
    ("content", "said"), [("{", "events.json is no document of events"), ("{}", "hybridkit events export")]
)
def test_a_file_of_another_kind_is_refused(
    module: ModuleType, tmp_path: Path, content: str, said: str
) -> None:
    """The error says that the file has no events."""
    saved = tmp_path / "events.json"
    saved.write_text(content)
    done = hybridkit("check", str(saved), "--app", module.__name__)
    assert done.exit_code == 1
    assert said in done.output


def test_a_file_that_is_not_there_is_wrong_use(module: ModuleType) -> None:
    """The exit code is 2."""
    assert hybridkit("check", "no_such_file.json", "--app", module.__name__).exit_code == 2


def test_a_module_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module without a consumer is accepted."""
    (tmp_path / "cli_events_contracts.py").write_text(
        "from hybridkit.events import Event\nclass Kept(Event, type='cli_events.kept'): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for everything in ("_types", "_newest"):  # without what other tests have declared
        monkeypatch.setattr(registry, everything, {})
    shown = hybridkit("export", "--app", "cli_events_contracts", "--format", "json_schema")
    assert shown.exit_code == 0, shown.output
    assert "cli_events.kept.v1" in json.loads(shown.stdout)["$defs"]
