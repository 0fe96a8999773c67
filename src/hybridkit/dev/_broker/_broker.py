"""The broker itself: its socket, its connections and its virtual hosts."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote

from hybridkit.dev._broker._connection import Connection
from hybridkit.dev._broker._fault_plan import FaultPlan
from hybridkit.dev._broker._faults import BrokerFaults
from hybridkit.dev._broker._virtual_host import VirtualHost
from hybridkit.errors import MisuseError, ServerStartError

_LOOPBACK: Final = "127.0.0.1"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """A queue of a `DevelopmentBroker` at one moment.

    Attributes:
        ready: the number of messages that wait to be delivered.
        unacknowledged: the number of messages that are delivered and not settled.
        consumers: the number of consumers.
    """

    ready: int
    unacknowledged: int
    consumers: int


class DevelopmentBroker:
    """An AMQP 0-9-1 broker in this event loop, for development and tests: loopback, in memory, faults on demand.

    It behaves as RabbitMQ 4.3 does; one test suite covers both. A virtual host is created when a client first
    connects to it. All messages are lost when the broker ends.

    ```text
    async with DevelopmentBroker() as broker:
        connection = await aio_pika.connect(broker.url)
        broker.faults.drop_confirms(1)
    ```

    Args:
        port: the port to listen on; 0 for any free one.
        users: the passwords of the users who may connect, by name. Without it every user may.

    Attributes:
        port: the port that the broker listens on, once it has been entered.
        faults: the faults that the broker can be made to show.
    """

    def __init__(self, *, port: int = 0, users: Mapping[str, str] | None = None) -> None:
        self.port = port
        self._fault_plan = FaultPlan()
        self.faults = BrokerFaults(self, self._fault_plan)
        self._users = users
        self._connections: dict[Connection, None] = {}
        self._virtual_hosts: dict[str, VirtualHost] = {}
        self._server: asyncio.Server | None = None
        self._is_empty = asyncio.Event()

    def __repr__(self) -> str:
        return f"DevelopmentBroker(port={self.port}, connections={len(self._connections)})"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self, self._fault_plan), _LOOPBACK, self.port
            )
        except OSError as error:
            raise ServerStartError(
                f"the development broker can't listen on port {self.port}: {error}"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]
        _log.warning(
            "the development broker is for development and tests only: what it holds is lost with it"
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()
        while self._connections:
            self._is_empty.clear()
            await self._is_empty.wait()
        for host in self._virtual_hosts.values():
            host.close()
        self._virtual_hosts.clear()

    @property
    def url(self) -> str:
        """The URL of the virtual host `/`."""
        return self.url_for("/")

    def url_for(self, virtual_host: str) -> str:
        """Return the URL of a virtual host.

        Raises:
            MisuseError: the broker has not been entered.
        """
        if not self._server:
            raise MisuseError(
                "DevelopmentBroker is an async context manager: enter it before asking for its URL"
            )
        user, password = next(iter(self._users.items())) if self._users else ("guest", "guest")
        path = "" if virtual_host == "/" else quote(virtual_host, safe="")
        return f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@{_LOOPBACK}:{self.port}/{path}"

    def queues(self, virtual_host: str = "/") -> Mapping[str, QueueState]:
        """Return the current state of each queue of a virtual host, by name."""
        return {
            name: QueueState(
                ready=queue.ready, unacknowledged=queue.unacknowledged, consumers=queue.consumers
            )
            for name, queue in self.virtual_host(virtual_host).queues.items()
        }

    @property
    def connections(self) -> list[str]:
        """The names that clients have given to their connections; empty for one without a name."""
        return [connection.name for connection in self._connections]

    # ── for connections and faults ───────────────────────────────────────────────────────────────

    @property
    def open_connections(self) -> list[Connection]:
        """The connections of all clients."""
        return list(self._connections)

    def virtual_host(self, name: str) -> VirtualHost:
        """Return the virtual host of that name, and create it when it does not exist."""
        if name not in self._virtual_hosts:
            self._virtual_hosts[name] = VirtualHost(name)
        return self._virtual_hosts[name]

    def authenticates(self, user: str, password: str) -> bool:
        """Return whether the user may connect with that password."""
        return self._users is None or self._users.get(user) == password

    def connected(self, connection: Connection) -> None:
        """Register a connection that has begun."""
        self._connections[connection] = None

    def disconnected(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._is_empty.set()
