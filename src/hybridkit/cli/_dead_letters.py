"""`hybridkit dlq`: what is dead, why, and sending it back to its consumers."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, cast
from urllib.parse import unquote, urlsplit

import typer

from hybridkit.cli._common import (
    JsonOption,
    UrlOption,
    find,
    is_terminal,
    print_json,
    print_table,
    printable,
    run,
    shown,
)
from hybridkit.codec import format_timestamp, truncate_timestamp
from hybridkit.errors import HybridkitError
from hybridkit.messaging import (
    DeadLetter,
    DeadLetterFilter,
    DeadLetterGroup,
    DeadLetters,
    DeadLetterSummary,
    Redriven,
    RobustConsumer,
)

app = typer.Typer()

BODY_CHARS: Final = 1000
JSON_BODY_CHARS: Final = 16_000
MAX_HEADER_LEVELS: Final = 50


def _moment(text: str) -> datetime:
    try:
        return truncate_timestamp(datetime.fromisoformat(text))
    except ValueError:
        raise typer.BadParameter(f"not a time like 2026-01-31T12:00:00Z: {text!r}") from None


QueueArgument = Annotated[
    str, typer.Argument(metavar="QUEUE", help="The dead-letter queue: email_tasks.dlq, or hk.unrouted.")
]
TypeOption = Annotated[str | None, typer.Option("--type", help="Only events of this type.")]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Only these: exhausted, malformed, …")]
ErrorOption = Annotated[
    str | None,
    typer.Option("--error", metavar="CLASS", help="Only these: TimeoutError, with or without its module."),
]
SinceOption = Annotated[
    datetime | None,
    typer.Option(
        "--since", parser=_moment, metavar="TIME", help="Only what failed then or later: ISO 8601, UTC."
    ),
]
UntilOption = Annotated[
    datetime | None, typer.Option("--until", parser=_moment, metavar="TIME", help="Only what failed before.")
]
EventOption = Annotated[
    str | None,
    typer.Option("--event-id", metavar="ID", help="Only this event: its own id, or the one in the log."),
]


@app.command("list")
def list_(
    queues: Annotated[
        list[str] | None, typer.Argument(metavar="[QUEUE]...", help="Dead-letter queues by their names.")
    ] = None,
    *,
    url: UrlOption,
    apps: Annotated[
        list[str] | None,
        typer.Option("--app", metavar="MODULE[:NAME]", help="Those of the consumers in this module."),
    ] = None,
    management_url: Annotated[
        str | None,
        typer.Option(
            "--management-url",
            envvar="RABBITMQ_MANAGEMENT_URL",
            metavar="URL",
            help="http://user:password@host:15672: all that there are.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count dead letters by type, reason and error; change nothing.

    AMQP can't list queues: name them, or the application that consumes, or the management API that knows all of them.
    Exit code 1 when one of them can't be read.
    """
    names = _names(url, queues or (), apps or (), management_url)
    found: list[DeadLetterSummary] = []
    errors: dict[str, str] = {}
    for name in names:
        try:
            found.append(run(DeadLetters(url, name).summary()))
        except HybridkitError as error:
            errors[name] = str(error)
    if as_json:
        print_json([*found, *({"queue": name, "error": said} for name, said in errors.items())])
    else:
        _print_summaries(found)
        for said in errors.values():
            typer.echo(f"error: {said}", err=True)
    raise typer.Exit(1 if errors else 0)


