"""`hybridkit audit`: show who changed what, as the audit trail of a data service has it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from hybridkit._cli._common import JsonOption, one_line, print_json, print_table, run
from hybridkit._cli._data_clients import CALLEE, CalleeOption, CallerOption, ServiceUrlOption, data_client
from hybridkit.clients import PostgresDataClient
from hybridkit.codec import encode_json, format_timestamp, in_utc
from hybridkit.resources import AUDIT, AuditEntry, Filter

app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)

LIMIT: Final = 100
MAX_LIMIT: Final = 1000
CHANGE_CHARS: Final = 200


@app.command("audit")
def audit(
    resource: Annotated[
        str | None, typer.Argument(metavar="[RESOURCE]", help="The resource: users; without it, all of them.")
    ] = None,
    record_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The record's id; without it, all of the resource.")
    ] = None,
    *,
    url: ServiceUrlOption,
    service: CallerOption,
    callee: CalleeOption = CALLEE,
    user: Annotated[str | None, typer.Option("--user", help="Only what was done for this user.")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="TIME", help="Only from this time on: 2026-01-31, or 2026-01-31T08:30Z."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=MAX_LIMIT, help="The most changes; the newest are shown.")
    ] = LIMIT,
    as_json: JsonOption = False,
) -> None:
    """Show the newest changes of audited records, the last one at the end; change nothing.

    The calling service needs a grant with `audit` at the data service.
    """
    where = [
        AUDIT[name] == value
        for name, value in (("resource", resource), ("record_id", record_id), ("user_id", user))
        if value is not None
    ]
    if since is not None:
        where.append(AUDIT["created_at"] >= _moment(since))
    entries = run(_newest(data_client(url, service=service, callee=callee), where, limit))
    if as_json:
        print_json([entry.model_dump(mode="json", exclude={"etag", "version"}) for entry in entries])
    elif entries:
        print_table([_row(entry) for entry in entries], headers=_HEADERS)
    else:
        typer.echo("there are no such changes")


async def _newest(client: PostgresDataClient, where: Sequence[Filter], limit: int) -> list[AuditEntry]:
    async with client:
        found = client.find(AUDIT).where(*where).order_by("id", descending=True).page_size(limit)
        page = await found.page()
        return list(reversed(page.items))


_HEADERS: Final = ("TIME", "RECORD", "VERSION", "OPERATION", "CALLER", "USER", "REQUEST", "CHANGES")


def _row(entry: AuditEntry) -> tuple[object, ...]:
    changes = ", ".join(
        f"{name}: {_shown(change.before)} -> {_shown(change.after)}" for name, change in entry.changes.items()
    )
    return (
        format_timestamp(entry.created_at),
        one_line(f"{entry.resource}/{entry.record_id}"),
        entry.record_version,
        entry.operation,
        one_line(entry.caller),
        one_line(entry.user_id),
        one_line(entry.request_id),
        one_line(changes, max_chars=CHANGE_CHARS),
    )


def _shown(value: Any) -> str:
    return encode_json(value).decode()


def _moment(text: str) -> datetime:
    """Read a time; a day is its beginning, and without an offset it is in UTC."""
    try:
        return in_utc(datetime.fromisoformat(text))
    except ValueError:
        raise typer.BadParameter(
            "it is a day or a time, as in 2026-01-31T08:30Z", param_hint="--since"
        ) from None
