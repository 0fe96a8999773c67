"""MongoDB as a child process: mongod, FerretDB on its own PostgreSQL, SecantusDB, or neosqlite's wire server."""

import os
import sys
from collections.abc import Sequence

from hybridkit.dev._processes._process import Owner, Process
from hybridkit.dev._processes._runs import Run
from hybridkit.dev._servers._postgres import PostgresServer
from hybridkit.dev._servers._probes import LOOPBACK, free_port, mongo_answers
from hybridkit.dev._servers._programs import Program
from hybridkit.dev._servers._server import Kind, ProcessServer
from hybridkit.dev._servers._server_root import HostRoot


class _MongoServer(ProcessServer):
    def __init__(self, *, source: str, is_real: bool = True, kind: Kind = "mongo") -> None:
        self.port = free_port()
        super().__init__(kind, f"mongodb://{LOOPBACK}:{self.port}/", source=source, is_real=is_real)

    def _answers(self) -> bool:
        return mongo_answers(self.port)


class MongodServer(_MongoServer):
    """A stand-alone mongod, without transactions, which need a replica set."""

    def __init__(self, program: Program, run: Run, *, source: str) -> None:
        super().__init__(source=source)
        self._program = program
        self._run = run
        self._folder = run.folder("mongo", owner=program.root.owner("mongodb"))

    def _spawn(self) -> Sequence[Process]:
        where = ["--bind_ip", LOOPBACK, "--port", str(self.port), "--dbpath", str(self._folder)]
        command = self._program.root.wrap([str(self._program.path), *where], user="mongodb")
        return [
            self._run.spawn(command, name="mongod", folder=self._folder, env=self._program.root.environment)
        ]


class FerretServer(_MongoServer):
    """FerretDB in front of a PostgreSQL with the DocumentDB extension; faults affect both."""

    def __init__(self, program: Program, postgres: Program, run: Run, *, source: str) -> None:
        super().__init__(source=source)
        self._program = program
        self._run = run
        self._folder = run.folder("ferretdb", owner=program.root.owner("postgres"))
        settings = {
            "shared_preload_libraries": "pg_cron,pg_documentdb_core,pg_documentdb",
            "cron.database_name": "postgres",
            "cron.host": LOOPBACK,
        }
        self._postgres = PostgresServer(postgres, run, source=str(postgres), settings=settings)

    def initialise(self) -> None:
        """Create the PostgreSQL cluster and its extension; this takes a second.

        Raises:
            ServerStartError: the cluster could not be created or did not start.
        """
        self._postgres.initialise()
        self._postgres.start()
        create = "create extension documentdb cascade"
        self._postgres.run_tool("psql", "--quiet", "--command", create, self._postgres.url)
        self._postgres.stop()

    def _spawn(self) -> Sequence[Process]:
        self._postgres.start()
        argv = [
            str(self._program.path),
            f"-postgresql-url={self._postgres.url}",
            f"-listen-addr={LOOPBACK}:{self.port}",
            f"-state-dir={self._folder}",
        ]
        command = self._program.root.wrap(argv, user="postgres")
        ferretdb = self._run.spawn(
            command, name="ferretdb", folder=self._folder, env=self._program.root.environment
        )
        return [*self._postgres.processes, ferretdb]


class SecantusServer(_MongoServer):
    """SecantusDB, a replica set of one with transactions, on MongoDB's own storage engine.

    It is licensed under the GPL: it runs as a process of its own, and nothing of it is imported. Its fail points
    (`configureFailPoint`) are enabled.
    """

    def __init__(self, run: Run, *, source: str) -> None:
        super().__init__(source=source, kind="mongo_transactions")
        self._run = run
        self._folder = run.folder("mongo_transactions", owner=Owner())

    def _spawn(self) -> Sequence[Process]:
        options = ["--host", LOOPBACK, "--port", str(self.port), "--storage-path", str(self._folder / "data")]
        argv = [sys.executable, "-c", "from secantus.cli import main; main()", *options]
        argv += ["--sync-on-commit", "--enable-test-commands", "--log-level", "WARNING"]
        command = HostRoot().wrap(argv, user=None)
        return [self._run.spawn(command, name="secantusdb", folder=self._folder, env=os.environ)]


class NeosqliteServer(_MongoServer):
    """neosqlite's wire server, for demonstrations; `docs/how-to/run-local-servers.md` lists its gaps."""

    def __init__(self, run: Run, *, source: str) -> None:
        super().__init__(source=source, is_real=False)
        self._run = run
        self._folder = run.folder("mongo", owner=Owner())

    def _spawn(self) -> Sequence[Process]:
        options = {
            "--host": LOOPBACK,
            "--port": str(self.port),
            "--db": str(self._folder / "data.db"),
            # The default is in /tmp, where a second server would find it and refuse to start.
            "--pid-file": str(self._folder / "pid"),
            "--log-file": str(self._folder / "server.log"),
        }
        words = [word for option in options.items() for word in option]
        argv = [sys.executable, "-c", "from nx_27017.nx_27017 import main; main()", *words]
        command = HostRoot().wrap(argv, user=None)
        return [self._run.spawn(command, name="neosqlite", folder=self._folder, env=os.environ)]
