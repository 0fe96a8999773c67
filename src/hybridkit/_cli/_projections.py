"""`hybridkit projections`: show where projections stand, let one go on behind an event that fails, and fill one."""

import asyncio
import getpass
import time
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from hybridkit._cli._common import (
    JsonOption,
    find_instances,
    is_terminal,
    one_line,
    print_json,
    print_table,
    run,
)
from hybridkit._cli._data_clients import CALLEE, CalleeOption, CallerOption, ServiceUrlOption, data_client
from hybridkit.clients import PostgresDataClient
from hybridkit.clients._projections._follower import Follower
from hybridkit.clients._projections._runner import log_reader
from hybridkit.codec import format_timestamp
from hybridkit.errors import ConflictError
from hybridkit.streams import PROJECTIONS, Projection, ProjectionRow
from hybridkit.streams._positions import ProjectionChanges, retried, skipped

app = typer.Typer()

_ERROR_CHARS: Final = 100
_PROGRESS_SECONDS: Final = 1.0

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The projection: balances, or balances.2 where there are several versions."
    ),
]


@app.command("list")
def list_(
    *,
    url: ServiceUrlOption,
    service: CallerOption,
    callee: CalleeOption = CALLEE,
    as_json: JsonOption = False,
) -> None:
    """Show each projection with its version, its status and how far it is; change nothing.

    Exit code 1 when one stands at an event that fails.
    """
    rows = run(_rows(data_client(url, service=service, callee=callee)))
    if as_json:
        print_json([_document(row) for row in rows])
    elif rows:
        headers = ("NAME", "VERSION", "STREAM", "STATUS", "EVENTS", "LAST EVENT", "ERROR")
        print_table([_cells(row) for row in rows], headers=headers)
    else:
        typer.echo("there are no projections")
    raise typer.Exit(1 if any(row.status == "failed" for row in rows) else 0)


@app.command("show")
def show(
    name: NameArgument,
    *,
    url: ServiceUrlOption,
    service: CallerOption,
    callee: CalleeOption = CALLEE,
    as_json: JsonOption = False,
) -> None:
    """Show a projection with its position, the event at which it stands, and those that were skipped."""
    row = run(_row(data_client(url, service=service, callee=callee), name))
    document = _document(row)
    if as_json:
        print_json(document)
        return
    print_table([(key, one_line(value)) for key, value in document.items() if key != "skipped"])
    for each in row.skipped:
        typer.echo(
            one_line(
                f"skipped {each.position} {each.event} by {each.by} at {format_timestamp(each.at)}: {each.note}"
                f" ({each.error})"
            )
        )


@app.command("retry")
def retry(
    name: NameArgument, *, url: ServiceUrlOption, service: CallerOption, callee: CalleeOption = CALLEE
) -> None:
    """Let a projection try the event at which it stands again; its worker does within seconds."""
    client = data_client(url, service=service, callee=callee)
    row = run(_change(client, name, retried))
    typer.echo(f"{row.id} tries again what is behind {row.position or 'the beginning'}")


@app.command("skip")
def skip(
    name: NameArgument,
    position: Annotated[
        str, typer.Argument(metavar="POSITION", help="Where it stands, as `show` prints it.")
    ],
    *,
    note: Annotated[str, typer.Option("--note", help="The reason, which is kept.")],
    by: Annotated[
        str, typer.Option("--by", help="The person, who is kept; by default the user of this machine.")
    ] = "",
    url: ServiceUrlOption,
    service: CallerOption,
    callee: CalleeOption = CALLEE,
) -> None:
    """Let a projection go on behind the event at which it stands, without counting it; who and why is kept."""
    if not note.strip():
        raise typer.BadParameter("say why, as others will ask", param_hint="--note")
    who = by or getpass.getuser()
    client = data_client(url, service=service, callee=callee)
    row = run(_change(client, name, lambda row: skipped(row, position, by=who, note=note.strip())))
    typer.echo(f"{row.id} goes on behind {row.position}")


@app.command("rebuild")
def rebuild(
    projection: Annotated[
        str,
        typer.Argument(
            metavar="MODULE[:NAME]",
            help="The projection as it is imported from here: worker_service.projections:balances_v2.",
        ),
    ],
    *,
    url: ServiceUrlOption,
    service: CallerOption,
    callee: CalleeOption = CALLEE,
) -> None:
    """Fill a version of a projection from the beginning, or from where it is, until it has caught up.

    It fills its own resource beside the version that is read, so nobody sees an empty one; then deploy the worker with
    the new version, and readers onto its records. Exit code 1 when an event fails.
    """
    found = find_instances([projection], Projection)
    if len(found) != 1:
        names = ", ".join(each.id for each in found)
        raise typer.BadParameter(f"{projection} has several: {names}; name one", param_hint="MODULE[:NAME]")
    row = run(_fill(data_client(url, service=service, callee=callee), found[0]))
    typer.echo(f"{row.id} has caught up, with {row.events} events")


async def _rows(client: PostgresDataClient) -> list[ProjectionRow]:
    async with client:
        rows = [row async for row in client.find(PROJECTIONS)]
    return sorted(rows, key=lambda row: (row.name, row.projection_version))


async def _row(client: PostgresDataClient, name: str) -> ProjectionRow:
    rows = await _rows(client)
    found = [row for row in rows if name in {row.id, row.name}]
    if len(found) != 1:
        known = ", ".join(row.id for row in found or rows) or "none"
        what = "several versions" if found else "no such projection"
        raise typer.BadParameter(f"{name}: {what}; there are {known}", param_hint="NAME")
    return found[0]


async def _change(
    client: PostgresDataClient, name: str, change: Callable[[ProjectionRow], ProjectionChanges]
) -> ProjectionRow:
    row = await _row(client, name)
    changes = change(row)
    async with client:
        return await client.update(PROJECTIONS, row, changes)


async def _fill(client: PostgresDataClient, projection: Projection) -> ProjectionRow:
    async with client:
        follower = Follower(projection, client, log_reader(client, projection))
        said = time.monotonic()
        while not follower.is_caught_up:
            await asyncio.sleep(await follower.look())
            state = follower.probe()
            if follower.is_standby:
                raise ConflictError(f"{projection.id} is filled by another process already")
            if is_terminal() and time.monotonic() - said >= _PROGRESS_SECONDS:
                typer.echo(state, err=True)
                said = time.monotonic()
        return await client.get(PROJECTIONS, projection.id)


def _cells(row: ProjectionRow) -> tuple[object, ...]:
    return (
        row.name,
        row.projection_version,
        row.source,
        row.status,
        row.events,
        "-" if row.recorded_at is None else format_timestamp(row.recorded_at),
        one_line(row.error, max_chars=_ERROR_CHARS),
    )


def _document(row: ProjectionRow) -> dict[str, Any]:
    return row.model_dump(mode="json", exclude={"id", "version", "created_at", "etag"})
