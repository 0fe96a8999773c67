"""The reader of a dead-letter queue, which changes neither the queue's order nor its length.

The only way to look at a message in AMQP is to have it delivered and to give it back. A quorum queue puts returned
messages into a list in front of all others, *at the end of that list*. So a reader that takes a part of that list and
puts it back changes the order. Here each window takes the same `WINDOW_MESSAGES` messages, never less than an earlier
window can have left in that list, and keeps them unacknowledged until its connection closes: then they go back in the
order in which they came.

Behind so many messages that stay, a window sees no more. Their bodies are not kept in memory; those of messages that
wait to be sent back are, up to `BUDGET_BYTES`. A window ends there, and before the broker takes its messages for
abandoned (`consumer_timeout`); a new one begins from the head.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final, cast

from aiormq.channel import Channel
from aiormq.exceptions import AMQPError, ChannelLockedResource

from hybridkit.errors import InProgressError, NotConnectedError, NotFoundError, TopologyError
from hybridkit.messaging._amqp._channel import OpenChannel
from hybridkit.messaging._amqp._connection import BrokerConnection
from hybridkit.messaging._amqp._frames import decode_properties
from hybridkit.messaging._amqp._port import IncomingMessage, Port
from hybridkit.messaging._consuming._delivery import MAX_UNACKED_SECONDS
from hybridkit.messaging._topology._declared import NO_DELIVERY_LIMIT, Queue
from hybridkit.messaging._topology._inspection import Inspected, Inspection

WINDOW_MESSAGES: Final = 50_000
"""The number of messages that a reader may have unacknowledged; AMQP counts them with 16 bits."""
BUDGET_BYTES: Final = 64 * 1024 * 1024
SILENCE_SECONDS: Final = 1.0
"""The time without a message after which the queue is asked whether it has one."""
PATIENCE: Final = 30
"""The number of times that the queue may have messages and deliver none."""
SETTLE_SECONDS: Final = 5.0
"""The time for the queue to get back all messages; it takes milliseconds."""
LARGE_LIMIT: Final = 1_000_000
CONNECTION_NAME: Final = "hybridkit dlq"
_COUNTS: Final = frozenset({"x-delivery-count", "x-acquired-count"})


class QueueReader:
    """Reads one queue that is reserved for it.

    Args:
        url: the broker's URL.
        queue: the queue's name.
        inspection: asks about the queue, over the connection that holds the lock.
        messages: the number of messages in it when it was reserved.
    """

    def __init__(self, url: str, queue: str, inspection: Inspection, messages: int) -> None:
        self.queue = queue
        self.messages = messages
        self._url = url
        self._inspection = inspection

    @asynccontextmanager
    async def window(self, *, most: int, skip: int = 0) -> AsyncGenerator["Window"]:
        """Have messages delivered from the head on; those that are not acknowledged go back after the block.

        Args:
            most: the number of messages after which the window ends.
            skip: the number of messages at the head that stay, and are not handed out.

        Raises:
            NotConnectedError: the broker doesn't answer.
        """
        window = Window(self, most=most, skip=skip)
        try:
            # A connection and not only a channel: messages that are still on their way must not hold up the close.
            async with BrokerConnection(self._url, name=f"{CONNECTION_NAME} {self.queue}") as connection:
                channel = await OpenChannel.open(await connection.opened())
                window.port = channel.open_port(window)
                channel.raw.on_consumer_cancel_callbacks.add(window.cancelled)
                await channel.connection.ask(_consume(channel.raw, self.queue), name=f"reading {self.queue}")
                yield window
        except AMQPError as error:
            raise NotConnectedError(f"reading {self.queue}: {type(error).__name__}: {error}") from error
        await self._settled(most - window.acknowledged)

    async def ready(self) -> int:
        """Return the number of messages in the queue that are not delivered to any consumer."""
        return (await self._inspection.find_queue(self.queue)).messages

    async def _settled(self, messages: int) -> None:
        """Wait until the queue has got back the messages that are left, so that the next window has them."""
        give_up_at = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while asyncio.get_running_loop().time() < give_up_at:
            found = await self._inspection.find_queue(self.queue)
            if found.messages >= messages and not found.consumers:
                return
            await asyncio.sleep(0.01)


class Window:
    """The messages that are delivered to a reader, in order; the `Receiver` of its port.

    Attributes:
        seen: the number of messages that were skipped or handed out by `next`.
        acknowledged: the number of messages that are out of the queue for good.
        was_cut: whether it ended before the end of the queue, so that a new window sees more.
    """

    def __init__(self, reader: QueueReader, *, most: int, skip: int) -> None:
        self.port: Port  # of the channel, before anything comes
        self.seen = 0
        self.acknowledged = 0
        self.was_cut = False
        self._reader = reader
        self._most = most
        self._skip = skip
        self._kept = 0
        self._waiting: deque[IncomingMessage] = deque()
        self._bytes = 0
        self._closed: str | None = None
        self._last: IncomingMessage | None = None
        self._awaited: tuple[Any, ...] | None = None
        self._back: IncomingMessage | None = None
        self._changed = asyncio.Event()
        self._over_at = asyncio.get_running_loop().time() + MAX_UNACKED_SECONDS

    @property
    def is_over(self) -> bool:
        """Whether its messages may be delivered elsewhere by now: its time is up, or its connection is lost."""
        return self._closed is not None or asyncio.get_running_loop().time() >= self._over_at

    @property
    def _is_flushed(self) -> bool:
        return self._back is not None or self._closed is not None

    @property
    def _is_full(self) -> bool:
        """Whether the messages that stay fill the window, with the one that `flush` needs: no more are delivered."""
        return self._kept + (self._last is not None) >= WINDOW_MESSAGES

    async def next(self) -> IncomingMessage | None:
        """Return the next message; None at the end of the queue, of the window, of its time or of the budget.

        Raises:
            NotConnectedError: the connection is lost, or the broker has messages and delivers none.
        """
        silences = 0
        while True:
            if self._closed is not None:
                raise NotConnectedError(f"reading {self._reader.queue}: {self._closed}")
            if self.is_over:
                self.was_cut = True
                return None
            if self._waiting and self.seen < self._most:
                return self._pop()
            if self.was_cut or self.seen >= self._most or self._is_full:
                return None
            silences += await self._is_silent()
            if silences and not await self._reader.ready():
                return None  # the queue was emptied meanwhile
            if silences > PATIENCE:
                raise NotConnectedError(f"the broker has messages in {self._reader.queue} and delivers none")

    def keep(self) -> None:
        """Leave the message in the queue."""
        self._kept += 1
        self._changed.set()

    def ack(self, message: IncomingMessage) -> None:
        """Acknowledge the message, so that it leaves the queue, at the latest with `flush`."""
        self.acknowledged += 1
        if self._last is not None:
            self.port.ack(self._last.method.tag)
        self._last = message

    async def flush(self) -> None:
        """Wait until the queue has taken all acknowledgements; they can be lost where it doesn't in 5 s.

        A channel of RabbitMQ has no more than 32 commands under way to a quorum queue, and drops the others when it
        closes. They are carried out in order: so the last message is given back once, instead of acknowledged, and
        when it is here again, all before it are settled.
        """
        last, self._last = self._last, None
        if last is None or self._closed is not None:
            return
        self._awaited = _content(last)
        self.port.requeue(last.method.tag)
        give_up_at = asyncio.get_running_loop().time() + SETTLE_SECONDS
        while not self._is_flushed and asyncio.get_running_loop().time() < give_up_at:
            await self._is_silent()
        if self._back is not None:
            self.port.ack(self._back.method.tag)

    def _pop(self) -> IncomingMessage:
        message = self._waiting.popleft()
        self._bytes -= len(message.body)
        self.seen += 1
        return message

    async def _is_silent(self) -> bool:
        self._changed.clear()
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                await self._changed.wait()
        except TimeoutError:
            return True
        return False

    # ── the receiver of a port ───────────────────────────────────────────────────────────────────

    def delivered(self, message: IncomingMessage, /) -> None:
        """Add the message; over the budget, it and all after it are for a new window."""
        if message.method.redelivered and self._awaited is not None and _content(message) == self._awaited:
            self._back = message
            self._changed.set()
            return
        if self.seen < self._skip:
            self.seen += 1
            self.keep()
            return
        self.was_cut = self.was_cut or self._bytes > BUDGET_BYTES
        if not self.was_cut:
            self._waiting.append(message)
            self._bytes += len(message.body)
            self._changed.set()

    def closed(self, reason: str) -> None:
        """End the window: no more messages come."""
        self._closed = reason
        self._changed.set()

    def cancelled(self, _: object) -> None:
        """End the window, as the broker has ended the subscription."""
        self.closed("the broker cancelled the consumer: was the queue deleted?")

    def settled(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Ignore it: nothing is published on this channel."""

    def returned(self, properties: bytes) -> None:
        """Ignore it: nothing is published on this channel."""


