"""Redis as a child process: the real one, or fakeredis' TCP server in its own Python process."""

import os
import sys
from collections.abc import Sequence

from hybridkit.dev._processes._process import Owner, Process
from hybridkit.dev._processes._runs import Run
from hybridkit.dev._servers._probes import LOOPBACK, free_port, redis_answers
from hybridkit.dev._servers._programs import Program
from hybridkit.dev._servers._server import ProcessServer
from hybridkit.dev._servers._server_root import HostRoot

DATABASES = 1024


class RedisServer(ProcessServer):
    """A Redis that appends each command to its file before it answers."""

    def __init__(self, program: Program, run: Run, *, source: str) -> None:
        self.port = free_port()
        super().__init__("redis", f"redis://{LOOPBACK}:{self.port}/0", source=source)
        self._program = program
        self._run = run
        self._folder = run.folder("redis", owner=program.root.owner("redis"))

    def _spawn(self) -> Sequence[Process]:
        options = {
            "port": str(self.port),
            "bind": LOOPBACK,
            "dir": str(self._folder),
            "databases": str(DATABASES),
            "appendonly": "yes",
            # Written before the answer and flushed by the kernel, which survives kill -9.
            "appendfsync": "no",
            "save": "",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        command = self._program.root.wrap([str(self._program.path), *words], user="redis")
        return [
            self._run.spawn(command, name="redis", folder=self._folder, env=self._program.root.environment)
        ]

    def _answers(self) -> bool:
        return redis_answers(self.port)


class FakeRedisServer(ProcessServer):
    """fakeredis behind a socket; in memory, so empty after a restart."""

    def __init__(self, run: Run, *, source: str) -> None:
        self.port = free_port()
        super().__init__("redis", f"redis://{LOOPBACK}:{self.port}/0", source=source, is_real=False)
        self._run = run
        self._folder = run.folder("redis", owner=Owner())

    def _spawn(self) -> Sequence[Process]:
        argv = HostRoot().wrap(
            [sys.executable, "-m", "hybridkit.dev._servers._fake_redis", str(self.port)], user=None
        )
        return [self._run.spawn(argv, name="redis", folder=self._folder, env=os.environ)]

    def _answers(self) -> bool:
        return redis_answers(self.port)
