"""`hybridkit sagas`: show the sagas of a data service, give orders to them, and check that code can serve them."""

import asyncio
import getpass
import re
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, Final

import typer

from hybridkit._cli._common import (
    AppOption,
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
from hybridkit.codec import format_timestamp, now
from hybridkit.errors import NotFoundError, RejectedError
from hybridkit.ids import derived_id
from hybridkit.resources import Filter
from hybridkit.sagas import SAGAS, Saga, SagaRecord, SagaStatus
from hybridkit.sagas._decisions import Skip, decide_order
from hybridkit.sagas._messages import Action, order_class
from hybridkit.sagas._serving import LIVE, Unserved, unserved
from hybridkit.sagas._sweep import OVERDUE

app = typer.Typer()

_LOOK_SECONDS: Final = 0.2
_REASON_CHARS: Final = 80
_AGE: Final = re.compile(r"([0-9]+)(s|min|h|d)")
_UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def _parsed_age(text: str) -> timedelta:
    if (found := _AGE.fullmatch(text)) is None:
        raise typer.BadParameter(f"not a time like 30min, 1h or 2d: {text!r}")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The saga: worker_service.place_order.")]
KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY", help="The value of its key, such as an order's id.")
]
ByOption = Annotated[
    str, typer.Option("--by", help="The person, whom the history keeps; by default the user of this machine.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Don't ask.")]
WaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait until its worker has done it."),
]


