"""`hybridkit dlq`: count, show and redrive dead letters."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, cast
from urllib.parse import unquote, urlsplit

import typer

from hybridkit._cli._common import (
    JsonOption,
    UrlOption,
    find_instances,
    is_terminal,
    one_line,
    print_json,
    print_table,
    printable,
    run,
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


def _parsed_time(text: str) -> datetime:
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
        "--since", parser=_parsed_time, metavar="TIME", help="Only what failed then or later: ISO 8601, UTC."
    ),
]
UntilOption = Annotated[
    datetime | None,
    typer.Option("--until", parser=_parsed_time, metavar="TIME", help="Only what failed before."),
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
    names = _queue_names(url, queues or (), apps or (), management_url)
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
    dead_letters = run(DeadLetters(url, queue).peek(matching, limit=limit))
    if as_json:
        print_json([_document(dead_letter) for dead_letter in dead_letters])
        return
    for dead_letter in dead_letters:
        _print_dead_letter(dead_letter)
    if not dead_letters:
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
    dead_letters = DeadLetters(url, queue)
    if not dry_run and not yes and not _is_confirmed(dead_letters, matching, limit, as_json=as_json):
        return
    done = run(
        dead_letters.redrive(
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


def _queue_names(
    url: str, queues: Sequence[str], apps: Sequence[str], management_url: str | None
) -> Sequence[str]:
    """Return the queues to count: the named ones, those of the consumers, or all."""
    if queues:
        return list(dict.fromkeys(queues))
    if apps:
        consumers = find_instances(apps, RobustConsumer)
        return DeadLetters.queues_of(consumers)
    if management_url:
        vhost = unquote(urlsplit(url).path.removeprefix("/")) or "/"
        return run(DeadLetters.find_queues(management_url, vhost=vhost))
    raise typer.BadParameter(
        "which queues? Name them, or give --app or --management-url: AMQP can't list queues"
    )


def _is_confirmed(
    dead_letters: DeadLetters, matching: DeadLetterFilter, limit: int | None, *, as_json: bool
) -> bool:
    """Show what would be sent back, and ask the user to confirm it."""
    if as_json or not is_terminal():
        raise typer.BadParameter("there is nobody to ask: add --yes, or --dry-run to see what would be done")
    preview = run(dead_letters.redrive(matching, dry_run=True, limit=limit))
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
        one_line(group.event_type),
        one_line(group.reason),
        one_line(group.error_type).removeprefix("builtins."),
        _time(group.first_failed_at),
        _time(group.last_failed_at),
        one_line(group.event_id),
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
        typer.echo(f"error: {_count(count)} not sent: {one_line(why)}", err=True)


def _show_progress(redriven: int, failed: int) -> None:
    typer.echo(f"\r{redriven} sent back, {failed} failed ", nl=False, err=True)


def _print_dead_letter(dead_letter: DeadLetter) -> None:
    typer.echo(f"#{dead_letter.position}  {one_line(dead_letter.event_type)}  {one_line(dead_letter.reason)}")
    rows = {
        "event id": one_line(dead_letter.event_id),
        **({"in the log": one_line(dead_letter.derived_id)} if dead_letter.derived_id else {}),
        "from": one_line(dead_letter.target),
        "error": f"{one_line(dead_letter.error_type)}: {one_line(dead_letter.error)}"
        if dead_letter.error_type
        else "-",
        "attempts": f"{dead_letter.attempts}, redriven {dead_letter.generation} times",
        "failed": f"first {_time(dead_letter.first_failed_at)}, last {_time(dead_letter.failed_at)}",
        **{
            one_line(name): one_line(_plain(value))
            for name, value in dead_letter.headers.items()
            if name[:3] != "hk_"
        },
        "body": one_line(_body(dead_letter, BODY_CHARS), max_chars=2 * BODY_CHARS),
    }
    print_table([(f"    {name}", value) for name, value in rows.items()])
    if dead_letter.stack:
        typer.echo("\n".join(f"    {printable(line)}" for line in dead_letter.stack.splitlines()))


def _document(dead_letter: DeadLetter) -> dict[str, Any]:
    return {
        **{name: getattr(dead_letter, name) for name in DeadLetter.__slots__},
        "headers": _plain(dead_letter.headers),
        "body": _body(dead_letter, JSON_BODY_CHARS),
        "body_bytes": len(dead_letter.body),
    }


def _body(dead_letter: DeadLetter, max_chars: int) -> str:
    text = dead_letter.body[: 4 * max_chars].decode(errors="replace")
    return text if len(text) <= max_chars else f"{text[:max_chars]}… ({len(dead_letter.body)} bytes)"


def _plain(value: Any, *, levels: int = MAX_HEADER_LEVELS) -> Any:
    """Convert a header's value, which AMQP allows more types for, to JSON."""
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