def _content(message: IncomingMessage) -> tuple[Any, ...]:
    """Return all but the broker's counts. Of two messages that are the same by this, either may leave for the other."""
    properties = dict(decode_properties(message.properties))
    headers = cast("dict[str, Any]", properties.pop("headers", None) or {})
    return message.body, properties, {name: headers[name] for name in headers.keys() - _COUNTS}


@asynccontextmanager
async def open_reader(url: str, queue: str) -> AsyncGenerator[QueueReader]:
    """Reserve a queue, and read it in the block.

    A quorum queue takes a second consumer although the first one is exclusive; so the lock is an exclusive queue, which
    the broker removes with our connection, however that ends.

    Raises:
        NotFoundError: there is no such queue.
        InProgressError: another process reads the queue, with this toolkit or otherwise.
        TopologyError: reading the queue could lose messages.
        NotConnectedError: the broker did not answer in 30 s.
        AccessDeniedError: the user may not read the queue.
    """
    async with BrokerConnection(url, name=f"{CONNECTION_NAME} {queue}") as connection:
        opened = await connection.opened()
        async with Inspection(opened) as inspection:
            found = await inspection.compare_queue(
                Queue(name=queue, arguments={"x-delivery-limit": NO_DELIVERY_LIMIT})
            )
            if not found.exists:
                raise NotFoundError(f"there is no queue {queue!r}; it is there once its consumer has started")
            _check_limit(queue, found)
            await _lock(inspection, queue)
            found = await inspection.find_queue(queue)
            if found.consumers:
                raise InProgressError(
                    f"{queue} has {found.consumers} consumers that take messages out of it; stop them first"
                )
            yield QueueReader(url, queue, inspection, found.messages)


