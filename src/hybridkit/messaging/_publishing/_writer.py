"""Writing messages to the broker: many in one write, a window of unconfirmed ones, and a deadline for every caller.

A caller waits until its deadline and no longer. Its message isn't tied to it: a message that was written keeps its
number until the broker confirms it or the channel closes, so a caller that leaves can't shift what the broker's numbers
mean; it learns that the outcome is unknown. A message that wasn't written is taken back, and the caller learns that
nothing was sent.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

from hybridkit.context import bound
from hybridkit.errors import (
    BlockedError,
    DeadlinePassedError,
    HybridkitError,
    MalformedPayloadError,
    NotConnectedError,
    OutcomeUnknownError,
    UnroutableError,
)
from hybridkit.messaging._amqp._affinity import LoopAffinity
from hybridkit.messaging._amqp._channel import OpenChannel, SupervisedChannel
from hybridkit.messaging._amqp._connection import BrokerConnection
from hybridkit.messaging._amqp._frames import (
    JSON_MEDIA_TYPE,
    FrameTemplate,
    encode_fields,
    encode_table,
    frame_template,
)
from hybridkit.messaging._publishing._confirms import WINDOW, AwaitedPublish, Confirms, PendingPublish
from hybridkit.messaging._topology._declared import declare, shared_topology
from hybridkit.observability import get_logger

PUBLISH_SECONDS: Final = 10.0
"""The time limit of a publish where the context has no deadline."""
PATIENCE_SECONDS: Final = 5.0
"""A channel on which a confirm is missing for longer is in doubt."""
LINGER_SECONDS: Final = 30.0
"""How long a channel in doubt stays open for confirms that are still to come."""
FLUSH_SECONDS: Final = 5.0
"""How long `stop` waits for confirms."""
WRITE_AT: Final = 64
"""This many waiting messages are written without waiting for more: the broker works while the next ones are encoded."""

_log = get_logger(__name__)


class OutgoingMessage(NamedTuple):
    """A message to publish as it is; persistent and mandatory.

    Attributes:
        exchange: "" for the default exchange, where the routing key is the queue's name.
        routing_key: at most 255 bytes.
        body: the bytes of the message.
        headers: all headers that it gets.
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
    """Publishes on one supervised channel at a time.

    Args:
        connection: used for publishing only, as a broker alarm blocks all of it.
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
        self._waiting: deque[PendingPublish] = deque()
        self._confirms: Confirms | None = None  # of the current channel
        self._unfinished: set[Confirms] = set()  # with unconfirmed publishes, also on retired channels
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
        self._affinity = LoopAffinity()
        await self._channel.start()
        self._is_open = True

    async def stop(self) -> None:
        """Take no more messages, wait up to 5 s for confirms, and close."""
        self._is_open = False
        unconfirmed = {pending.ended for pending in self._unconfirmed() if not pending.is_settled}
        if unconfirmed and (await asyncio.wait(unconfirmed, timeout=FLUSH_SECONDS))[1]:
            _log.warning("publishes unanswered", name=self._name, count=len(list(self._unconfirmed())))
        for pending in self._waiting:
            pending.fail(self._not_sent(pending))
        self._waiting.clear()
        # Closing a channel fails what is still unconfirmed on it, so that no caller waits for ever.
        channel = await self._channel.stop()
        if channel is not None:
            await channel.close()
        for confirms in tuple(self._unfinished):  # of channels in doubt
            await confirms.channel.close()
        for handle in (self._timer, self._flushing):
            if handle is not None:
                handle.cancel()

    async def forward(self, message: OutgoingMessage) -> None:
        """Publish a message as it is, until the context's deadline, or for 10 s without one.

        Raises:
            UnroutableError: no queue takes it.
            HybridkitError: see `submit` and `begin`.
        """
        context = bound()
        pending = self.submit(message, deadline=context.deadline if context else None)
        if not await pending.confirmation:
            raise unroutable(pending.template)

    def renew_topology(self, *, reason: str) -> None:
        """Declare the shared exchanges and queues again, on a new channel."""
        if (channel := self._channel.current) is not None:
            self._channel.retire(channel, reason=reason)

    @property
    def waiting(self) -> int:
        """The number of messages that are not written yet."""
        return len(self._waiting)

    def submit(self, message: OutgoingMessage, *, deadline: float | None) -> AwaitedPublish:
        """Encode a message, then `begin`.

        Raises:
            MalformedPayloadError: AMQP can't carry a name or a header of it.
        """
        try:
            template = frame_template(
                message.exchange,
                message.routing_key,
                message.message_type,
                message.service,
                message.content_type,
            )
            table = encode_table(encode_fields(message.headers))
        except (TypeError, ValueError) as error:
            raise MalformedPayloadError(f"AMQP can't carry the message: {error}") from error
        return self.begin(template, table, message.body, deadline=deadline)

    def begin(
        self, template: FrameTemplate, table: bytes, body: bytes, *, deadline: float | None
    ) -> AwaitedPublish:
        """Publish an encoded message, without waiting for its confirm.

        Args:
            template: by `frame_template`.
            table: the headers, by `encode_table`.
            body: UTF-8 JSON.
            deadline: the `time.monotonic()` instant by which there is an outcome; None for 10 s from now.

        Returns:
            The publish, whose `confirmation` says whether a queue took the message, or raises one of these errors:
            `NackedError` (the broker gave it back), `BlockedError` (the broker has an alarm; nothing was sent),
            `NotConnectedError` (nothing was sent), `OutcomeUnknownError` (it was sent, and no confirm came in time),
            `PayloadTooLargeError` (its headers fit into no frame, and nothing was sent; or the broker takes no message
            of this size).

        Raises:
            NotConnectedError: the writer is not open.
            MisuseError: the writer was opened in another process or event loop; nothing was sent.
            DeadlinePassedError: the deadline has passed.
        """
        pending = AwaitedPublish(
            template, table, body, self.admit(deadline), asyncio.get_running_loop().create_future()
        )
        self.add(pending)
        return pending

    def admit(self, deadline: float | None) -> float:
        """Return the deadline of publishes that begin now; raises as `begin` does.

        Args:
            deadline: as for `begin`.
        """
        if not self._is_open:
            raise NotConnectedError(f"{self._name} is not open: enter it with `async with`; nothing was sent")
        self._affinity.check(self._name)
        now = time.monotonic()
        if deadline is None:
            return now + PUBLISH_SECONDS
        if deadline <= now:
            raise DeadlinePassedError(f"the deadline passed {now - deadline:.3f} s ago; nothing was sent")
        return deadline

    def add(self, pending: PendingPublish) -> None:
        """Publish a message that was admitted, in this turn of the event loop."""
        self._waiting.append(pending)
        # One timer for all publishes, at the earliest deadline: one for each would cost more than encoding it.
        if self._timer is None or pending.deadline < self._timer_at:
            self._wake_up_at(pending.deadline)
        if len(self._waiting) >= WRITE_AT:
            self._flush()
        elif self._flushing is None:
            self._flush_soon()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def _flush_soon(self) -> None:
        """Write in the next iteration of the event loop, together with what comes until then."""
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        confirms = self._confirms
        if confirms is None or not confirms.channel.is_writable:
            return  # `_ready` calls again for a new channel, and the socket when it can be written to
        frames = confirms.frames(self._waiting, now=time.monotonic())
        if frames:
            self._unfinished.add(confirms)
            confirms.port.send(frames)

    async def _prepare(self, channel: OpenChannel) -> None:
        await declare(shared_topology(), channel.raw)

    def _ready(self, channel: OpenChannel | None) -> None:
        """Go over to a new channel, or to none."""
        self._confirms = None
        if channel is not None:
            self._confirms = Confirms(channel, self._settled)
            channel.connection.protocol.on_writable = self._flush_soon
            self._flush_soon()

    def _settled(self, confirms: Confirms) -> None:
        """Use the room that confirms have made in the window."""
        if not len(confirms):
            self._unfinished.discard(confirms)
        if self._waiting:
            self._flush_soon()

    def _unconfirmed(self) -> Iterator[PendingPublish]:
        return chain(self._waiting, *self._unfinished)

    # ── deadlines ────────────────────────────────────────────────────────────────────────────────

    def _wake_up_at(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = asyncio.get_running_loop().call_later(deadline - time.monotonic(), self._expire)

    def _expire(self) -> None:
        """Fail what is past its deadline, and set the timer for the next one."""
        self._timer = None
        now = time.monotonic()
        expired = False
        upcoming: float | None = None
        for pending in self._unconfirmed():
            if pending.is_settled:
                continue
            if pending.deadline <= now:
                expired = True
                pending.fail(self._not_sent(pending) if pending.sent_at is None else _unknown(pending))
            elif upcoming is None or pending.deadline < upcoming:
                upcoming = pending.deadline
        self._waiting = deque(pending for pending in self._waiting if not pending.is_settled)
        if upcoming is not None:
            self._wake_up_at(upcoming)
        if expired and self._confirms is not None:
            self._suspect(self._confirms, now)

    def _suspect(self, confirms: Confirms, now: float) -> None:
        """Retire the channel if confirms are missing for long, unless a broker alarm explains that.

        A blocked broker confirms what it has read, and reads the rest when the alarm is over.
        https://www.rabbitmq.com/docs/alarms
        """
        oldest = next(iter(confirms), None)
        if oldest is None or oldest.sent_at is None or confirms.channel.connection.is_blocked:
            return
        if now - oldest.sent_at >= PATIENCE_SECONDS:
            self._channel.retire(confirms.channel, reason="the broker does not answer publishes")

    def _not_sent(self, pending: PendingPublish) -> HybridkitError:
        if self._confirms is None:
            return NotConnectedError(f"no channel to {self._connection.address}; {pending} was not sent")
        why = f"a memory or disk alarm, or {WINDOW} unanswered publishes"
        return BlockedError(f"the broker takes no messages ({why}); {pending} was not sent")


def _unknown(pending: PendingPublish) -> HybridkitError:
    return OutcomeUnknownError(f"{pending} was sent, and the broker did not answer in time; publish it again")


def unroutable(template: FrameTemplate) -> UnroutableError:
    """Return the error of a message that no queue takes."""
    return UnroutableError(
        f"no queue wants {template}; start a consumer for it once",
        exchange=template.exchange,
        routing_key=template.routing_key,
    )
