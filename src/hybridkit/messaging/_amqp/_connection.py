"""Connections to RabbitMQ: one for as long as it lasts, and one that is opened again whenever it is lost.

This drives aiormq, the layer beneath aio-pika, without aio-pika's robust connection: there a queue that can't be
restored makes the connection reconnect for ever, and a failed restore leaves a dead channel on a connection that says
it is open. Here a connection restores nothing; each `SupervisedChannel` looks after itself.
"""

import asyncio
import ssl
from collections.abc import Coroutine
from itertools import cycle
from types import TracebackType
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit, urlunsplit

import aiormq
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ConnectionClosed,
    ProbableAuthenticationError,
)
from yarl import URL

from hybridkit._tasks import TaskSet
from hybridkit.context import current
from hybridkit.errors import AccessDeniedError, NotConnectedError, UnavailableError
from hybridkit.messaging._amqp._affinity import LoopAffinity
from hybridkit.messaging._amqp._port import Port, Receiver
from hybridkit.messaging._amqp._socket import FrameProtocol, SocketFactory
from hybridkit.messaging._amqp._supervision import Supervised
from hybridkit.messaging._amqp._waiting import bounded
from hybridkit.observability import get_logger

HEARTBEAT_SECONDS: Final = 10
"""The heartbeat where the URL has none: aiormq gives up a silent connection after 33 s; by its default, after 183 s.

https://www.rabbitmq.com/docs/heartbeats
"""
START_SECONDS: Final = 30.0
REPLY_SECONDS: Final = 10.0
"""How long the broker may take to reply to a method before the connection is given up."""
CLOSE_SECONDS: Final = 5.0

LIBRARY_ERRORS: Final = (AMQPError, OSError, RuntimeError, ValueError)
"""The errors of aiormq when a connection or channel fails, and of `bounded`: `TimeoutError` is an `OSError`."""

_log = get_logger(__name__)


