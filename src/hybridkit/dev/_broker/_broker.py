"""The server: its socket, its connections, its virtual hosts."""

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
        ready: how many messages wait to be delivered.
        unacknowledged: how many are delivered and not settled.
        consumers: how many there are.
    """

    ready: int
    unacknowledged: int
    consumers: int


class DevelopmentBroker:
    """An AMQP 0-9-1 broker in this event loop, for development and tests: loopback, in memory, faults on demand.

    It behaves as RabbitMQ 4.3 does, and one suite of tests holds for both. Virtual hosts are there when somebody
    connects to them. What it holds is lost with it.

    ```text
    async with DevelopmentBroker() as broker:
        connection = await aio_pika.connect(broker.url)
        broker.faults.drop_confirms(1)
    ```

    Args:
        port: where it listens; 0 for any that is free.
        users: the passwords of those who may connect; without it anybody may.

    Attributes:
        port: where it listens, once it is entered.
        faults: what it can be made to get wrong.
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
        """Where clients reach its virtual host `/`."""
        return self.url_for("/")

    def url_for(self, virtual_host: str) -> str:
        """Where clients reach that virtual host.

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
        """Every queue of a virtual host by its name, as it is now."""
        return {
            name: QueueState(
                ready=queue.ready, unacknowledged=queue.unacknowledged, consumers=queue.consumers
            )
            for name, queue in self.virtual_host(virtual_host).queues.items()
        }

    @property
    def connections(self) -> list[str]:
        """What the clients call their connections; empty where one gives no name."""
        return [connection.name for connection in self._connections]

    # ── asked by connections and faults ──────────────────────────────────────────────────────────

    @property
    def open_connections(self) -> list[Connection]:
        """The connections themselves."""
        return list(self._connections)

    def virtual_host(self, name: str) -> VirtualHost:
        """The virtual host of that name, made when it is first asked for."""
        if name not in self._virtual_hosts:
            self._virtual_hosts[name] = VirtualHost(name)
        return self._virtual_hosts[name]

    def knows(self, user: str, password: str) -> bool:
        """Whether that user may connect."""
        return self._users is None or self._users.get(user) == password

    def connected(self, connection: Connection) -> None:
        """A client is there."""
        self._connections[connection] = None

    def disconnected(self, connection: Connection) -> None:
        """A client has gone."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._is_empty.set()
