"""Handing messages to the broker: written by tasks of ours, answered by the broker, with an end for every caller.

A caller waits until its deadline and no longer. Its write is not cancelled once it has begun, because that would leave
the channel in doubt (see `_bounded`); the caller learns that the outcome is unknown. A write that hasn't begun is taken
back, and the caller learns that nothing was sent.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from aiormq.exceptions import ChannelInvalidStateError, DeliveryError, PublishError
from pamqp.commands import Basic

from hybridkit.context import current
from hybridkit.errors import (
    BlockedError,
    HybridkitError,
    NackedError,
    NotConnectedError,
    OutcomeUnknownError,
)
from hybridkit.messaging._bounded import Background, is_cancelled
from hybridkit.messaging._channel import Lane, SupervisedChannel
from hybridkit.messaging._connection import BrokerConnection
from hybridkit.messaging._topology import declare, shared_topology
from hybridkit.observability import get_logger

__all__ = ["Outgoing", "Writer"]

PUBLISH_SECONDS: Final = 10.0
"""How long a publish may take where the context has no deadline."""
WINDOW: Final = 1000
"""How many messages may be unconfirmed at a time; the broker slows down beyond that anyway."""
PATIENCE_SECONDS: Final = 5.0
"""A channel on which an answer is missing for longer is in doubt."""
LINGER_SECONDS: Final = 30.0
"""How long a channel in doubt is kept for answers that are still to come."""
FLUSH_SECONDS: Final = 5.0

_PERSISTENT: Final = 2

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message on its way out; persistent and mandatory, like all of ours.

    Attributes:
        exchange: "" for the default exchange, where the routing key is the queue's name.
        routing_key: at most 255 bytes.
        body: UTF-8 JSON.
        headers: all of them.
        message_type: AMQP's `type`: the event type.
        service: AMQP's `app_id`.
    """

    exchange: str
    routing_key: str
    body: bytes
    headers: Mapping[str, Any]
    message_type: str | None = None
    service: str | None = None


@dataclass(slots=True, eq=False)
class _Write:
    """Where a message is on its way."""

    message: Outgoing
    blocked: bool = True  # until there is room for it, and again during an alarm
    sent_at: float | None = None
    lane: Lane | None = field(default=None, repr=False)