@app.command("list")
def list_(
    *,
    url: ServiceUrlOption,
    service: CallerOption,
    callee: CalleeOption = CALLEE,
    saga: Annotated[str | None, typer.Option("--saga", help="Only those of this name.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="Only those in this state.")] = None,
    status: Annotated[
        SagaStatus | None,
        typer.Option("--status", help="Only these, which may have ended; otherwise live ones."),
    ] = None,
    error: Annotated[bool, typer.Option("--error", help="Only those that need a person.")] = False,
    overdue: Annotated[
        bool, typer.Option("--overdue", help="Only those whose timer should have come 90 s ago.")
    ] = False,
    older_than: Annotated[
        timedelta | None,
        typer.Option(
            "--older-than", parser=_parsed_age, metavar="AGE", help="Only those begun 1h ago or before."
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the oldest first.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Show sagas, the oldest first; change nothing. Without --status or --error, those that have not ended.

    Exit code 1 when one of them needs a person.
    """
    where: list[Filter] = []
    if saga is not None:
        where.append(SAGAS["saga"] == saga)
    if state is not None:
        where.append(SAGAS["state"] == state)
    if status is not None:
        where.append(SAGAS["status"] == status)
    elif not error:
        where.append(LIVE)
    if error:
        where.append(~SAGAS["error"].is_null())
    if overdue:
        where += [LIVE, SAGAS["wake_at"] < now() - OVERDUE]
    if older_than is not None:
        where.append(SAGAS["created_at"] <= now() - older_than)
    rows = run(_rows(data_client(url, service=service, callee=callee), where, limit))
    if as_json:
        print_json([_summary(row) for row in rows])
    elif rows:
        headers = ("SAGA", "KEY", "STATUS", "STATE", "SINCE", "DUE", "ERROR")
        print_table([_cells(row) for row in rows], headers=headers)
    else:
        typer.echo("there are none")
    raise typer.Exit(1 if any(row.error for row in rows) else 0)


@app.command("show")
def show(
    name: NameArgument,
    key: KeyArgument,
    *,
    url: ServiceUrlOption,
    service: CallerOption,
    callee: CalleeOption = CALLEE,
    as_json: JsonOption = False,
) -> None:
    """Show a saga: what it waits for, its data, its undo list, and its last 50 moves with their request ids."""
    row = run(_row(data_client(url, service=service, callee=callee), name, key))
    document = _document(row)
    if as_json:
        print_json(document)
        return
    lists = ("undo", "history", "sent", "notes")
    print_table([(field, one_line(value)) for field, value in document.items() if field not in lists])
    for undo in row.undo:
        typer.echo(
            one_line(
                f"undo {undo.n}: {undo.command.type}, {undo.state}, sent {undo.attempts} times,"
                f" undone by {undo.undone_by or 'its being sent'}"
            )
        )
    for entry in row.history:
        moved = f"{entry.from_state or '-'} → {entry.to_state}"
        said = f" ({entry.note})" if entry.note else ""
        typer.echo(
            one_line(
                f"{format_timestamp(entry.at)} {moved} by {entry.event_type} of {entry.service},"
                f" request {entry.request_id}{said}"
            )
        )


@app.command("retry")
def retry(
    name: NameArgument,
    key: KeyArgument,
    *,
    url: ServiceUrlOption,
    service: CallerOption,
    callee: CalleeOption = CALLEE,
    note: Annotated[str, typer.Option("--note", help="The reason, which the history keeps.")] = "",
    by: ByOption = "",
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    wait_seconds: WaitOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Have a saga send the commands of its present wait again, or what could not be undone; clears its error."""
    client = data_client(url, service=service, callee=callee)
    order = _Order(client, name, key, do="retry", by=by, note=note, wait_seconds=wait_seconds)
    _give(order, dry_run=dry_run, yes=yes, as_json=as_json)


@app.command("cancel")
def cancel(
    name: NameArgument,
    key: KeyArgument,
    *,
    reason: Annotated[str, typer.Option("--reason", help="The reason, which the history keeps.")],
    url: ServiceUrlOption,
    service: CallerOption,
    callee: CalleeOption = CALLEE,
    by: ByOption = "",
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    wait_seconds: WaitOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Have a running saga fail, and undo what it has done."""
    client = data_client(url, service=service, callee=callee)
    order = _Order(client, name, key, do="cancel", by=by, note=reason, wait_seconds=wait_seconds)
    _give(order, dry_run=dry_run, yes=yes, as_json=as_json)


@app.command("skip")
def skip(
    name: NameArgument,
    key: KeyArgument,
    *,
    note: Annotated[str, typer.Option("--note", help="The reason, which the history keeps.")],
    url: ServiceUrlOption,
    service: CallerOption,
    callee: CalleeOption = CALLEE,
    by: ByOption = "",
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    wait_seconds: WaitOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Leave out the undo that a saga is at, and go on with the one before; the saga ends as given_up."""
    client = data_client(url, service=service, callee=callee)
    order = _Order(client, name, key, do="skip", by=by, note=note, wait_seconds=wait_seconds)
    _give(order, dry_run=dry_run, yes=yes, as_json=as_json)


@app.command("check")
def check(
    *,
    apps: AppOption,
    url: ServiceUrlOption,
    service: CallerOption,
    callee: CalleeOption = CALLEE,
    as_json: JsonOption = False,
) -> None:
    """Check that the sagas of a module can serve all that is live; change nothing. For a pipeline, before it deploys.

    Exit code 1 when a live saga is in a state that the code doesn't have, or was written by newer code.
    """
    sagas: list[Saga[Any]] = find_instances(apps, Saga)
    found = run(_unserved(data_client(url, service=service, callee=callee), sagas))
    if as_json:
        print_json(found)
    elif found:
        rows = [(each.sagas, each.saga, each.definition, one_line(each.state), each.reason) for each in found]
        print_table(rows, headers=("COUNT", "SAGA", "VERSION", "STATE", "PROBLEM"))
    else:
        names = ", ".join(saga.name for saga in sagas)
        typer.echo(f"this code can serve all live sagas of {names}")
    raise typer.Exit(1 if found else 0)


# ── orders ───────────────────────────────────────────────────────────────────────────────────────


class _Order:
    """An order for one saga, which its worker carries out: every move of a saga happens in one place."""

    def __init__(
        self,
        client: PostgresDataClient,
        name: str,
        key: str,
        *,
        do: Action,
        by: str,
        note: str,
        wait_seconds: float,
    ) -> None:
        if do != "retry" and not note.strip():
            raise typer.BadParameter("say why, as others will ask", param_hint="--note or --reason")
        saga_id = derived_id(f"saga:{name}", key)
        self.client = client
        self.name = name
        self.key = key
        self.wait_seconds = wait_seconds
        self.message = order_class(name)(
            saga_id=saga_id, do=do, by=by or getpass.getuser(), note=note.strip()
        )

    async def look(self) -> SagaRecord:
        """Return the row, if the order means something to it.

        Raises:
            NotFoundError: there is no such saga.
            RejectedError: the order would do nothing.
        """
        row = await _row(self.client, self.name, self.key)
        if isinstance(decide_order(row, self.message), Skip):
            raise RejectedError(
                f"{self.message.do} does nothing for a saga that is {row.status}"
                f"{'' if row.pending_undo() else ' and has nothing to undo'}"
            )
        return row

    async def send(self) -> SagaRecord | None:
        """Send it, and return the row once its worker has carried it out; None if that takes longer."""
        async with self.client:
            async with self.client.transaction() as tx:
                tx.emit(self.message)
            give_up_at = time.monotonic() + self.wait_seconds
            while True:
                row = await self.client.get(SAGAS, self.message.saga_id)
                if row.has_seen(self.message.event_id):
                    return row
                if time.monotonic() >= give_up_at:
                    return None
                await asyncio.sleep(_LOOK_SECONDS)


def _give(order: _Order, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    if not (dry_run or yes) and (as_json or not is_terminal()):
        raise typer.BadParameter("there is nobody to ask: add --yes, or --dry-run to see what would be done")
    row = run(order.look())
    do = order.message.do
    if not as_json:
        typer.echo(f"{do} {order.name} {order.key}: it is {row.status} in {one_line(row.state)}")
    done: SagaRecord | None = None
    if not dry_run:
        if not yes:
            typer.confirm("Send the order?", abort=True)
        done = run(order.send())
    if as_json:
        print_json(
            {
                "order": do,
                "order_id": str(order.message.event_id),
                "dry_run": dry_run,
                "done": done is not None,
                "saga": _summary(done or row),
            }
        )
    elif dry_run:
        typer.echo("nothing was sent")
    elif done is None:
        typer.echo(f"sent as {order.message.event_id}; its worker has not taken it yet")
    else:
        typer.echo(f"done: it is {done.status} in {one_line(done.state)}")


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


async def _rows(client: PostgresDataClient, where: Sequence[Filter], limit: int) -> list[SagaRecord]:
    async with client:
        found: list[SagaRecord] = []
        async for row in client.find(SAGAS).where(*where).order_by("created_at").page_size(min(limit, 100)):
            found.append(row)
            if len(found) == limit:
                break
        return found


async def _row(client: PostgresDataClient, name: str, key: str) -> SagaRecord:
    async with client:
        row = await client.get_or_none(SAGAS, derived_id(f"saga:{name}", key))
    if row is None:
        raise NotFoundError(f"there is no saga {name} with the key {key}")
    return row


async def _unserved(client: PostgresDataClient, sagas: Sequence[Saga[Any]]) -> list[Unserved]:
    async with client:
        return [each for saga in sagas for each in await unserved(saga, client)]


# ── printing ─────────────────────────────────────────────────────────────────────────────────────


def _cells(row: SagaRecord) -> tuple[object, ...]:
    return (
        row.saga,
        one_line(row.key),
        row.status,
        one_line(row.state),
        format_timestamp(row.updated_at),
        "-" if row.wake_at is None else format_timestamp(row.wake_at),
        one_line(row.error, max_chars=_REASON_CHARS),
    )


def _summary(row: SagaRecord) -> dict[str, Any]:
    names = (
        "saga",
        "key",
        "status",
        "state",
        "error",
        "reason",
        "wake_at",
        "created_at",
        "updated_at",
        "ended_at",
    )
    return row.model_dump(mode="json", include={*names})


def _document(row: SagaRecord) -> dict[str, Any]:
    return row.model_dump(mode="json", exclude={"etag", "version"})