def _check_limit(queue: str, found: Inspected) -> None:
    """Refuse a queue that counts deliveries: each look at a message is one, and at the limit the message is dropped."""
    differences = {each.name: each.actual for each in found.differences}
    if "x-queue-type" in differences:
        return  # another kind of queue, which counts nothing
    limit = differences.get("x-delivery-limit", NO_DELIVERY_LIMIT)
    if found.refusal or not isinstance(limit, int) or limit < LARGE_LIMIT:
        said = found.refusal or f"x-delivery-limit is {'not set' if limit is None else limit}"
        raise TopologyError(
            f"{queue} is not read, because that can lose messages: {said}. Each look counts as a delivery, and from"
            f" RabbitMQ 4.0 on a quorum queue without a limit of its own drops a message after 20 of them. Declare it"
            f" with x-delivery-limit={NO_DELIVERY_LIMIT}, as hybridkit's consumers do"
        )


async def _lock(inspection: Inspection, queue: str) -> None:
    try:
        await inspection.ask(lambda channel: channel.queue_declare(f"hk.reading.{queue}", exclusive=True))
    except ChannelLockedResource as error:
        raise InProgressError(f"somebody else reads {queue} now: one at a time") from error


async def _consume(channel: Channel, queue: str) -> None:
    await channel.basic_qos(prefetch_count=WINDOW_MESSAGES)
    await channel.basic_consume(queue, _nothing)


async def _nothing(_: object) -> None:
    """Do nothing: aiormq wants a callback, but deliveries go to the port."""
