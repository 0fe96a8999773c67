"""A channel that is there again after whatever closed it: the common half of publisher and consumer.

What makes a channel useful (declared queues, a consumer) is done again on each new one. A channel in doubt is retired:
nothing new starts on it, what is still pending on it may end, and then it is closed.
"""

import asyncio
import time
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

from hybridkit.errors import (
    AccessDeniedError,
    NotConnectedError,
    TopologyError,
    UnavailableError,
)
from hybridkit.messaging._amqp._connection import (
    ANSWER_SECONDS,
    LIBRARY_ERRORS,
    STABLE_SECONDS,
    BrokerConnection,
    OpenConnection,
    closing,
    start_seconds,
)
from hybridkit.messaging._amqp._port import Port, Receiver
from hybridkit.messaging._amqp._waiting import Background, Backoff, bounded
from hybridkit.observability import get_logger

__all__ = ["PREPARE_SECONDS", "OpenChannel", "SupervisedChannel"]

PREPARE_SECONDS: Final = 30.0
"""How long declaring some things may take: a broker makes a quorum queue in milliseconds, or in a second when busy."""

_log = get_logger(__name__)


class OpenChannel:
    """One channel for as long as it is open, and how many still use it.

    Args:
        raw: aiormq's channel.
        connection: the connection it is on.
        linger_seconds: how long a retired channel waits for those that need it; None waits for all of them.
    """

    def __init__(self, raw: Channel, connection: OpenConnection, *, linger_seconds: float | None) -> None:
        self.raw = raw
        self.connection = connection
        self.port: Port | None = None
        self.retired = asyncio.Event()
        self._linger_seconds = linger_seconds
        self._users = 0
        self._background = Background()
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"OpenChannel({self.raw}, users={self._users}, is_open={self.is_open})"

    def __enter__(self) -> None:
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
        """Whether acknowledgements and publishes can still be sent on it."""
        return not self.raw.is_closed and (self.port is None or self.port.is_open)

    @property
    def is_writable(self) -> bool:
        """Whether something new should be sent on it, and would leave soon."""
        return self.is_open and not self.retired.is_set() and self.connection.wire.is_writable

    def open_port(self, receiver: Receiver) -> Port:
        """Have the messages of this channel from now on."""
        self.port = self.connection.port(self.raw, receiver)
        return self.port

    def retire(self) -> None:
        """Start nothing new on it, and close it when nobody needs it any more."""
        if self.retired.is_set():
            return
        self.retired.set()
        if not self._users:
            self.close()
        elif self._linger_seconds is not None:
            asyncio.get_running_loop().call_later(self._linger_seconds, self.close)

    def close(self) -> asyncio.Task[None]:
        """Close it in the background, once; what is unacknowledged goes back to its queue."""
        if self._closing is None:
            if self.port is not None:
                self.port.close("closed by us")
            self._closing = self._background.start(self._close(), name="closing a channel")
        return self._closing

    async def _close(self) -> None:
        if self.raw.is_closed:
            return
        goodbye = self.raw.close(ChannelClosed(200, "closed"))
        try:
            await bounded(
                goodbye, seconds=ANSWER_SECONDS, background=self._background, name="closing a channel"
            )
        except LIBRARY_ERRORS as error:
            _log.debug("channel not closed cleanly", error=str(error))


type Step = Callable[[OpenChannel], Coroutine[Any, Any, None]]
"""Something to be done on a channel."""


