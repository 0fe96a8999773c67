"""`hybridkit events`: export the schemas of an application's events, and compare them with a release."""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hybridkit._cli._common import AppOption, JsonOption, find_instances, import_app, print_json
from hybridkit.codec import decode_object
from hybridkit.errors import MalformedPayloadError
from hybridkit.events.schemas import Schema, asyncapi_document, check, event_schemas, to_json
from hybridkit.messaging import RobustConsumer

app = typer.Typer(rich_markup_mode=None)


class Format(StrEnum):
    """The kinds of document."""

    ASYNCAPI = "asyncapi"
    JSON_SCHEMA = "json_schema"


@app.command("export")
def export(
    apps: AppOption,
    *,
    kind: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.ASYNCAPI,
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Where to write it; to standard output by default.")
    ] = None,
) -> None:
    """Write an AsyncAPI 3 document or JSON Schemas of every event and command that importing the modules declares.

    Equal declarations give equal bytes: commit the file, and `check` against it.
    """
    consumers = _import(apps)
    document = event_schemas() if kind is Format.JSON_SCHEMA else _asyncapi(apps, consumers)
    if output is None:
        typer.echo(to_json(document), nl=False)
    else:
        output.write_bytes(to_json(document))


@app.command("check")
def check_events(
    saved: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="What `export` wrote for the last release.")
    ],
    apps: AppOption,
    *,
    as_json: JsonOption = False,
) -> None:
    """Compare a released document with the code, and name each field whose change breaks something.

    Exit code 1 when a change is breaking.
    """
    _import(apps)
    differences = check(_read(saved), event_schemas())
    breaking = sum(each.breaking for each in differences)
    if as_json:
        print_json({"is_compatible": not breaking, "differences": differences})
    else:
        for each in differences:
            typer.echo(f"{'breaking' if each.breaking else 'compatible'}: {each}")
        typer.echo(f"{breaking} breaking and {len(differences) - breaking} compatible changes")
    raise typer.Exit(1 if breaking else 0)


def _import(apps: Iterable[str]) -> list[RobustConsumer]:
    """Import the modules, which registers their events, and return their consumers, if any."""
    found: list[RobustConsumer] = []
    for path in apps:
        if ":" in path:
            found += find_instances([path], RobustConsumer)
        else:
            found += [value for value in vars(import_app(path)).values() if isinstance(value, RobustConsumer)]
    return found


def _asyncapi(apps: list[str], consumers: Iterable[RobustConsumer]) -> Schema:
    service = apps[0].partition(":")[0].partition(".")[0]
    return asyncapi_document(service=service, receives={each.name: each.handles for each in consumers})


def _read(saved: Path) -> Schema:
    try:
        return decode_object(saved.read_bytes())
    except MalformedPayloadError as error:
        raise MalformedPayloadError(f"{saved} is no document of events: {error}") from None
