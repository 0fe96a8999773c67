"""`hybridkit migrate` and `hybridkit revision`: bring a database to the declarations of a data service."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from hybridkit._cli._common import JsonOption, checked_url, import_app, print_json, print_table, run
from hybridkit._cli._data_services import (
    Pending,
    declarations_in,
    is_mongo,
    migrate_to,
    pending_in,
    statements_for,
    write_revision_of,
)
from hybridkit.dataservice._service import DataServiceDeclaration
from hybridkit.dev import LocalServers
from hybridkit.settings import MongoUrl, PostgresUrl

WAIT_SECONDS: Final = 60.0

migrate_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)
revision_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)

ModuleArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODULE",
        help="The data service's module, as it is imported from here: db_postgres_service.main.",
    ),
]


@migrate_app.command("migrate")
def migrate(
    module: ModuleArgument,
    *,
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            envvar="DATABASE_URL",
            metavar="URL",
            help="postgresql://… or mongodb://…; by default that of the service's settings. As an option its password"
            " is seen by whoever lists processes.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only show what is missing; exit code 1 when something is.")
    ] = False,
    sql: Annotated[
        bool, typer.Option("--sql", help="Only print the SQL of what is missing; change nothing.")
    ] = False,
    wait_seconds: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to wait for another process that migrates.")
    ] = WAIT_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Bring a database to the revisions of a data service, or on MongoDB to its indexes.

    The service does the same at its start. One process does it, under a lock; others wait. Exit code 1 when --check
    finds something missing, or a revision fails.
    """
    declared = declaration_of(module)
    if sql and (is_mongo(declared) or check or as_json):
        raise typer.BadParameter("it is for PostgreSQL, without --check and --json", param_hint="--sql")
    url = database_url_of(declared, database_url)
    if sql:
        typer.echo(run(statements_for(declared, url)), nl=False)
        return
    pending = run(pending_in(declared, url))
    if pending and not check:
        run(migrate_to(declared, url, wait_seconds=wait_seconds))
    _show(pending, state="pending" if check else "done", as_json=as_json)
    raise typer.Exit(1 if check and pending else 0)


@revision_app.command("revision")
def revision(
    module: ModuleArgument,
    *,
    message: Annotated[
        str, typer.Option("--message", "-m", help="The purpose, in a few words; part of the file's name.")
    ],
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            metavar="URL",
            help="A database at the newest revision to compare with; by default a new one, on a local server.",
        ),
    ] = None,
) -> None:
    """Write the Alembic revision from the revisions so far to the declared tables, for people to review.

    It prints the path of the file. Nothing is written where nothing differs.
    """
    declared = declaration_of(module)
    if is_mongo(declared):
        raise typer.BadParameter(
            f"{module} is on MongoDB, where only indexes are made: hybridkit migrate", param_hint="MODULE"
        )
    if database_url is not None:
        written = run(write_revision_of(declared, checked_url(database_url, PostgresUrl), message))
    else:
        with LocalServers() as servers:
            new = servers.start("postgres", private=True).url
            run(migrate_to(declared, new, wait_seconds=WAIT_SECONDS))
            written = run(write_revision_of(declared, new, message))
    typer.echo("nothing differs: no revision is written" if written is None else str(written))


def declaration_of(module: str) -> DataServiceDeclaration:
    """Return the only data service that a module declares.

    Raises:
        typer.BadParameter: the module has none, or several.
    """
    found = declarations_in(import_app(module, param_hint="MODULE"))
    if len(found) != 1:
        raise typer.BadParameter(
            f"{module} should have one application of create_data_service, and has {len(found) or 'none'}",
            param_hint="MODULE",
        )
    return found[0]


def database_url_of(declared: DataServiceDeclaration, given: str | None) -> str:
    """Return the database's URL as it was given, or by the service's settings."""
    if given is not None:
        return checked_url(given, MongoUrl if is_mongo(declared) else PostgresUrl)
    settings: Any = declared.settings_class()
    return str(settings.database_url.get_secret_value())


def _show(pending: Sequence[Pending], *, state: str, as_json: bool) -> None:
    if as_json:
        rows = [{"kind": each.kind, "name": each.name, "purpose": each.purpose} for each in pending]
        print_json({state: rows})
    elif pending:
        print_table([(state, each.kind, each.name, each.purpose) for each in pending])
    else:
        typer.echo("nothing is missing")
