"""Channels: one for as long as it is open, and one that is opened and prepared again whenever it is lost.

The work that makes a channel useful (declaring queues, consuming) is done again on each new one. A channel in doubt is
retired: nothing new starts on it, what is pending on it may end, and then it is closed.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from aiormq.channel import Channel
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelClosed,
    ChannelLockedResource,
    ChannelPreconditionFailed,
)

from hybridkit._tasks import TaskSet
from hybridkit.errors import (
    AccessDeniedError,
    NotConnectedError,
    TopologyError,
    UnavailableError,
)
from hybridkit.messaging._amqp._connection import (
    LIBRARY_ERRORS,
    REPLY_SECONDS,
    BrokerConnection,
    OpenConnection,
    closing,
    start_seconds,
)
from hybridkit.messaging._amqp._port import Port, Receiver
from hybridkit.messaging._amqp._supervision import Supervised
from hybridkit.messaging._amqp._waiting import bounded
from hybridkit.observability import get_logger

PREPARE_SECONDS: Final = 30.0
"""How long declaring a few queues may take: RabbitMQ makes a quorum queue in milliseconds, or in a second when busy."""

_log = get_logger(__name__)


class OpenChannel:
    """One channel for as long as it is open, and how many still use it.

    Args:
        raw: aiormq's channel.
        connection: the connection it is on.
        linger_seconds: how long a retired channel waits for its users; None waits for all of them.
    """

    def __init__(self, raw: Channel, connection: OpenConnection, *, linger_seconds: float | None) -> None:
        self.raw = raw
        self.connection = connection
        self.port: Port | None = None
        self.retired = asyncio.Event()
        self._linger_seconds = linger_seconds
        self._users = 0
        self._tasks = TaskSet()
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"OpenChannel({self.raw}, users={self._users}, is_open={self.is_open})"

    def __enter__(self) -> None:
        """Use the channel: while it has users, a retired one stays open for what they still have to send on it."""
        self._users += 1

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if self.retired.is_set() and not self._users:
            self.close()

    @classmethod
    async def open(
        cls, connection: OpenConnection, *, confirms: bool = False, linger_seconds: float | None = None
    ) -> "OpenChannel":
        """Open a channel, for publishing only with `confirms`; raises as `OpenConnection.channel` does."""
        return cls(await connection.channel(confirms=confirms), connection, linger_seconds=linger_seconds)

    @property
    def is_open(self) -> bool:
        """Whether acknowledgements and publishes can still be sent on the channel."""
        # The port hears of `channel.close` and of a lost connection before aiormq acts on them, in a task of its own.
        return not self.raw.is_closed and (self.port is None or self.port.is_open)

    @property
    def is_writable(self) -> bool:
        """Whether a new message should be sent on the channel, and would leave soon."""
        return self.is_open and not self.retired.is_set() and self.connection.protocol.is_writable

    def open_port(self, receiver: Receiver) -> Port:
        """Send the messages of this channel to the receiver from now on."""
        self.port = self.connection.port(self.raw, receiver)
        return self.port

    def retire(self) -> None:
        """Start nothing new on the channel, and close it when it has no users any more."""
        if self.retired.is_set():
            return
        self.retired.set()
        # Closing is what puts unacknowledged deliveries back into their queue, and confirms of this channel only come
        # on it (https://www.rabbitmq.com/docs/confirms#automatic-requeueing): so it waits for them.
        if not self._users:
            self.close()
        elif self._linger_seconds is not None:
            asyncio.get_running_loop().call_later(self._linger_seconds, self.close)

    def close(self) -> asyncio.Task[None]:
        """Close the channel in a task, once; the broker puts unacknowledged deliveries back into their queue."""
        if self._closing is None:
            # First the port: a delivery that is on its way must not begin on a channel that can't acknowledge it.
            if self.port is not None:
                self.port.close("closed by us")
            self._closing = self._tasks.start(self._close(), name="closing a channel")
        return self._closing

    async def _close(self) -> None:
        if self.raw.is_closed:
            return
        goodbye = self.raw.close(ChannelClosed(200, "closed"))
        try:
            await bounded(goodbye, seconds=REPLY_SECONDS, tasks=self._tasks, name="closing a channel")
        except LIBRARY_ERRORS as error:
            _log.debug("channel not closed cleanly", error=str(error))


type Step = Callable[[OpenChannel], Coroutine[Any, Any, None]]
"""Work to be done on a channel."""


class SupervisedChannel(Supervised[OpenChannel]):
    """Keeps one channel open and prepared for its work.

    Args:
        connection: the connection on which channels are opened.
        name: for logs and errors.
        confirms: whether the channel publishes.
        prepare: called with each new channel, which counts as open when it returns.
        ready: called with each prepared channel, and with None when it is lost or retired.
        probe: called every `probe_seconds` to ask the broker whether the channel still does its work; an error retires
            the channel.
        probe_seconds: the time between two probes.
        linger_seconds: see `OpenChannel`.
        prepare_seconds: how long `prepare` may take before the connection is given up.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        *,
        name: str,
        confirms: bool,
        prepare: Step,
        ready: Callable[[OpenChannel | None], None] | None = None,
        probe: Step | None = None,
        probe_seconds: float | None = None,
        linger_seconds: float | None = None,
        prepare_seconds: float = PREPARE_SECONDS,
    ) -> None:
        super().__init__(f"{name} channel")
        self._connection = connection
        self._name = name
        self._confirms = confirms
        self._prepare = prepare
        self._ready = ready
        self._probe = probe
        self._probe_seconds = probe_seconds
        self._linger_seconds = linger_seconds
        self._prepare_seconds = prepare_seconds

    def __repr__(self) -> str:
        return f"SupervisedChannel({self._name!r}, {self._opened})"

    @property
    def current(self) -> OpenChannel | None:
        """The prepared channel, while it is open."""
        channel = self._opened
        return channel if channel is not None and channel.is_open else None

    @property
    def is_kept(self) -> bool:
        """Whether there will be another channel if this one is lost."""
        return self._supervision is not None and not self._supervision.done()

    async def start(self) -> None:
        """Prepare a first channel, and keep one from then on.

        Raises:
            NotConnectedError: no channel was ready by the context's deadline, or in `prepare_seconds` without one.
            TopologyError: the broker has an exchange or queue with other properties.
            AccessDeniedError: the user may not do what `prepare` does.
        """
        seconds = start_seconds(self._prepare_seconds)
        await self._start(seconds=seconds, failure=f"{self._name} is not up after {seconds:.1f} s")

    async def stop(self) -> OpenChannel | None:
        """Open no more channels, and return the last one, which the caller has to close."""
        return await self._stop()

    def retire(self, channel: OpenChannel, *, reason: str) -> None:
        """Replace a channel by a new one."""
        if not channel.retired.is_set():
            _log.warning("channel retired", name=self._name, reason=reason)
            channel.retire()

    async def _open(self) -> OpenChannel:
        connection = await self._connection.opened()
        # A blocked broker reads nothing: `prepare` would run into its time limit, and end a connection that works.
        # https://www.rabbitmq.com/docs/connection-blocked
        await connection.writable()
        channel = await OpenChannel.open(
            connection, confirms=self._confirms, linger_seconds=self._linger_seconds
        )
        try:
            await connection.ask(
                self._prepared(channel), name=f"preparing {self._name}", seconds=self._prepare_seconds
            )
        except BaseException:  # also when the supervision ends: a forgotten channel may consume already
            channel.close()
            raise
        return channel

    async def _prepared(self, channel: OpenChannel) -> None:
        try:
            await self._prepare(channel)
        except (
            ChannelPreconditionFailed,
            ChannelLockedResource,
        ) as error:  # 406, or 405 for an exclusive queue
            raise TopologyError(f"{self._name}: the broker has it with other properties: {error}") from error
        except ChannelAccessRefused as error:
            raise AccessDeniedError(f"{self._name}: {error}") from error
        except AMQPError as error:
            raise NotConnectedError(f"{self._name}: {type(error).__name__}: {error}") from error

    def _may_pass(self, error: Exception) -> bool:
        return isinstance(error, UnavailableError)

    def _failed(self, error: Exception) -> None:
        _log.warning("channel not open", name=self._name, error=str(error))

    async def _live_through(self, opened: OpenChannel) -> None:
        if self._ready:
            self._ready(opened)
        # The broker closes a channel over many things: a deleted queue, a consumer timeout, a declare that doesn't fit.
        # https://www.rabbitmq.com/docs/channels#error-handling
        closed = closing(opened.raw)
        retired = asyncio.ensure_future(opened.retired.wait())
        seconds = self._probe_seconds if self._probe else None
        try:
            while not closed.done() and not retired.done():
                await asyncio.wait({closed, retired}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if self._probe and not closed.done() and not retired.done():
                    await self._check(opened, self._probe)
        finally:
            retired.cancel()

    def _has_ended(self, opened: OpenChannel) -> bool:
        return not opened.is_open

    def _lost(self, opened: OpenChannel) -> None:
        if self._ready:
            self._ready(None)
        if opened.is_open:  # it was retired, and its users may finish
            opened.retire()
        else:
            _log.warning("channel lost", name=self._name)

    async def _check(self, channel: OpenChannel, probe: Step) -> None:
        try:
            await channel.connection.ask(probe(channel), name=f"probing {self._name}")
        except (NotConnectedError, *LIBRARY_ERRORS) as error:
            self.retire(channel, reason=f"the probe says: {error}")
