"""`hybridkit forget`: erase the personal data of one person in a data service, wherever it is."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

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
from hybridkit._cli._data_clients import CALLEE, CalleeOption, CallerOption, ServiceUrlOption, data_client
from hybridkit.clients import PostgresDataClient
from hybridkit.contract._erasure import Forgotten
from hybridkit.messaging import DeadLetters
from hybridkit.settings import AmqpUrl

app = typer.Typer()

MAX_LETTERS: Final = 1000
"""The most dead letters that are listed of one queue."""


def _checked_broker(value: str | None) -> str | None:
    return None if value is None else checked_url(value, AmqpUrl)


@app.command()
def forget(
    person: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT=ID", help="The person, by the kind of id that Personal names: user_id=0199…"
        ),
    ],
    *,
    url: ServiceUrlOption,
    service: CallerOption,
    callee: CalleeOption = CALLEE,
    dead_letters: Annotated[
        list[str] | None,
        typer.Option(
            "--dead-letters",
            metavar="QUEUE",
            help="List what mentions the person in this dead-letter queue, for someone to look at. Several times.",
        ),
    ] = None,
    rabbitmq_url: Annotated[
        str | None,
        typer.Option(
            "--rabbitmq-url",
            envvar="RABBITMQ_URL",
            callback=_checked_broker,
            metavar="URL",
            help="amqp://user:password@host:port/vhost, for --dead-letters.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be erased.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Erase the personal data of one person: in records and their history, events, snapshots and sagas.

    Fields that are marked with `Personal` become null, or their default; all else stays, and events keep their places.
    It counts first, and asks; where there is nobody to ask it wants --yes. It may be repeated at any time, and after
    any failure: what is erased already is passed over. Exit code 1 when dead letters that mention the person are left.
    """
    subject, _, id_ = person.partition("=")
    if not (subject and id_):
        raise typer.BadParameter("name the kind of id and the id: user_id=0199…", param_hint="SUBJECT=ID")
    if not (dry_run or yes) and (as_json or not is_terminal()):
        raise typer.BadParameter(
            "there is nobody to ask: add --yes, or --dry-run to see what would be erased"
        )
    if dead_letters and rabbitmq_url is None:
        raise typer.BadParameter("dead letters are in RabbitMQ: give its URL", param_hint="--rabbitmq-url")
    client = data_client(url, service=service, callee=callee)
    letters = run(_letters(rabbitmq_url or "", dead_letters or [], id_))
    if not (dry_run or yes):
        _print(run(_forget(client, subject, id_, dry_run=True)), "would be erased")
        typer.confirm(f"Erase the personal data of {person}? Nothing brings it back.", abort=True)
    done = run(_forget(client, subject, id_, dry_run=dry_run))
    if as_json:
        document = {
            "rows": done.rows,
            "announced": done.announced,
            "dry_run": dry_run,
            "dead_letters": letters,
        }
        print_json(document)
    else:
        _print(done, "would be erased" if dry_run else "erased")
        for letter in letters:
            typer.echo(f"left in {letter['queue']}: {letter['event_type']} {letter['event_id']}", err=True)
    raise typer.Exit(1 if letters else 0)


async def _forget(client: PostgresDataClient, subject: str, person: str, *, dry_run: bool) -> Forgotten:
    async with client:
        return await client.forget(subject, person, dry_run=dry_run)


async def _letters(url: str, queues: Sequence[str], person: str) -> list[Mapping[str, Any]]:
    mention = person.encode()
    return [
        {
            "queue": one_line(letter.queue),
            "event_type": one_line(letter.event_type),
            "event_id": one_line(letter.event_id),
        }
        for queue in queues
        for letter in await DeadLetters(url, queue).peek(limit=MAX_LETTERS)
        if mention in letter.body
    ]


def _print(done: Forgotten, what: str) -> None:
    print_table([(name, f"{count} rows {what}") for name, count in done.rows.items()])
    if done.announced:
        typer.echo("subject.forgotten is emitted")
