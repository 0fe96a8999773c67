"""The processes of a project while it is developed, with their servers: started in order, watched, stopped in order."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, cast

from hybridkit._cli._dev._console import Console, Tails
from hybridkit._cli._dev._processes import DevProcess, State
from hybridkit._cli._dev._watching import Sources
from hybridkit.dev import Kind, LocalServers, Supervisor
from hybridkit.testing import FakeTelegram
from hybridkit.testing._stack_environment import Addresses, Members

START_SECONDS: Final = 120.0
TAIL_SECONDS: Final = 0.1
WATCH_SECONDS: Final = 0.5


class DevStack:
    """Runs the processes of a project, each of them until it is stopped.

    Args:
        members: the processes.
        server_urls: variables such as `HYBRIDKIT_POSTGRES_URL`, for servers that run already.
        log_directory: the folder that gets the log of each process.
        keeps_logs: whether logs are kept whole, however large they grow.
    """

    def __init__(
        self, members: Members, *, server_urls: Mapping[str, str], log_directory: Path, keeps_logs: bool
    ) -> None:
        self._members = members
        self._server_urls = server_urls
        self._log_directory = log_directory
        self._console = Console(list(members.by_name))
        self._tails = Tails(
            {name: log_directory / f"{name}.log" for name in members.by_name}, is_emptied=not keeps_logs
        )
        self._telegram = FakeTelegram()
        self._processes: dict[str, DevProcess] = {}

    def __repr__(self) -> str:
        return f"DevStack({', '.join(self._members.by_name)})"

    async def run(self, *, reload: bool) -> None:
        """Run until Ctrl-C or SIGTERM, then stop in order; a second one kills what still runs.

        Args:
            reload: whether a process is started again when its files change.
        """
        await self._until_interrupted(self._develop(reload=reload))

    async def check(self) -> None:
        """Start everything, and stop it in order as soon as all processes are ready.

        Raises:
            ServerStartError: a process has ended; the message has the end of its log.
        """
        await self._until_interrupted(self._check())

    async def _until_interrupted(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name="hybridkit dev")
        is_interrupted = False

        def interrupt() -> None:
            nonlocal is_interrupted
            if not is_interrupted:
                is_interrupted = True
                task.cancel()
                return
            for process in self._processes.values():
                process.kill()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupt)
        try:
            await task
        except asyncio.CancelledError:
            if not is_interrupted:
                raise

    # ── its two uses ─────────────────────────────────────────────────────────────────────────────

    async def _develop(self, *, reload: bool) -> None:
        async with self._open(), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._start())
            tasks.create_task(self._watch() if reload else _forever())

    async def _check(self) -> None:
        async with self._open() as supervisor:
            starting = asyncio.create_task(self._start())
            ended = [asyncio.create_task(each.until(State.ENDED)) for each in self._processes.values()]
            await asyncio.wait([starting, *ended], return_when=asyncio.FIRST_COMPLETED)
            for task in (starting, *ended):
                task.cancel()
            supervisor.check_running()
            self._tell("", "all are ready")

    # ── its parts ────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[Supervisor]:
        """Open everything around the processes, and stop these at the end, the last one started first."""
        async with AsyncExitStack() as opened:
            addresses = await self._open_servers(opened)
            supervisor = await opened.enter_async_context(Supervisor(self._log_directory))
            for member in self._members.all:
                service = self._members.service(member, addresses, start_seconds=START_SECONDS)
                self._processes[member.name] = DevProcess(service, supervisor, self._tell)
            await opened.enter_async_context(self._printing())
            try:
                yield supervisor
            finally:
                self._tell("", "stopping; Ctrl-C again to kill what still runs")
                for process in reversed(self._processes.values()):
                    await process.stop()

    async def _open_servers(self, opened: AsyncExitStack) -> Addresses:
        if self._members.have_bot:
            await opened.enter_async_context(self._telegram)
        servers = await asyncio.to_thread(
            LocalServers(environment={**os.environ, **self._server_urls}).__enter__
        )
        opened.push_async_callback(asyncio.to_thread, servers.close)
        kinds = cast("Sequence[Kind]", sorted(self._members.servers))
        started = {server.kind: server for server in await asyncio.to_thread(servers.start_all, kinds)}
        for kind, server in started.items():
            self._tell(kind, f"{server.url}  ({server.source})")
        for member in self._members.all:
            self._tell(member.name, member.url)
        if self._members.have_bot and "BOT_TOKEN" not in os.environ:
            self._tell("fake Telegram", f"{self._telegram.url}/control/state")
        urls = {kind: server.url for kind, server in started.items()}
        return Addresses(
            redis=urls.get("redis"),
            rabbitmq=urls.get("rabbitmq"),
            postgres=urls.get("postgres"),
            mongo=urls.get("mongo"),
            fake_postgres_service=None,
            fake_mongo_service=None,
            telegram=self._telegram.url,
            telegram_token=self._telegram.token,
        )

    async def _start(self) -> None:
        """Start the data services, and when all are ready the others."""
        for group in (self._members.data_services, self._members.business_services):
            processes = [self._processes[member.name] for member in group]
            for process in processes:
                await process.start()
            for process in processes:
                await process.until(State.READY, State.STOPPED)

    @asynccontextmanager
    async def _printing(self) -> AsyncGenerator[None]:
        """Print what the processes log, inside the block and until its end."""

        async def follow() -> None:
            while True:
                self._print_logs()
                await asyncio.sleep(TAIL_SECONDS)

        task = asyncio.create_task(follow(), name="hybridkit dev logs")
        try:
            yield
        finally:
            task.cancel()
            self._print_logs()

    def _tell(self, name: str, words: str) -> None:
        self._print_logs()  # the lines that led to it
        self._console.tell(name, words)

    def _print_logs(self) -> None:
        for name, line in self._tails.new_lines():
            self._console.log(name, line)

    async def _watch(self) -> None:
        """Start a process again when files of it have changed, and no further ones since the last look."""
        here = Path.cwd()
        roots = [folder for each in sys.path if (folder := Path(each or here)).is_relative_to(here)]
        sources = {
            member.name: Sources(member.declared.module, roots, also=[here / ".env"])
            for member in self._members.all
        }
        changed: dict[str, Path] = {}
        async with asyncio.TaskGroup() as restarts:
            while True:
                await asyncio.sleep(WATCH_SECONDS)
                for name, each in sources.items():
                    if found := await asyncio.to_thread(each.look):
                        changed.setdefault(name, found[0])
                    elif path := changed.pop(name, None):
                        self._tell(name, f"starts again, as {_relative(path, here)} has changed")
                        restarts.create_task(self._processes[name].restart())


async def _forever() -> None:
    await asyncio.Event().wait()


def _relative(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path
