"""Handing messages to the broker: many in one write, a window of unanswered ones, and an end for every caller.

A caller waits until its deadline and no longer. What it gave away isn't tied to it: a message that was written stays
numbered until the broker answers or the channel closes, so no caller that leaves can shift what the broker's numbers
mean; it learns that the outcome is unknown. A message that wasn't written is taken back, and the caller learns that
nothing was sent.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

from hybridkit.errors import (
    BlockedError,
    DeadlineExceededError,
    HybridkitError,
    MalformedPayloadError,
    NotConnectedError,
    OutcomeUnknownError,
    PayloadTooLargeError,
)
from hybridkit.messaging._amqp._channel import OpenChannel, SupervisedChannel
from hybridkit.messaging._amqp._connection import BrokerConnection
from hybridkit.messaging._amqp._frames import JSON_MEDIA_TYPE, Address, address, encode_fields, encode_table
from hybridkit.messaging._amqp._waiting import Home
from hybridkit.messaging._publishing._confirms import WINDOW, Confirms, Publish
from hybridkit.messaging._topology._declared import declare, shared_topology
from hybridkit.observability import get_logger

__all__ = ["Outgoing", "Writer"]

PUBLISH_SECONDS: Final = 10.0
"""How long a publish may take where the context has no deadline."""
PATIENCE_SECONDS: Final = 5.0
"""A channel on which an answer is missing for longer is in doubt."""
LINGER_SECONDS: Final = 30.0
"""How long a channel in doubt is kept for answers that are still to come."""
FLUSH_SECONDS: Final = 5.0
WRITE_AT: Final = 64
"""So many messages are written at once, without waiting for more: the broker works while we encode the next ones."""

_log = get_logger(__name__)


class Outgoing(NamedTuple):
    """A message on its way out; persistent and mandatory, like all of ours.

    Attributes:
        exchange: "" for the default exchange, where the routing key is the queue's name.
        routing_key: at most 255 bytes.
        body: as it goes out.
        headers: all of them.
        message_type: AMQP's `type`: the event type.
        service: AMQP's `app_id`.
        content_type: of the body.
    """

    exchange: str
    routing_key: str
    body: bytes
    headers: Mapping[str, Any]
    message_type: str | None = None
    service: str | None = None
    content_type: str = JSON_MEDIA_TYPE


class Writer:
    """Publishes over a connection of its own, on one channel at a time.

    Args:
        connection: for nothing but publishing.
        name: for logs and errors.
    """

    def __init__(self, connection: BrokerConnection, *, name: str) -> None:
        self._connection = connection
        self._channel = SupervisedChannel(
            connection,
            name=name,
            confirms=True,
            prepare=self._prepare,
            ready=self._ready,
            linger_seconds=LINGER_SECONDS,
        )
        self._name = name
        self._waiting: deque[Publish] = deque()
        self._confirms: Confirms | None = None  # of the current channel
        self._unfinished: set[Confirms] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._flushing: asyncio.Handle | None = None
        self._is_open = False

    def __repr__(self) -> str:
        return f"Writer({self._name!r}, {self._confirms}, waiting={len(self._waiting)})"

    @property
    def is_ready(self) -> bool:
        """Whether a message would be sent now."""
        return self._channel.current is not None and not self._connection.is_blocked

    async def start(self) -> None:
        """Open the channel and declare what all services share; raises as `SupervisedChannel.start` does."""
        self._home = Home()
        await self._channel.start()
        self._is_open = True

    async def stop(self) -> None:
        """Take no more messages, wait up to 5 s for the broker's answers, and close."""
        self._is_open = False
        answers = {publish.answer for publish in self._unanswered() if not publish.answer.done()}
        if answers and (await asyncio.wait(answers, timeout=FLUSH_SECONDS))[1]:
            _log.warning("publishes unanswered", name=self._name, count=len(list(self._unanswered())))
        for publish in self._waiting:
            publish.fail(self._not_sent(publish))
        self._waiting.clear()
        channel = await self._channel.stop()
        if channel is not None:
            await channel.close()
        for confirms in tuple(self._unfinished):  # of channels in doubt
            await confirms.channel.close()
        for handle in (self._timer, self._flushing):
            if handle is not None:
                handle.cancel()

    def renew_topology(self, *, reason: str) -> None:
        """Go over to a new channel, which declares everything again."""
        if (channel := self._channel.current) is not None:
            self._channel.retire(channel, reason=reason)

    @property
    def waiting(self) -> int:
        """How many messages are not sent yet."""
        return len(self._waiting)

    def submit(self, message: Outgoing, *, deadline: float | None) -> Publish:
        """Publish it: encode it, then `begin`.

        Raises:
            MalformedPayloadError: a name or a header that AMQP can't carry.
        """
        try:
            to = address(
                message.exchange,
                message.routing_key,
                message.message_type,
                message.service,
                message.content_type,
            )
            table = encode_table(encode_fields(message.headers))
        except (TypeError, ValueError) as error:
            raise MalformedPayloadError(f"AMQP can't carry the message: {error}") from error
        return self.begin(to, table, message.body, deadline=deadline)

    def begin(self, to: Address, table: bytes, body: bytes, *, deadline: float | None) -> Publish:
        """Publish what is encoded already.

        Args:
            to: by `address`.
            table: the headers, by `encode_table`.
            body: UTF-8 JSON.
            deadline: the `time.monotonic()` instant at which the answer is there at the latest; 10 s from now without.

        Returns:
            Its answer is whether a queue took it, or one of these errors: `NackedError` (the broker gave it back),
            `BlockedError` (the broker has an alarm; nothing was sent), `NotConnectedError` (nothing was sent),
            `OutcomeUnknownError` (it was sent, and no answer came in time), `PayloadTooLargeError` (its headers fit
            into no frame, and nothing was sent; or the broker takes no message of this size).

        Raises:
            NotConnectedError: the writer is not open.
            MisuseError: it was opened in another process or event loop; nothing was sent.
            DeadlineExceededError: the deadline has passed.
        """
        if not self._is_open:
            raise NotConnectedError(f"{self._name} is not open: enter it with `async with`; nothing was sent")
        self._home.check(self._name)
        now = time.monotonic()
        if deadline is None:
            deadline = now + PUBLISH_SECONDS
        elif deadline <= now:
            raise DeadlineExceededError(f"the deadline passed {now - deadline:.3f} s ago; nothing was sent")
        publish = Publish(to, table, body, deadline, asyncio.get_running_loop().create_future())
        self._waiting.append(publish)
        if self._timer is None or deadline < self._timer_at:
            self._wake_up_at(deadline)
        if len(self._waiting) >= WRITE_AT:
            self._flush()
        elif self._flushing is None:
            self._flush_soon()
        return publish

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def _flush_soon(self) -> None:
        """Write in the loop's next turn, with all that comes until then."""
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        confirms = self._confirms
        if confirms is None or not confirms.channel.is_writable:
            return  # `_ready` or the socket calls again
        now = time.monotonic()
        frames: list[bytes] = []
        while self._waiting and confirms.has_room:
            publish = self._waiting.popleft()
            if not publish.answer.done():
                try:
                    frames.append(confirms.frames(publish, now=now))
                except PayloadTooLargeError as error:
                    publish.fail(error)
        if frames:
            self._unfinished.add(confirms)
            confirms.port.send(b"".join(frames))

    async def _prepare(self, channel: OpenChannel) -> None:
        await declare(shared_topology(), channel.raw)

    def _ready(self, channel: OpenChannel | None) -> None:
        """Go over to a new channel, or have none."""
        self._confirms = None
        if channel is not None:
            self._confirms = Confirms(channel, self._told)
            channel.connection.wire.on_writable = self._flush_soon
            self._flush_soon()

    def _told(self, confirms: Confirms) -> None:
        """There were answers."""
        if not len(confirms):
            self._unfinished.discard(confirms)
        if self._waiting:
            self._flush_soon()

    def _unanswered(self) -> Iterator[Publish]:
        return chain(self._waiting, *self._unfinished)

    # ── the end of waiting ───────────────────────────────────────────────────────────────────────

    def _wake_up_at(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = asyncio.get_running_loop().call_later(deadline - time.monotonic(), self._expire)

    def _expire(self) -> None:
        """End what is over its deadline, and come again for the next."""
        self._timer = None
        now = time.monotonic()
        expired = False
        upcoming: float | None = None
        for publish in self._unanswered():
            if publish.answer.done():
                continue
            if publish.deadline <= now:
                expired = True
                publish.fail(self._not_sent(publish) if publish.sent_at is None else _unknown(publish))
            elif upcoming is None or publish.deadline < upcoming:
                upcoming = publish.deadline
        self._waiting = deque(publish for publish in self._waiting if not publish.answer.done())
        if upcoming is not None:
            self._wake_up_at(upcoming)
        if expired and self._confirms is not None:
            self._suspect(self._confirms, now)

    def _suspect(self, confirms: Confirms, now: float) -> None:
        """Retire the channel if answers are missing for long, unless an alarm explains it."""
        oldest = next(iter(confirms), None)
        if oldest is None or oldest.sent_at is None or confirms.channel.connection.is_blocked:
            return
        if now - oldest.sent_at >= PATIENCE_SECONDS:
            self._channel.retire(confirms.channel, reason="the broker does not answer publishes")

    def _not_sent(self, publish: Publish) -> HybridkitError:
        if self._confirms is None:
            return NotConnectedError(f"no channel to {self._connection.address}; {publish} was not sent")
        why = f"a memory or disk alarm, or {WINDOW} unanswered publishes"
        return BlockedError(f"the broker takes no messages ({why}); {publish} was not sent")


def _unknown(publish: Publish) -> HybridkitError:
    return OutcomeUnknownError(f"{publish} was sent, and the broker did not answer in time; publish it again")
