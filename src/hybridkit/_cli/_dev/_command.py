"""The command `hybridkit dev`: its options, and the services that they choose."""

import asyncio
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from hybridkit._cli._common import import_app
from hybridkit._cli._manifest import FILE_NAME, find_manifest, load_manifest
from hybridkit.dev._applications import settings_class_of
from hybridkit.errors import DeclarationError, MissingExtraError

try:
    from hybridkit._cli._dev._stack import DevStack
    from hybridkit.testing import StackService
    from hybridkit.testing._stack_environment import LOOPBACK, Member, Members
except ModuleNotFoundError:
    raise MissingExtraError("hybridkit dev", extra="testing") from None

app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("dev")
def dev(
    modules: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODULE]...",
            help="The processes, each as in python -m MODULE, in place of those of hybridkit.toml.",
            show_default=False,
        ),
    ] = None,
    *,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Start this service, and not the others."),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="NAME", help="Do not start this service.")
    ] = None,
    urls: Annotated[
        list[str] | None,
        typer.Option(
            "--url", metavar="KIND=URL", help="Use a running server: postgres, mongo, redis, rabbitmq."
        ),
    ] = None,
    port_offset: Annotated[
        int, typer.Option("--port-offset", metavar="N", help="Add N to the port of each service.")
    ] = 0,
    reload: Annotated[
        bool, typer.Option("--reload/--no-reload", help="Restart a service when its files change.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check", help="End when all are ready; exit code 1 when one can't start.")
    ] = False,
    logs: Annotated[
        Path | None, typer.Option("--logs", metavar="DIRECTORY", help="Keep the logs there, as JSON.")
    ] = None,
) -> None:
    """Run all processes of a project while it is developed, until Ctrl-C.

    Starts the servers that no URL is given for, then the data services, then the others, each when what it needs is
    ready; prints one stream of their logs. A process whose files change is started again, and one that ends too, after
    a pause. A bot talks to a fake Telegram, or with BOT_TOKEN in the environment to the real one. Ctrl-C stops them in
    order, a second one at once.
    """
    declared = _declared(modules or [], port_offset=port_offset)
    members = Members(_chosen(declared, only=only or [], without=without or []), callers=())
    with tempfile.TemporaryDirectory(prefix="hybridkit-dev-", ignore_cleanup_errors=True) as scratch:
        stack = DevStack(
            members,
            server_urls=_server_urls(urls or []),
            log_directory=logs or Path(scratch),
            keeps_logs=logs is not None,
        )
        asyncio.run(stack.check() if check else stack.run(reload=reload))


# ── the services ─────────────────────────────────────────────────────────────────────────────────


def _declared(modules: Sequence[str], *, port_offset: int) -> list[StackService]:
    if modules:
        return [_service(module, port_offset=port_offset) for module in modules]
    path = find_manifest(Path.cwd())
    if path is None:
        raise typer.BadParameter(
            f"there is no {FILE_NAME} here or above: write one, or name the modules", param_hint="MODULE"
        )
    os.chdir(path.parent)
    try:
        manifest = load_manifest(path)
    except DeclarationError as error:
        raise typer.BadParameter(str(error), param_hint=FILE_NAME) from None
    return [
        _service(module, name, manifest.services[name].environment, port_offset=port_offset)
        for name, module in manifest.modules().items()
    ]


def _service(
    module: str, name: str | None = None, environment: Mapping[str, str] | None = None, *, port_offset: int
) -> StackService:
    loaded = import_app(module, param_hint="MODULE")
    try:
        port = settings_class_of(loaded).model_fields["port"].default + port_offset
    except DeclarationError as error:
        raise typer.BadParameter(str(error), param_hint="MODULE") from None
    own = {"ENVIRONMENT": "development", **(environment or {})}
    if "BOT_TOKEN" in os.environ:
        names = ("BOT_TOKEN", "TELEGRAM_API_URL")
        given = {each: os.environ[each] for each in names if each in os.environ}
        own |= {"TELEGRAM_API_URL": "https://api.telegram.org", **given}
    return StackService(module=module, name=name, environment=own, port=port if _is_free(port) else None)


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the processes do
        try:
            attempt.bind((LOOPBACK, port))
        except (OSError, OverflowError):
            return False
        return True


def _chosen(
    declared: Sequence[StackService], *, only: Sequence[str], without: Sequence[str]
) -> list[StackService]:
    names = {member.name: member.declared for member in map(Member, declared)}
    for asked in (*only, *without):
        if asked not in names:
            raise typer.BadParameter(f"there is no service {asked}, only {', '.join(names)}")
    return [service for name, service in names.items() if name in (only or names) and name not in without]


def _server_urls(options: Sequence[str]) -> dict[str, str]:
    known = ("postgres", "mongo", "redis", "rabbitmq")
    found: dict[str, str] = {}
    for option in options:
        kind, _, url = option.partition("=")
        if kind not in known or not url:
            raise typer.BadParameter(f"{option} should be KIND=URL, KIND one of {', '.join(known)}")
        found[f"HYBRIDKIT_{kind.upper()}_URL"] = url
    return found