@app.command("peek")
def peek(
    queue: QueueArgument,
    *,
    url: UrlOption,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 10,
    event_type: TypeOption = None,
    reason: ReasonOption = None,
    error: ErrorOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    event_id: EventOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the messages themselves, from the head of the queue; change nothing."""
    matching = DeadLetterFilter(
        event_type=event_type, reason=reason, error_type=error, since=since, until=until, event_id=event_id
    )
    letters = run(DeadLetters(url, queue).peek(matching, limit=limit))
    if as_json:
        print_json([_document(letter) for letter in letters])
        return
    for letter in letters:
        _print_letter(letter)
    if not letters:
        typer.echo("nothing fits")


@app.command("redrive")
def redrive(
    queue: QueueArgument,
    *,
    url: UrlOption,
    event_type: TypeOption = None,
    reason: ReasonOption = None,
    error: ErrorOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    event_id: EventOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be sent back.")] = False,
    rate: Annotated[float | None, typer.Option("--rate", metavar="N", help="At most N per second.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Send messages back to their consumers, with all their attempts ahead; what doesn't fit stays, in order.

    Asks first, and where there is nobody to ask wants --yes. Killed half-way it loses nothing: run it again.
    Exit code 1 when messages could not be sent.
    """
    matching = DeadLetterFilter(
        event_type=event_type, reason=reason, error_type=error, since=since, until=until, event_id=event_id
    )
    letters = DeadLetters(url, queue)
    if not dry_run and not yes and not _is_agreed(letters, matching, limit, as_json=as_json):
        return
    done = run(
        letters.redrive(
            matching,
            dry_run=dry_run,
            rate_per_second=rate,
            limit=limit,
            on_progress=_show_progress if is_terminal() and not as_json else None,
        )
    )
    if as_json:
        print_json({**{name: getattr(done, name) for name in Redriven.__slots__}, "left": done.left})
    else:
        _print_redriven(done, limit)
    raise typer.Exit(1 if done.failed else 0)


# ── asking ───────────────────────────────────────────────────────────────────────────────────────


def _names(url: str, queues: Sequence[str], apps: Sequence[str], management_url: str | None) -> Sequence[str]:
    """Each once: those that are named, those of the consumers, or all."""
    if queues:
        return list(dict.fromkeys(queues))
    if apps:
        consumers = find(apps, RobustConsumer)
        return DeadLetters.queues_of(consumers)
    if management_url:
        vhost = unquote(urlsplit(url).path.removeprefix("/")) or "/"
        return run(DeadLetters.find_queues(management_url, vhost=vhost))
    raise typer.BadParameter(
        "which queues? Name them, or give --app or --management-url: AMQP can't list queues"
    )


def _is_agreed(letters: DeadLetters, matching: DeadLetterFilter, limit: int | None, *, as_json: bool) -> bool:
    """Show what would be done, and ask whether to do it."""
    if as_json or not is_terminal():
        raise typer.BadParameter("there is nobody to ask: add --yes, or --dry-run to see what would be done")
    preview = run(letters.redrive(matching, dry_run=True, limit=limit))
    _print_redriven(preview, limit)
    if preview.matched:
        typer.confirm(f"Send {_count(preview.matched)} back?", abort=True)
    return bool(preview.matched)


# ── printing ─────────────────────────────────────────────────────────────────────────────────────


def _print_summaries(summaries: Sequence[DeadLetterSummary]) -> None:
    rows = [(each.queue, *_row(group)) for each in summaries for group in each.groups]
    if rows:
        print_table(rows, headers=("QUEUE", *_HEADERS))
    for each in summaries:
        if not each.messages:
            typer.echo(f"{each.queue} is empty")
        elif each.looked_at < each.messages:
            typer.echo(f"{each.queue}: the first {each.looked_at} of {each.messages} are counted")


_HEADERS: Final = ("COUNT", "TYPE", "REASON", "ERROR", "FIRST FAILURE", "LAST", "EXAMPLE")


def _row(group: DeadLetterGroup) -> tuple[object, ...]:
    return (
        group.count,
        shown(group.event_type),
        shown(group.reason),
        shown(group.error_type).removeprefix("builtins."),
        _time(group.first_failed_at),
        _time(group.last_failed_at),
        shown(group.event_id),
    )


def _print_redriven(done: Redriven, limit: int | None) -> None:
    if done.groups:
        print_table([_row(group) for group in done.groups], headers=_HEADERS)
    if done.dry_run:
        typer.echo(f"{_count(done.matched)} of {done.messages} would be sent back")
    else:
        typer.echo(f"{_count(done.redriven)} of {done.messages} sent back, {done.left} left")
    if done.looked_at < done.messages and limit is None:
        typer.echo(
            f"only the first {done.looked_at} were looked at: too many stay in front of the others", err=True
        )
    for why, count in done.failed.items():
        typer.echo(f"error: {_count(count)} not sent: {shown(why)}", err=True)


def _show_progress(redriven: int, failed: int) -> None:
    typer.echo(f"\r{redriven} sent back, {failed} failed ", nl=False, err=True)


def _print_letter(letter: DeadLetter) -> None:
    typer.echo(f"#{letter.position}  {shown(letter.event_type)}  {shown(letter.reason)}")
    rows = {
        "event id": shown(letter.event_id),
        **({"in the log": shown(letter.derived_id)} if letter.derived_id else {}),
        "from": shown(letter.target),
        "error": f"{shown(letter.error_type)}: {shown(letter.error)}" if letter.error_type else "-",
        "attempts": f"{letter.attempts}, redriven {letter.generation} times",
        "failed": f"first {_time(letter.first_failed_at)}, last {_time(letter.failed_at)}",
        **{shown(name): shown(_plain(value)) for name, value in letter.headers.items() if name[:3] != "hk_"},
        "body": shown(_body(letter, BODY_CHARS), most=2 * BODY_CHARS),
    }
    print_table([(f"    {name}", value) for name, value in rows.items()])
    if letter.stack:
        typer.echo("\n".join(f"    {printable(line)}" for line in letter.stack.splitlines()))


def _document(letter: DeadLetter) -> dict[str, Any]:
    return {
        **{name: getattr(letter, name) for name in DeadLetter.__slots__},
        "headers": _plain(letter.headers),
        "body": _body(letter, JSON_BODY_CHARS),
        "body_bytes": len(letter.body),
    }


def _body(letter: DeadLetter, most: int) -> str:
    text = letter.body[: 4 * most].decode(errors="replace")
    return text if len(text) <= most else f"{text[:most]}… ({len(letter.body)} bytes)"


def _plain(value: Any, *, levels: int = MAX_HEADER_LEVELS) -> Any:
    """What JSON can carry; AMQP's headers can hold more."""
    if not levels:
        return "…"
    if isinstance(value, Mapping):
        members = cast("Mapping[Any, Any]", value).items()
        return {str(name): _plain(each, levels=levels - 1) for name, each in members}
    if isinstance(value, list):
        return [_plain(each, levels=levels - 1) for each in cast("list[Any]", value)]
    return value if value is None or isinstance(value, (str, int, float, datetime)) else str(value)


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else format_timestamp(moment)


def _count(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"
