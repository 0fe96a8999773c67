"""PostgreSQL as a child process, open to loopback without a password."""

import signal
from collections.abc import Mapping, Sequence

from hybridkit.dev._processes._process import Process
from hybridkit.dev._processes._runs import Run
from hybridkit.dev._servers._probes import LOOPBACK, free_port, postgres_answers
from hybridkit.dev._servers._programs import Program
from hybridkit.dev._servers._server import ProcessServer

_SETTINGS: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    # These two matter after a power cut only: what a killed process has written stays with the kernel.
    "fsync": "off",
    "full_page_writes": "off",
    # mmap is in the data directory; in /dev/shm it would outlive a kill -9.
    "dynamic_shared_memory_type": "mmap",
}


class PostgresServer(ProcessServer):
    """A PostgreSQL cluster with its own data directory."""

    def __init__(
        self, program: Program, run: Run, *, source: str, settings: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        super().__init__("postgres", f"postgresql://postgres@{LOOPBACK}:{self.port}/postgres", source=source)
        self._program = program
        self._run = run
        self._folder = run.folder("postgres", owner=program.root.owner("postgres"))
        self._data = self._folder / "data"
        self._settings = {**_SETTINGS, **(settings or {})}

    def initialise(self) -> None:
        """Create the cluster by initdb; this takes half a second.

        Raises:
            ServerStartError: initdb failed; the message has its output.
        """
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        if self._program.version_numbers >= (16,):
            # The default is the machine's best, which would outlive a kill -9.
            options.append("--set=dynamic_shared_memory_type=mmap")
        self.run_tool("initdb", f"--pgdata={self._data}", *options)

    def run_tool(self, name: str, *arguments: str) -> None:
        """Run another program of the same installation as the same user, and wait until it has ended.

        Raises:
            ServerStartError: the program failed; the message has its output.
        """
        argv = [self._program.beside(name), *arguments]
        command = self._program.root.wrap(argv, user="postgres", die_with_owner="INT")
        self._run.check_call(command, name=name, folder=self._folder, env=self._program.root.environment)

    def _spawn(self) -> Sequence[Process]:
        options = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        argv = [str(self._program.path), "-D", str(self._data), "-p", str(self.port), *options]
        # SIGQUIT ends it at once, as kill -9 does, but removes its shared memory.
        command = self._program.root.wrap(argv, user="postgres", die_with_owner="QUIT")
        process = self._run.spawn(
            command,
            name="postgres",
            folder=self._folder,
            env=self._program.root.environment,
            stop_signal=signal.SIGINT,
            end_signal=signal.SIGQUIT,
        )
        return [process]

    def _answers(self) -> bool:
        return postgres_answers(self.port)


def start_postgres(program: Program, run: Run, *, source: str) -> PostgresServer:
    """Create and start a new cluster, and wait until it answers."""
    server = PostgresServer(program, run, source=source)
    server.initialise()
    server.start()
    return server
