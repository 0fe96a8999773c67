"""A local server as tests and developers handle it: its URL, what it is, and the faults it can be made to suffer."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, NoReturn

from hybridkit.dev._processes._process import Process, wait_until
from hybridkit.errors import NotSupportedError, ServerStartError

Kind = Literal["postgres", "mongo", "redis", "rabbitmq", "mongo_transactions"]
KINDS: tuple[Kind, ...] = ("postgres", "mongo", "redis", "rabbitmq")
"""Those of the stack. `mongo_transactions` is a second MongoDB, for what needs transactions."""


class Server:
    """A running server; in this form one that somebody else runs, so that nothing can be done to it.

    All methods block; in async code, give the slow ones (`stop`, `restart`, `ctl`) to `asyncio.to_thread`.

    Attributes:
        kind: `postgres`, `mongo`, `redis`, `rabbitmq` or `mongo_transactions`.
        url: where clients reach it; the same over `restart`.
        source: one line that says what it is and where it comes from.
        is_real: False for a stand-in, which proves nothing about the server that it stands in for.
        management_url: RabbitMQ's HTTP API, with the user in it, where there is one.
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
        """End it as its operator would: it may finish what it is doing and write its data.

        Raises:
            NotSupportedError: It is not ours to stop.
        """
        self._refuse("be stopped")

    def kill(self) -> None:
        """`kill -9`: nothing is finished, nothing is flushed.

        Raises:
            NotSupportedError: It is not ours to kill.
        """
        self._refuse("be killed")

    def freeze(self) -> None:
        """SIGSTOP for all its processes: connections stay open and nothing answers.

        Raises:
            NotSupportedError: It is not ours to freeze.
        """
        self._refuse("be frozen")

    def resume(self) -> None:
        """SIGCONT after `freeze`.

        Raises:
            NotSupportedError: It is not ours.
        """
        self._refuse("be resumed")

    def restart(self) -> None:
        """Start it again on the same port with the same data, stopping it first where it runs.

        Raises:
            NotSupportedError: It is not ours to restart.
            ServerStartError: It did not come up again.
        """
        self._refuse("be restarted")

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl ARGUMENTS` prints, for alarms, deletions and closed connections.

        Raises:
            NotSupportedError: It is no RabbitMQ, or none whose cookie is known.
        """
        self._refuse(f"run `rabbitmqctl {' '.join(arguments)}`")

    def _refuse(self, what: str) -> NoReturn:
        raise NotSupportedError(f"the {self.kind} server ({self.source}) can't {what} from here")


class ProcessServer(Server):
    """A server made of our own child processes."""

    _ready_within_seconds = 60.0

    def __init__(
        self, kind: Kind, url: str, *, source: str, is_real: bool = True, management_url: str | None = None
    ) -> None:
        super().__init__(kind, url, source=source, is_real=is_real, management_url=management_url)
        self._processes: Sequence[Process] = ()

    @property
    def processes(self) -> Sequence[Process]:
        """Its processes, the one that others need first."""
        return self._processes

    @property
    def is_running(self) -> bool:
        """Whether all its processes run; a frozen server does."""
        return bool(self._processes) and all(process.is_running for process in self._processes)

    def start(self) -> None:
        """Start its processes and wait until it answers.

        Raises:
            ServerStartError: A process ended, or there was no answer in time; the end of its log is in the message.
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
        """Start the processes, the one that others need first."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it is ready for clients."""
