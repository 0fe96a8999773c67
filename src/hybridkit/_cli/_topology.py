"""`hybridkit topology`: compare what consumers need with what the broker has."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, NoReturn

import typer

from hybridkit._cli._common import (
    JsonOption,
    UrlOption,
    find_instances,
    print_json,
    print_table,
    run,
)
from hybridkit.adapters._telegram._update_queues import update_topology
from hybridkit.errors import DeclarationError
from hybridkit.messaging import (
    Plan,
    RobustConsumer,
    Topology,
    apply_topology,
    plan_topology,
    topology_of,
)

app = typer.Typer(rich_markup_mode=None)

ManagementOption = Annotated[
    str | None,
    typer.Option(
        "--management-url",
        envvar="RABBITMQ_MANAGEMENT_URL",
        metavar="URL",
        help="http://user:password@host:15672. With it bindings are compared, and orphaned queues and policies"
        " are found; AMQP alone can't list them.",
    ),
]
RenamedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--renamed-from",
        metavar="NAME",
        help="A name that a consumer had before: says what was left in its queues. May be given several times.",
    ),
]

AppsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--app",
        metavar="MODULE[:NAME]",
        help="The module that declares consumers, as it is imported from here: worker_service.main, or"
        " worker_service.main:analytics for one object. May be given several times.",
    ),
]
BotOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bot",
        metavar="SERVICE_NAME",
        help="The service name of a bot with UPDATES=queue, for the queues of its updates. May be given several times.",
    ),
]

CONNECT_SECONDS: Final = 10.0

_MARKS: Final = {"missing": "+", "conflicting": "!", "extra": "?", "altered": "?", "orphaned": "?"}


@app.command("plan")
def plan(
    url: UrlOption,
    apps: AppsOption = None,
    bots: BotOption = None,
    management_url: ManagementOption = None,
    renamed_from: RenamedOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show what is missing and what differs; change nothing.

    Exit code 1 when something is missing or conflicting.
    """
    topology = _topology(apps or (), bots or ())
    made = plan_topology(topology, url, management_url=management_url, renamed_from=renamed_from or ())
    found = run(made, deadline_seconds=CONNECT_SECONDS)
    _show(found, notes=found.notes, as_json=as_json)


@app.command("apply")
def apply(
    url: UrlOption, apps: AppsOption = None, bots: BotOption = None, *, as_json: JsonOption = False
) -> None:
    """Declare what is missing; delete nothing.

    With a conflict nothing is declared at all.

    Exit code 1 when there is a conflict.
    """
    topology = _topology(apps or (), bots or ())
    before = run(apply_topology(topology, url), deadline_seconds=CONNECT_SECONDS)
    declared = before.of("missing")
    if as_json:
        print_json({"broker": before.broker, "declared": declared})
        return
    print_table([(_MARKS[each.state], each.kind, each.name) for each in declared])
    typer.echo(f"{before.broker}: {len(declared)} declared, {len(before.of('present'))} were present")


@app.command("verify")
def verify(
    url: UrlOption,
    apps: AppsOption = None,
    bots: BotOption = None,
    management_url: ManagementOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Check that all is there as declared, for CI.

    Without the management URL missing bindings can't be seen.

    Exit code 1 when something is missing or conflicting.
    """
    topology = _topology(apps or (), bots or ())
    made = plan_topology(topology, url, management_url=management_url)
    found = run(made, deadline_seconds=CONNECT_SECONDS)
    _show(found, notes=(), as_json=as_json)


def _topology(apps: Iterable[str], bots: Sequence[str]) -> Topology:
    """Return what the consumers of some modules and the queues of some bots need.

    Raises:
        typer.BadParameter: neither is given, or a module or a name is not one.
    """
    consumers = find_instances(apps, RobustConsumer)
    topology = topology_of(consumers)
    for name in bots:
        try:
            topology += update_topology(name)
        except DeclarationError as error:
            raise typer.BadParameter(str(error), param_hint="--bot") from None
    if not consumers and not bots:
        raise typer.BadParameter("names no module, and neither is there a --bot", param_hint="--app")
    return topology


def _show(plan: Plan, *, notes: Iterable[str], as_json: bool) -> NoReturn:
    """Print the plan, and end the process with its exit code."""
    if as_json:
        document = {"is_clean": plan.is_clean, "broker": plan.broker, "notes": plan.notes}
        print_json({**document, "findings": plan.findings})
    else:
        rows = [
            (_MARKS.get(each.state), each.kind, each.name, each.state, each.explanation)
            for each in plan.findings
        ]
        print_table([row for row in rows if row[0]])
        counts = Counter(finding.state for finding in plan.findings)
        typer.echo(f"{plan.broker}: {', '.join(f'{count} {state}' for state, count in counts.items())}")
        for note in notes:
            typer.echo(f"note: {note}")
    raise typer.Exit(0 if plan.is_clean else 1)