class BrokerConnection(Supervised["OpenConnection"]):
    """A connection to RabbitMQ that consumers share, opened again whenever it is lost.

    Publishers have a connection each, because a broker alarm blocks those that publish, and a blocked connection would
    hold up acknowledgements (https://www.rabbitmq.com/docs/alarms).

    Args:
        url: `amqp://user:password@host:port/vhost`, or `amqps://`, with `?cafile=…` for a certificate authority that
            the system doesn't know. Several brokers of a cluster, `amqp://user:password@a:5672,b,c/vhost`, are tried in
            turn.
        name: shown in the management interface, normally the service's name.
    """

    def __init__(self, url: str, *, name: str) -> None:
        super().__init__(f"{name} broker connection")
        self.name = name
        self._urls = _broker_urls(url)
        self._hosts = cycle(enumerate(self._urls, start=1))
        self._url = self._urls[0]  # the one that was tried last
        self._refusals = 0  # of the hosts tried last, one after another
        self._tasks = TaskSet()
        self._affinity: LoopAffinity | None = None

    def __repr__(self) -> str:
        return f"BrokerConnection({self.address!r}, name={self.name!r}, is_ready={self.is_ready})"

    async def __aenter__(self) -> Self:
        """Connect, trying again with growing pauses until the context's deadline, or for 30 s without one.

        Raises:
            NotConnectedError: the broker did not answer in that time.
            AccessDeniedError: the broker refuses the user or the password.
        """
        self._affinity = LoopAffinity()
        seconds = start_seconds()
        failure = f"no connection to the broker at {self.address} in {seconds:.1f} s"
        await self._start(seconds=seconds, failure=failure)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection, within 10 s whatever the broker does."""
        await self._stop()

    @property
    def address(self) -> str:
        """Host, port and virtual host, without the password: for logs and errors."""
        return ",".join(map(_host_and_port, self._urls)) + self._urls[0].path

    @property
    def is_ready(self) -> bool:
        """Whether the connection is open now."""
        return self._opened is not None

    @property
    def is_blocked(self) -> bool:
        """Whether the broker has stopped reading from the connection (`connection.blocked`: a memory or disk alarm)."""
        return self._opened is not None and self._opened.is_blocked

    async def opened(self) -> "OpenConnection":
        """Wait until the connection is open, and return it.

        Raises:
            MisuseError: the connection was opened in another process or event loop.
        """
        if self._affinity is not None:
            self._affinity.check(f"the broker connection {self.name!r}")
        return await super().opened()

    async def _stop(self) -> None:
        # In this order: calls into aiormq that are still pending end by themselves with their connection.
        if (connection := await super()._stop()) is not None:
            await connection.close()
        await self._tasks.cancel(seconds=CLOSE_SECONDS)

    async def _open(self) -> "OpenConnection":
        """Connect to the next host that can be had, up to the end of the list."""
        while True:
            number, self._url = next(self._hosts)
            try:
                connection = await OpenConnection.open(self._url, name=self.name, tasks=self._tasks)
            except Exception as error:
                self._refusals = 0 if _is_temporary(error) else self._refusals + 1
                if number == len(self._urls):
                    raise
                self._last_error = str(error)
                self._failed(error)
            else:
                self._refusals = 0
                return connection

    def _may_pass(self, error: Exception) -> bool:
        del (
            error
        )  # A certificate or a user can be wrong on one host of a cluster only: all of them have to refuse.
        return self._refusals < len(self._urls)

    def _failed(self, error: Exception) -> None:
        _log.warning("broker not connected", broker=_host_and_port(self._url), error=str(error))

    async def _live_through(self, opened: "OpenConnection") -> None:
        _log.info("broker connected", broker=_host_and_port(self._url))
        await opened.lost()

    def _lost(self, opened: "OpenConnection") -> None:
        del opened
        _log.warning("broker connection lost", broker=_host_and_port(self._url))


class OpenConnection:
    """One AMQP connection, for as long as it lasts.

    Attributes:
        protocol: reads and writes its frames.
    """

    def __init__(self, connection: aiormq.Connection, protocol: FrameProtocol, tasks: TaskSet) -> None:
        self.protocol = protocol
        self._connection = connection
        self._tasks = tasks

    def __repr__(self) -> str:
        return f"OpenConnection({self._connection})"

    @classmethod
    async def open(cls, url: URL, *, name: str, tasks: TaskSet) -> "OpenConnection":
        """Connect, within 10 s.

        Args:
            url: of one broker.
            name: shown in the management interface.
            tasks: keeps the calls into aiormq.

        Raises:
            NotConnectedError: there is no broker, or TLS or the virtual host is set up wrong.
            AccessDeniedError: the broker refuses the user or the password.
        """
        sockets = SocketFactory()
        connection = aiormq.Connection(
            url, transport_factory=sockets, client_properties={"connection_name": name}
        )
        try:
            await bounded(
                connection.connect(),  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType] - undecorated
                seconds=REPLY_SECONDS,
                tasks=tasks,
                name="connecting",
            )
        except (AuthenticationError, ProbableAuthenticationError) as error:
            raise AccessDeniedError(f"the broker refuses user {url.user!r}: {error}") from error
        except LIBRARY_ERRORS as error:
            sockets.abort()  # aiormq would wait for its peer to close it, and that may be frozen
            if "Connection.Close" in str(error):  # aiormq's words for a refused connection.open
                hint = f"does the virtual host {url.path!r} exist, and may user {url.user!r} use it?"
                raise NotConnectedError(f"the broker closed the connection: {hint}") from error
            hint = f" ({_tls_files(url)})" if _is_set_up_wrong(error) else ""
            raise NotConnectedError(f"{type(error).__name__}: {error}{hint}") from error
        except asyncio.CancelledError:
            sockets.abort()
            raise
        protocol = sockets.opened()
        protocol.frame_max = (
            connection.connection_tune.frame_max or protocol.frame_max
        )  # 0: the broker sets no limit
        return cls(connection, protocol, tasks)

    @property
    def is_blocked(self) -> bool:
        """Whether the broker has sent `connection.blocked`."""
        return not self.protocol.unblocked.is_set()

    async def writable(self) -> None:
        """Wait until the broker reads from this connection (at once if it does), or until the connection is lost."""
        if self.is_blocked:
            unblocked = self._tasks.start(
                self.protocol.unblocked.wait(), name="waiting for connection.unblocked"
            )
            await asyncio.wait({unblocked, self._closing()}, return_when=asyncio.FIRST_COMPLETED)
            unblocked.cancel()

    async def lost(self) -> None:
        """Wait until the connection has ended, for whatever reason."""
        await asyncio.wait({self._closing()})

    async def channel(self, *, confirms: bool) -> Channel:
        """Open a channel for aiormq's methods; messages and their acknowledgements go through a `port`.

        Raises:
            NotConnectedError: the broker did not reply, and the connection is given up; or it has no more channels.
        """
        opening = self._connection.channel(publisher_confirms=confirms)
        try:
            return cast("Channel", await self.ask(opening, name="opening a channel"))
        except AMQPError as error:
            raise NotConnectedError(f"opening a channel: {error}") from error

    def port(self, channel: Channel, receiver: Receiver) -> Port:
        """Send the messages of a channel to this receiver from now on, past aiormq."""
        return self.protocol.open_port(channel.number, receiver)

    async def ask[T](self, work: Coroutine[Any, Any, T], *, name: str, seconds: float | None = None) -> T:
        """Return the broker's reply to a method, or give up the connection where none comes in time.

        Args:
            work: a call into aiormq.
            name: for the error.
            seconds: how long to wait; 10 by default.

        Raises:
            NotConnectedError: no reply came in time, or the connection ended meanwhile.
            aiormq.exceptions.AMQPError: the broker refuses.
        """
        try:
            return await bounded(work, seconds=seconds or REPLY_SECONDS, tasks=self._tasks, name=name)
        except TimeoutError as error:
            # Replies come in order: with one missing, those to later methods would not come either.
            self.abort()
            raise NotConnectedError(str(error)) from error
        except (OSError, RuntimeError) as error:
            raise NotConnectedError(f"{name}: {error}") from error

    def abort(self) -> None:
        """Drop the connection without `connection.close`; what is pending on it fails."""
        self.protocol.abort()

    def _closing(self) -> asyncio.Future[Any]:
        return closing(self._connection)

    async def close(self) -> None:
        """Close the connection, and drop it where the broker doesn't reply within 5 s."""
        try:
            await bounded(
                self._connection.close(ConnectionClosed(200, "closed")),
                seconds=CLOSE_SECONDS,
                tasks=self._tasks,
                name="closing the connection",
            )
        except LIBRARY_ERRORS as error:
            _log.debug("broker connection not closed cleanly", error=str(error))
        finally:
            self.abort()


