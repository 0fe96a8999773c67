"""`hybridkit streams`: look after the logs of a data service's streams of events."""

from typing import Annotated, Final

import typer

from hybridkit._cli._common import JsonOption, print_json, print_table, run
from hybridkit._cli._data_services import is_mongo, rebase_streams
from hybridkit._cli._migrations import ModuleArgument, database_url_of, declaration_of

app: Final = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def streams() -> None:
    """Look after the logs of a data service's streams of events."""


@app.command("rebase")
def rebase(
    module: ModuleArgument,
    *,
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            envvar="DATABASE_URL",
            metavar="URL",
            help="postgresql://…; by default that of the service's settings. As an option its password is seen by"
            " whoever lists processes.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let readers of the logs go on after a restore into another cluster.

    The data service does the same at its start. Logs that need nothing are left as they are.
    """
    declared = declaration_of(module)
    if is_mongo(declared):
        raise typer.BadParameter(f"{module} is on MongoDB, which keeps no streams", param_hint="MODULE")
    raised = run(rebase_streams(declared, database_url_of(declared, database_url)))
    if as_json:
        print_json({"rebased": [{"stream": name, "epoch": epoch} for name, epoch in raised.items()]})
    elif raised:
        print_table([("rebased", name, f"epoch {epoch}") for name, epoch in raised.items()])
    else:
        typer.echo("every log is in order")
