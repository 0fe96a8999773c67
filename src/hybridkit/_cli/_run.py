"""`hybridkit run`: all processes of an application on this machine, with the servers that they need."""

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer

from hybridkit._cli._common import import_app
from hybridkit.dev import Kind, LocalServers
from hybridkit.dev._applications import settings_class_of
from hybridkit.dev._processes._logs import readable
from hybridkit.errors import DeclarationError, MissingExtraError

try:
    from hybridkit.testing import Stack, StackService
    from hybridkit.testing._stack_environment import LOOPBACK, Members
except ModuleNotFoundError:
    raise MissingExtraError("hybridkit run", extra="testing") from None

START_SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.1
NAME_WIDTH: Final = 24

app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("run")
def run(
    modules: Annotated[
        list[str], typer.Argument(metavar="MODULE...", help="The processes, each as in python -m MODULE.")
    ],
    *,
    logs: Annotated[
        Path | None, typer.Option("--logs", metavar="DIRECTORY", help="Keep the logs there, as JSON.")
    ] = None,
) -> None:
    """Run the processes of an application for development, until Ctrl-C; print their logs.

    Servers that are not named in the environment (HYBRIDKIT_POSTGRES_URL and the like) are started, and end with the
    command, with their data. A bot talks to a fake Telegram, or with BOT_TOKEN in the environment to the real one.
    Exit code 1 when a process ends by itself.
    """
    services = [_declared(module) for module in modules]
    with tempfile.TemporaryDirectory(prefix="hybridkit-run-", ignore_cleanup_errors=True) as scratch:
        try:
            asyncio.run(_run(services, logs or Path(scratch)))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None  # it came while the processes were starting


def _declared(module: str) -> StackService:
    """Return a process on the port of its settings' default, or on another where that one is taken."""
    loaded = import_app(module, param_hint="MODULE")
    try:
        port = settings_class_of(loaded).model_fields["port"].default
    except DeclarationError as error:
        raise typer.BadParameter(str(error), param_hint="MODULE") from None
    environment = {"ENVIRONMENT": "development"}
    if "BOT_TOKEN" in os.environ:
        names = ("BOT_TOKEN", "TELEGRAM_API_URL")
        own = {name: os.environ[name] for name in names if name in os.environ}
        environment |= {"TELEGRAM_API_URL": "https://api.telegram.org", **own}
    return StackService(module=module, environment=environment, port=port if _is_free(port) else None)


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the processes do
        try:
            attempt.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


async def _run(services: Sequence[StackService], logs: Path) -> None:
    starting, stop = asyncio.current_task(), asyncio.Event()

    def interrupt() -> None:
        stop.set()
        if starting is not None:
            starting.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupt)
    members = Members(services, callers=())
    async with _servers(members) as urls:
        stack = Stack(*services, **urls, log_directory=logs, start_seconds=START_SECONDS)
        typer.echo(f"starting {', '.join(stack.names)} …")
        async with stack:
            starting = None
            for name in stack.names:
                typer.echo(f"{name:<{NAME_WIDTH}} {stack.url(name)}")
            if members.have_bot and "BOT_TOKEN" not in os.environ:
                typer.echo(f"{'fake Telegram':<{NAME_WIDTH}} {stack.telegram.url}/control/state")
            typer.echo("Ctrl-C stops them.\n")
            await _follow(stack, _Tails({name: logs / f"{name}.log" for name in stack.names}), stop)
            typer.echo("stopping …")


async def _follow(stack: Stack, tails: "_Tails", stop: asyncio.Event) -> None:
    while not stop.is_set():
        for line in tails.new_lines():
            typer.echo(line)
        stack.check_running()
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), POLL_SECONDS)


@asynccontextmanager
async def _servers(members: Members) -> AsyncGenerator[dict[str, Any]]:
    kinds = cast("Sequence[Kind]", sorted(members.servers))
    servers = await asyncio.to_thread(LocalServers().__enter__)
    try:
        started = await asyncio.to_thread(servers.start_all, kinds)
        for server in started:
            typer.echo(f"{server.kind:<{NAME_WIDTH}} {server.url}  ({server.source})")
        yield {server.kind: server.url for server in started}
    finally:
        await asyncio.to_thread(servers.close)


class _Tails:
    """The logs of several processes, read as they grow.

    Args:
        logs: the file of each process, by name.
    """

    def __init__(self, logs: Mapping[str, Path]) -> None:
        self._logs = logs
        self._read = dict.fromkeys(logs, 0)

    def new_lines(self) -> Iterator[str]:
        """Yield the complete lines that were added since the last call, with the name of the process before each."""
        for name, path in self._logs.items():
            with path.open("rb") as log:
                log.seek(self._read[name])
                complete = log.read().rpartition(b"\n")[0]
            if complete:
                self._read[name] += len(complete) + 1
                for line in complete.decode(errors="replace").splitlines():
                    yield f"{name:<{NAME_WIDTH}} {readable(line)}"
