"""A local server: its URL, its origin, and the faults it can be made to suffer."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, NoReturn

from hybridkit.dev._processes._process import Process, wait_until
from hybridkit.errors import NotSupportedError, ServerStartError

Kind = Literal["postgres", "mongo", "redis", "rabbitmq", "mongo_transactions"]
KINDS: tuple[Kind, ...] = ("postgres", "mongo", "redis", "rabbitmq")
"""The kinds of the stack. `mongo_transactions` is a second MongoDB, for code that needs transactions."""


class Server:
    """A running server. This base class stands for a server that another process owns: its methods raise.

    All methods block; in async code, run the slow ones (`stop`, `restart`, `ctl`) by `asyncio.to_thread`.

    Attributes:
        kind: `postgres`, `mongo`, `redis`, `rabbitmq` or `mongo_transactions`.
        url: the URL for clients; `restart` does not change it.
        source: a description of the server and its origin in one line.
        is_real: False for a stand-in, which proves nothing about the real server.
        management_url: RabbitMQ's HTTP API with user and password, or None.
    """

    def __init__(
        self, kind: Kind, url: str, *, source: str, is_real: bool = True, management_url: str | None = None
    ) -> None:
        self.kind: Kind = kind
        self.url = url
        self.source = source
        self.is_real = is_real
        self.management_url = management_url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind!r}, source={self.source!r})"

    def stop(self) -> None:
        """End the server as its operator would: it may finish its work and write its data.

        Raises:
            NotSupportedError: another process owns the server.
        """
        self._refuse("be stopped")

    def kill(self) -> None:
        """Send SIGKILL to all its processes: nothing is finished or flushed.

        Raises:
            NotSupportedError: another process owns the server.
        """
        self._refuse("be killed")

    def freeze(self) -> None:
        """Send SIGSTOP to all its processes: connections stay open, and nothing answers.

        Raises:
            NotSupportedError: another process owns the server.
        """
        self._refuse("be frozen")

    def resume(self) -> None:
        """Send SIGCONT to all its processes, after `freeze`.

        Raises:
            NotSupportedError: another process owns the server.
        """
        self._refuse("be resumed")

    def restart(self) -> None:
        """Start the server again with the same port and data, after stopping it if it runs.

        Raises:
            NotSupportedError: another process owns the server.
            ServerStartError: the server did not come up again.
        """
        self._refuse("be restarted")

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl ARGUMENTS`, and return its output.

        Raises:
            NotSupportedError: the server is not RabbitMQ, or its cookie is unknown.
        """
        self._refuse(f"run `rabbitmqctl {' '.join(arguments)}`")

    def _refuse(self, what: str) -> NoReturn:
        raise NotSupportedError(f"the {self.kind} server ({self.source}) can't {what} from here")


class ProcessServer(Server):
    """A server made of child processes of this process."""

    _ready_within_seconds = 60.0

    def __init__(
        self, kind: Kind, url: str, *, source: str, is_real: bool = True, management_url: str | None = None
    ) -> None:
        super().__init__(kind, url, source=source, is_real=is_real, management_url=management_url)
        self._processes: Sequence[Process] = ()

    @property
    def processes(self) -> Sequence[Process]:
        """The processes, those that others need first."""
        return self._processes

    @property
    def is_running(self) -> bool:
        """Whether all processes run; those of a frozen server do."""
        return bool(self._processes) and all(process.is_running for process in self._processes)

    def start(self) -> None:
        """Start the processes, and wait until the server answers.

        Raises:
            ServerStartError: a process ended, or there was no answer in time; the message has the end of the log.
        """
        self._processes = self._spawn()
        wait_until(lambda: self._answers() or not self.is_running, timeout_seconds=self._ready_within_seconds)
        if self._answers():
            return
        logs = self.log_tail()
        for process in reversed(self._processes):
            process.end()
        raise ServerStartError(f"{self.kind} ({self.source}) did not come up; its log ends with:\n{logs}")

    def log_tail(self) -> str:
        """Return the end of the log of each of its processes."""
        return "\n".join(process.log_tail() for process in self._processes)

    def stop(self) -> None:
        """See `Server.stop`."""
        for process in reversed(self._processes):
            process.stop()

    def kill(self) -> None:
        """See `Server.kill`."""
        for process in reversed(self._processes):
            process.kill()

    def freeze(self) -> None:
        """See `Server.freeze`."""
        for process in reversed(self._processes):
            process.freeze()

    def resume(self) -> None:
        """See `Server.resume`."""
        for process in self._processes:
            process.resume()

    def restart(self) -> None:
        """See `Server.restart`."""
        self.stop()
        self.start()

    @abstractmethod
    def _spawn(self) -> Sequence[Process]:
        """Start the processes, those that others need first, and return them."""

    @abstractmethod
    def _answers(self) -> bool:
        """Return whether the server is ready for clients."""