class SupervisedChannel:
    """Keeps one channel prepared for its work.

    Args:
        connection: on which it is opened.
        name: for logs and errors.
        confirms: whether it publishes.
        prepare: what has to be done on each new channel.
        ready: told of each prepared channel, and with None when it is lost or retired.
        probe: asks the broker, every now and then, whether the channel still does its work; raises if not.
        probe_seconds: how often.
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
        self._connection = connection
        self._name = name
        self._confirms = confirms
        self._prepare = prepare
        self._ready = ready
        self._probe = probe
        self._probe_seconds = probe_seconds
        self._linger_seconds = linger_seconds
        self._prepare_seconds = prepare_seconds
        self._opened: OpenChannel | None = None
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._last_error = ""

    def __repr__(self) -> str:
        return f"SupervisedChannel({self._name!r}, {self._opened})"

    @property
    def current(self) -> OpenChannel | None:
        """The prepared channel, if there is one now."""
        channel = self._opened
        return channel if channel is not None and channel.is_open else None

    @property
    def is_kept(self) -> bool:
        """Whether there will be another channel if this one is lost."""
        return self._keeper is not None and not self._keeper.done()

    async def opened(self) -> OpenChannel:
        """The prepared channel, as soon as there is one."""
        while (channel := self.current) is None:
            self._up.clear()
            await self._up.wait()
        return channel

    async def start(self) -> None:
        """Prepare a first channel, and keep one from then on.

        Raises:
            NotConnectedError: not until the context's deadline, or for `prepare_seconds` without one.
            TopologyError: the broker has something with other properties.
            AccessDeniedError: the user may not do this.
        """
        seconds = start_seconds(self._prepare_seconds)
        first = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(first), name=f"{self._name} channel")
        try:
            await asyncio.wait({first}, timeout=seconds)
        except asyncio.CancelledError:
            await self.stop()
            raise
        if first.done() and first.exception() is None:
            return
        await self.stop()
        if first.done():
            first.result()
        raise NotConnectedError(
            f"{self._name} is not up after {seconds:.1f} s: {self._last_error or 'no answer'}"
        )

    async def stop(self) -> OpenChannel | None:
        """Open no more channels; the last one is still open and the caller's to close."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})
        channel, self._opened = self._opened, None
        return channel

    def retire(self, channel: OpenChannel, *, reason: str) -> None:
        """Replace that channel by a new one."""
        if not channel.retired.is_set():
            _log.warning("channel retired", name=self._name, reason=reason)
            channel.retire()

    async def _keep(self, first: asyncio.Future[None]) -> None:
        backoff = Backoff()
        while True:
            try:
                channel = await self._open()
            except Exception as error:  # noqa: BLE001 - whatever spoils one channel must not end the supervision
                self._last_error = str(error)
                if not (first.done() or isinstance(error, UnavailableError)):
                    first.set_exception(error)
                    return
                _log.warning("channel not open", name=self._name, error=self._last_error)
            else:
                if not first.done():
                    first.set_result(None)
                if await self._live_through(channel) >= STABLE_SECONDS:
                    backoff.reset()
            await asyncio.sleep(backoff.next_seconds())

    async def _open(self) -> OpenChannel:
        connection = await self._connection.opened()
        await connection.writable()
        channel = await OpenChannel.open(
            connection, confirms=self._confirms, linger_seconds=self._linger_seconds
        )
        try:
            await connection.ask(
                self._prepared(channel), name=f"preparing {self._name}", seconds=self._prepare_seconds
            )
        except BaseException:
            channel.close()
            raise
        return channel

    async def _prepared(self, channel: OpenChannel) -> None:
        try:
            await self._prepare(channel)
        except (ChannelPreconditionFailed, ChannelLockedResource) as error:
            raise TopologyError(f"{self._name}: the broker has it with other properties: {error}") from error
        except ChannelAccessRefused as error:
            raise AccessDeniedError(f"{self._name}: {error}") from error
        except AMQPError as error:
            raise NotConnectedError(f"{self._name}: {type(error).__name__}: {error}") from error

    async def _live_through(self, channel: OpenChannel) -> float:
        """Have a prepared channel until it is lost or retired; the seconds for which it lasted."""
        opened = time.monotonic()
        self._opened = channel
        self._up.set()
        if self._ready:
            self._ready(channel)
        closed = closing(channel.raw)
        retired = asyncio.ensure_future(channel.retired.wait())
        seconds = self._probe_seconds if self._probe else None
        try:
            while not closed.done() and not retired.done():
                await asyncio.wait({closed, retired}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if self._probe and not closed.done() and not retired.done():
                    await self._check(channel, self._probe)
        finally:
            retired.cancel()
        self._opened = None
        if self._ready:
            self._ready(None)
        if channel.is_open:
            channel.retire()
        else:
            _log.warning("channel lost", name=self._name)
        return time.monotonic() - opened

    async def _check(self, channel: OpenChannel, probe: Step) -> None:
        try:
            await channel.connection.ask(probe(channel), name=f"probing {self._name}")
        except (NotConnectedError, *LIBRARY_ERRORS) as error:
            self.retire(channel, reason=f"the probe says: {error}")