class Writer:
    """Publishes over a connection of its own, on one channel at a time.

    Args:
        connection: for nothing but publishing.
        name: for logs and errors.
    """

    def __init__(self, connection: BrokerConnection, *, name: str) -> None:
        self._connection = connection
        self._channel = SupervisedChannel(
            connection, name=name, confirms=True, prepare=_declare_shared, linger_seconds=LINGER_SECONDS
        )
        self._name = name
        self._window = asyncio.Semaphore(WINDOW)
        self._tasks = Background()
        self._unanswered: dict[_Write, None] = {}  # in the order in which they were sent
        self._is_open = False

    def __repr__(self) -> str:
        return f"Writer({self._name!r}, unanswered={len(self._unanswered)})"

    @property
    def is_ready(self) -> bool:
        """Whether a message would be sent now."""
        return self._channel.current is not None and not self._connection.is_blocked

    async def start(self) -> None:
        """Open the channel and declare what all services share; raises as `SupervisedChannel.start` does."""
        await self._channel.start()
        self._is_open = True

    async def stop(self) -> None:
        """Take no more messages, wait up to 5 s for the broker's answers, and close."""
        self._is_open = False
        if not await self._tasks.wait(seconds=FLUSH_SECONDS):
            _log.warning("publishes unanswered", name=self._name, count=len(self._tasks))
        lane = await self._channel.stop()
        if lane is not None:
            await lane.close()
        await self._tasks.cancel(seconds=FLUSH_SECONDS)

    def renew_topology(self, *, reason: str) -> None:
        """Go over to a new channel, which declares everything again."""
        if (lane := self._channel.current) is not None:
            self._channel.retire(lane, reason=reason)

    async def write(self, message: Outgoing) -> bool:
        """Publish it; whether a queue took it.

        Raises:
            NackedError: the broker gave it back.
            BlockedError: the broker has an alarm; nothing was sent.
            NotConnectedError: no connection; nothing was sent.
            OutcomeUnknownError: it was sent, and no answer came in time.
        """
        if not self._is_open:
            raise NotConnectedError(f"{self._name} is not open: enter it with `async with`; nothing was sent")
        context = current()
        context.check_deadline()
        remaining = context.remaining_seconds()
        write = _Write(message)
        task = self._tasks.start(self._write(write), name=f"publish {message.routing_key}")
        try:
            await asyncio.wait({task}, timeout=PUBLISH_SECONDS if remaining is None else remaining)
        except asyncio.CancelledError:
            self._take_back(write, task)
            raise
        if task.done() and not task.cancelled():
            return task.result()
        self._take_back(write, task)
        if write.lane is not None:
            self._suspect(write.lane)
        raise self._unfinished(write)

    async def _write(self, write: _Write) -> bool:
        """The part that callers can't cancel."""
        async with self._window:
            write.blocked = False
            while True:
                lane = await self._channel.lane()
                if lane.link.is_blocked:
                    write.blocked = True
                    await lane.link.writable()
                    write.blocked = False
                    continue
                try:
                    with lane:
                        return await self._publish(write, lane)
                except ChannelInvalidStateError:  # closed before anything was written: take the next one
                    continue

    async def _publish(self, write: _Write, lane: Lane) -> bool:
        message = write.message
        write.lane, write.sent_at = lane, time.monotonic()
        self._unanswered[write] = None
        try:
            # No timeout goes down: one that expires leaks the channel's lock, and the channel hangs and looks open.
            await lane.channel.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                properties=_properties(message),
                mandatory=True,
                wait=False,
            )
        except PublishError:
            return False
        except DeliveryError as error:
            raise NackedError(f"the broker gave {_what(message)} back (basic.nack)") from error
        except ChannelInvalidStateError:
            write.lane = write.sent_at = None
            raise
        except (
            Exception,
            asyncio.CancelledError,
        ) as error:  # whatever closed the channel, aiormq hands it to us here
            if is_cancelled():
                raise
            raise OutcomeUnknownError(
                f"the channel closed before the broker answered {_what(message)}: {type(error).__name__}: {error}"
            ) from error
        finally:
            del self._unanswered[write]
        return True

    def _unfinished(self, write: _Write) -> HybridkitError:
        """What is known about a message when its time is up, or the writer has stopped."""
        what = _what(write.message)
        if write.lane is not None:
            return OutcomeUnknownError(
                f"{what} was sent, and the broker did not answer in time; publish it again"
            )
        if write.blocked:
            why = f"a memory or disk alarm, or {WINDOW} unanswered publishes"
            return BlockedError(f"the broker takes no messages ({why}); {what} was not sent")
        return NotConnectedError(f"no channel to {self._connection.address}; {what} was not sent")

    def _take_back(self, write: _Write, task: asyncio.Task[bool]) -> None:
        """Cancel a write that hasn't begun: it waits for a channel, and nothing is in doubt."""
        if write.sent_at is None:
            task.cancel()

    def _suspect(self, lane: Lane) -> None:
        """Retire the channel if answers are missing for long, unless an alarm explains it."""
        oldest = next((write.sent_at or 0.0 for write in self._unanswered if write.lane is lane), None)
        if oldest is None or lane.link.is_blocked or time.monotonic() - oldest < PATIENCE_SECONDS:
            return
        self._channel.retire(lane, reason="the broker does not answer publishes")


async def _declare_shared(lane: Lane) -> None:
    await declare(shared_topology(), lane.channel)


def _properties(message: Outgoing) -> Basic.Properties:
    return Basic.Properties(
        content_type="application/json",
        headers=dict(message.headers),
        delivery_mode=_PERSISTENT,
        # Unique per attempt: the broker's returns are matched by it, and two messages that shared one would get each
        # other's verdict. The event's identity is in the body and in a header.
        message_id=uuid4().hex,
        message_type=message.message_type,
        app_id=message.service,
    )


def _what(message: Outgoing) -> str:
    return (
        f"{message.message_type or 'the message'} for {message.exchange or 'queue'!r} {message.routing_key!r}"
    )