def closing(resource: AbstractChannel | AbstractConnection) -> asyncio.Future[Any]:
    """Return a future that is done when a connection or channel of aiormq has ended; each call makes a new one."""
    return resource.closing  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - `Future` is bare


def _broker_urls(url: str) -> list[URL]:
    """Split a URL into one for each host, with the default heartbeat where it has none."""
    split = urlsplit(url)
    user, at, hosts = split.netloc.rpartition("@")
    urls = [URL(urlunsplit(split._replace(netloc=f"{user}{at}{host}"))) for host in hosts.split(",")]
    return [
        each if "heartbeat" in each.query else each.update_query(heartbeat=HEARTBEAT_SECONDS) for each in urls
    ]


def _host_and_port(url: URL) -> str:
    return f"{url.host}:{url.port or _DEFAULT_PORTS.get(url.scheme, '')}"


def _is_temporary(error: Exception) -> bool:
    """Return whether another attempt can help at the start: not against a password or a certificate."""
    return isinstance(error, UnavailableError) and not _is_set_up_wrong(error.__cause__)


def _is_set_up_wrong(cause: BaseException | None) -> bool:
    """Return whether TLS can't work: a file is missing or no certificate, or isn't trusted, or the port has no TLS."""
    # The plain class is what OpenSSL's own refusals are; a connection that breaks has a class of its own.
    wrong = (ssl.SSLCertVerificationError, FileNotFoundError, PermissionError)
    return isinstance(cause, wrong) or type(cause) is ssl.SSLError


def _tls_files(url: URL) -> str:
    """Name the files that certificates come from, for an error."""
    files = [
        f"{name}={url.query[name]}"
        for name in ("cafile", "capath", "certfile", "keyfile")
        if name in url.query
    ]
    return ", ".join(files) or "the system's certificates"


_DEFAULT_PORTS: Final = {"amqp": 5672, "amqps": 5671}


def start_seconds(usual: float = START_SECONDS) -> float:
    """Return how long a start may take: the time until the context's deadline, or the usual time without one."""
    remaining = current().remaining_seconds()
    return usual if remaining is None else max(remaining, 0.0)
