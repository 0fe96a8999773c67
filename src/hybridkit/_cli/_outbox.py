"""`hybridkit outbox`: list the events that a data service has not published, and retry them."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from hybridkit._cli._common import (
    JsonOption,
    checked_url,
    is_terminal,
    one_line,
    print_json,
    print_table,
    run,
)
from hybridkit.codec import format_timestamp
from hybridkit.errors import MissingExtraError
from hybridkit.settings import MongoUrl, PostgresUrl

try:
    from hybridkit.dataservice import OutboxEntry, open_outbox
except ModuleNotFoundError:
    raise MissingExtraError("hybridkit outbox", extra="postgres") from None

app = typer.Typer()

PREVIEWED: Final = 10_000
REASON_CHARS: Final = 120


def _checked_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise typer.BadParameter(f"not the id of an event: {text!r}") from None


def _checked_url(value: str) -> str:
    return checked_url(value, MongoUrl if value.startswith("mongodb") else PostgresUrl)


DatabaseOption = Annotated[
    str,
    typer.Option(
        "--database-url",
        envvar="DATABASE_URL",
        callback=_checked_url,
        metavar="URL",
        help="postgresql://… or mongodb://…: the data service's. As an option its password is seen by whoever lists"
        " processes.",
    ),
]
TypeOption = Annotated[str | None, typer.Option("--type", help="Only events of this type.")]


@app.command("list")
def list_(
    *,
    database_url: DatabaseOption,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Those that wait to be published, instead of the parked ones.")
    ] = False,
    event_type: TypeOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Show events that can't be published, and why, the oldest first; change nothing."""
    entries = run(_entries(database_url, parked=not waiting, event_type=event_type, limit=limit))
    if as_json:
        print_json([_document(entry) for entry in entries])
        return
    if not entries:
        typer.echo("nothing waits" if waiting else "nothing is parked")
        return
    headers = ("SEQUENCE", "EVENT ID", "TYPE", "KEY", "AGE", "NOT BEFORE" if waiting else "REASON")
    print_table([_row(entry) for entry in entries], headers=headers)
    if len(entries) == limit:
        typer.echo(f"only the first {limit}; --limit shows more", err=True)


@app.command("retry")
def retry(
    event_ids: Annotated[
        list[UUID] | None,
        typer.Argument(metavar="[EVENT_ID]...", help="These events.", parser=_checked_id),
    ] = None,
    *,
    database_url: DatabaseOption,
    event_type: TypeOption = None,
    every: Annotated[bool, typer.Option("--all", help="All that are parked.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be tried again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Let parked events wait again; the service publishes them within a second, or parks them again.

    Asks first, and where there is nobody to ask wants --yes. Exit code 1 when one of the ids is not parked.
    """
    chosen = event_ids or []
    if every == bool(chosen or event_type):
        raise typer.BadParameter("which events? Name their ids, give --type, or --all")
    if not (dry_run or yes) and (as_json or not is_terminal()):
        raise typer.BadParameter("there is nobody to ask: add --yes, or --dry-run to see what would be done")
    found = run(_entries(database_url, parked=True, event_type=event_type, event_ids=chosen, limit=PREVIEWED))
    missing = sorted(set(chosen) - {entry.event_id for entry in found})
    if not as_json:
        _print_groups(found)
    retried = 0
    if found and not dry_run:
        if not yes:
            typer.confirm(f"Try {_count(len(found))} again?", abort=True)
        retried = run(_retry(database_url, event_type, chosen))
    if as_json:
        print_json(
            {"parked": len(found), "retried": retried, "dry_run": dry_run, "not_parked": [*map(str, missing)]}
        )
    else:
        typer.echo(
            f"{_count(len(found) if dry_run else retried)} {'would be' if dry_run else 'will be'} tried again"
        )
        for event_id in missing:
            typer.echo(f"error: {event_id} is not parked", err=True)
    raise typer.Exit(1 if missing else 0)


async def _entries(
    url: str, *, parked: bool, event_type: str | None, event_ids: Sequence[UUID] = (), limit: int
) -> Sequence[OutboxEntry]:
    async with open_outbox(url) as outbox:
        return await outbox.entries(parked=parked, event_type=event_type, event_ids=event_ids, limit=limit)


async def _retry(url: str, event_type: str | None, event_ids: Sequence[UUID]) -> int:
    async with open_outbox(url) as outbox:
        return await outbox.retry(event_type=event_type, event_ids=event_ids)


# ── printing ─────────────────────────────────────────────────────────────────────────────────────


def _row(entry: OutboxEntry) -> tuple[object, ...]:
    last = (
        entry.not_before and format_timestamp(entry.not_before) if entry.parked_at is None else entry.reason
    )
    return (
        entry.sequence,
        entry.event_id,
        one_line(entry.event_type),
        one_line(entry.key),
        _age(_age_seconds(entry)),
        one_line(last, max_chars=REASON_CHARS),
    )


def _print_groups(entries: Sequence[OutboxEntry]) -> None:
    groups = Counter((entry.event_type, entry.reason) for entry in entries)
    if groups:
        rows = [
            (count, one_line(event_type), one_line(reason, max_chars=REASON_CHARS))
            for (event_type, reason), count in groups.most_common()
        ]
        print_table(rows, headers=("COUNT", "TYPE", "REASON"))


def _document(entry: OutboxEntry) -> dict[str, Any]:
    document = {name: getattr(entry, name) for name in OutboxEntry.__slots__}
    document["event_id"] = str(entry.event_id)  # a driver's own kind of UUID has no JSON form
    return {**document, "age_seconds": round(_age_seconds(entry), 3)}


def _age_seconds(entry: OutboxEntry) -> float:
    return max((datetime.now(UTC) - entry.created_at).total_seconds(), 0.0)


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _count(number: int) -> str:
    return f"{number}{'+' if number == PREVIEWED else ''} event{'' if number == 1 else 's'}"
