"""The subscription of a running consumer: its channel, the deliveries on it, its pauses and its drain."""

import asyncio
import time
from functools import partial
from typing import Any, Final, cast

from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from hybridkit._tasks import TaskSet
from hybridkit.errors import HybridkitError, NotConnectedError
from hybridkit.ids import new_id
from hybridkit.messaging._amqp._channel import PREPARE_SECONDS, OpenChannel, SupervisedChannel
from hybridkit.messaging._amqp._connection import LIBRARY_ERRORS, BrokerConnection
from hybridkit.messaging._amqp._waiting import bounded, is_cancelled
from hybridkit.messaging._consuming._acks import LostAcks
from hybridkit.messaging._consuming._backlog import Backlog, FifoBacklog, Workers
from hybridkit.messaging._consuming._consumer_channel import ConsumerChannel
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.messaging._consuming._handlers import Handlers
from hybridkit.messaging._consuming._keyed_backlog import KeyedBacklog
from hybridkit.messaging._consuming._parked_keys import ParkedKeys
from hybridkit.messaging._consuming._pause_gate import Paused, PauseGate
from hybridkit.messaging._consuming._processor import Processor
from hybridkit.messaging._consuming._stall_detector import GRACE_SECONDS
from hybridkit.messaging._topology._declared import Topology, consumer_topology, declare, shared_topology
from hybridkit.observability import get_logger, metrics

PREFETCH_PER_HANDLER: Final = 3
PREFETCH_PER_HANDLER_IN_ORDER: Final = 30
"""More than without an order: messages behind one that waits for its next attempt must not keep out other keys."""
PROBE_SECONDS: Final = 15.0
BINDINGS_PER_PROBE: Final = 100
SECONDS_PER_BINDING: Final = 0.05
"""Each type has a binding, and RabbitMQ takes 4 ms to declare it, 15 when busy, also where it exists already."""
CANCEL_SECONDS: Final = 2.0
"""The time for a cancelled handler to end, and for the broker to confirm that it stops delivering."""
UNEXPECTED_PAUSE_SECONDS: Final = 1.0

_log = get_logger(__name__)


class Subscription:
    """One consumer between its start and its drain.

    Args:
        name: the queue's name.
        handlers: the handlers for whose types the queue is bound.
        connection: the connection on which messages come.
        processor: sees deliveries through to their end.
        gate: the processor's gate; while it is shut, no more messages are taken.
        concurrency: the number of handlers that run at the same time.
        keyed: the backlog that keeps the messages of a key in order, where the consumer keeps order.
        parked: the parked keys, where keys are parked.
        priority: the consumer's priority, among those of the queue.
    """

    def __init__(
        self,
        name: str,
        handlers: Handlers,
        connection: BrokerConnection,
        processor: Processor,
        gate: PauseGate,
        *,
        concurrency: int,
        keyed: KeyedBacklog | None = None,
        parked: ParkedKeys | None = None,
        priority: int = 0,
    ) -> None:
        self._name = name
        self._arguments: dict[str, Any] | None = {"x-priority": priority} if priority else None
        self._own = consumer_topology(
            name, handlers.event_types(), ordered=keyed is not None, parks=parked is not None
        )
        self._topology = shared_topology() + self._own
        self._restored = 0  # the number of bindings that are declared again in this round
        self._processor = processor
        self._concurrency = concurrency
        self._gate = gate
        gate.changed = self._adjust_soon
        self._keyed = keyed
        self._parked = parked
        self._prefetch = concurrency * (
            PREFETCH_PER_HANDLER if keyed is None else PREFETCH_PER_HANDLER_IN_ORDER
        )
        self._lost_acks = LostAcks(prefetch=self._prefetch)
        self._backlog: Backlog = FifoBacklog(prefetch=self._prefetch) if keyed is None else keyed
        self._workers = Workers(self._backlog, self._handle, concurrency=concurrency, name=f"{name} message")
        self._tasks = TaskSet()
        self._draining = False
        self._tag = f"{name}.{new_id()}"
        self._consumer_channels: list[ConsumerChannel] = []  # the open ones; the last one is the current
        self._starved_at: int | None = None
        self._ran_at = time.monotonic()  # the last time that a handler ended
        self._open_channel: OpenChannel | None = None
        self._consuming = 0
        self._adjusting = asyncio.Lock()
        self._channel = SupervisedChannel(
            connection,
            name=f"consumer {name}",
            confirms=False,
            prepare=self._subscribe,
            ready=lambda _: self._adjust_soon(),
            probe=self._probe,
            probe_seconds=PROBE_SECONDS,
            # In order, a channel that consumes no more is closed at once: its unsettled messages come before others.
            linger_seconds=None if keyed is None else 0.0,
            prepare_seconds=PREPARE_SECONDS + SECONDS_PER_BINDING * len(self._topology.bindings),
        )

    def __repr__(self) -> str:
        return f"Subscription({self._name!r}, is_ready={self.is_ready}, in_flight={self.in_flight})"

    @property
    def is_ready(self) -> bool:
        """Whether the broker delivers, and the messages get on.

        It delivers from its answer to `basic.consume` until it cancels or the channel is lost.
        """
        channel = self._channel.current
        delivers = channel is not None and not channel.retired.is_set() and self._channel.is_kept
        return delivers and self._gate.is_open and self.stalled is None

    @property
    def stalled(self) -> str | None:
        """The step at which it is stuck, as a sentence; None while it works."""
        if not self._workers.is_running:
            return "nothing takes what is delivered"
        if self._processor.overdue >= self._concurrency:
            return "every handler's place is taken by one that doesn't end, although its time is up"
        if self._is_full_and_idle:
            return "all that the broker lets it have waits, and nothing runs"
        return self._processor.stalls.reason

    @property
    def _is_full_and_idle(self) -> bool:
        """Whether no handler has run for some time and no message can come: all wait for a retry, or behind one."""
        is_full = bool(self._consumer_channels) and not self._consumer_channels[-1].has_room
        return is_full and not len(self._workers) and time.monotonic() - self._ran_at >= GRACE_SECONDS

    @property
    def paused(self) -> Paused | None:
        """The reason why it takes no messages; None while it takes them."""
        return self._gate.paused

    @property
    def in_flight(self) -> int:
        """The number of messages that run or wait."""
        return len(self._workers) + len(self._backlog)

    async def start(self) -> None:
        """Subscribe, and stay subscribed; raises as `SupervisedChannel.start` does."""
        await self._channel.start()
        self._workers.start()

    async def drain(self, budget_seconds: float) -> bool:
        """Unsubscribe, wait for the handlers, acknowledge, close the channel, and return whether all ended in time."""
        give_up_at = time.monotonic() + budget_seconds
        self._draining = True
        self._gate.stop()
        await self._workers.stop()
        channel = await self._channel.stop()
        if self._keyed is not None:
            self._keyed.stop()  # the broker is not told: the next consumer must not begin before the end of this one
        elif channel is not None:
            await self._unsubscribe(channel)
        reserve_seconds = min(CANCEL_SECONDS, budget_seconds / 4)
        finished = await self._workers.wait(seconds=max(give_up_at - reserve_seconds - time.monotonic(), 0.0))
        if not finished:
            _log.warning(
                "handlers cancelled at the end of the drain", consumer=self._name, count=len(self._workers)
            )
            await self._workers.cancel(seconds=reserve_seconds)
        if closing := {
            consumer_channel.close()
            for consumer_channel in self._consumer_channels
            if consumer_channel.is_open
        }:
            await asyncio.wait(closing, timeout=max(give_up_at - time.monotonic(), reserve_seconds))
        return finished

    # ── the channel ──────────────────────────────────────────────────────────────────────────────

    async def _subscribe(self, channel: OpenChannel) -> None:
        """Declare the topology, so that a deleted queue is back, and consume.

        The broker delivers on this channel from here on. Deliveries of older channels still run, but can't be settled.
        """
        await declare(self._topology, channel.raw)
        channel.raw.on_consumer_cancel_callbacks.add(partial(self._cancelled, channel))
        consumer_channel = ConsumerChannel(
            channel,
            queue=self._name,
            prefetch=self._prefetch,
            lost_acks=self._lost_acks,
            on_delivery=self._take,
            on_closed=self._gate.sift,
        )
        self._consumer_channels = [
            *(known for known in self._consumer_channels if known.is_open),
            consumer_channel,
        ]
        self._starved_at = None
        self._open_channel, self._consuming = channel, 0
        await self._consume(channel, self._wanted())

    async def _consume(self, channel: OpenChannel, count: int) -> None:
        """Have messages delivered on this channel, up to so many unacknowledged ones; none for 0."""
        if self._consuming:
            self._consuming = 0
            await channel.raw.basic_cancel(self._tag)
        if count:
            await channel.raw.basic_qos(prefetch_count=count)
            await channel.raw.basic_consume(
                self._name, _nothing, consumer_tag=self._tag, arguments=self._arguments
            )
            if channel is self._open_channel:  # another channel may have been opened meanwhile
                self._consuming = count

    def _wanted(self) -> int:
        """Return the prefetch that is wanted now: 0 in a pause, or 1 for a probe.

        In order, the consumer stays subscribed in a pause: the broker would deliver to the next consumer, and that one
        would get messages whose predecessors wait here.
        """
        if self._gate.paused is None or self._keyed is not None:
            return self._prefetch
        return 1 if self._gate.wants_one or self._consuming == 1 else 0

    def _adjust_soon(self) -> None:
        self._tasks.start(self._adjust(), name=f"adjusting {self._name}")

    async def _adjust(self) -> None:
        async with self._adjusting:
            channel = self._channel.current
            if channel is None or self._draining or self._wanted() == self._consuming:
                return
            try:
                await channel.connection.ask(
                    self._consume(channel, self._wanted()), name=f"adjusting {self._name}"
                )
            except (NotConnectedError, *LIBRARY_ERRORS) as error:
                self._channel.retire(channel, reason=f"its consumer was not adjusted: {error}")

    def _cancelled(self, channel: OpenChannel, _: object) -> None:
        self._channel.retire(channel, reason="the broker cancelled the consumer")

    async def _probe(self, channel: OpenChannel) -> None:
        """Find out whether the broker still delivers to this consumer: a subscription can end without a message.

        The broker tells how many consumers a queue has, not which. So a consumer that has others beside it is known by
        its deliveries: where messages wait and there is room for them here, they come.
        """
        queue = await channel.raw.queue_declare(self._name, passive=True)
        metrics.queue_backlog.labels(self._name).set(queue.message_count or 0)
        metrics.consumer_wait.labels(self._name).set(self._backlog.longest_wait_seconds())
        if not queue.consumer_count and self._consuming:
            raise NotConnectedError("the broker knows no consumer of the queue")
        if self._is_starving(queue.message_count or 0):
            await self._unsubscribe(channel)
            raise NotConnectedError("messages wait in the queue, and none is delivered here")
        await self._restore(channel)

    async def _restore(self, channel: OpenChannel) -> None:
        """Declare the queues and bindings around its queue again, of the bindings some at a time.

        A deleted exchange loses its bindings, and a publisher declares it again without them: no message would come any
        more, and the broker does not tell a consumer. Where the exchange is missing, the next channel declares it.
        """
        following = self._own.bindings[self._restored : self._restored + BINDINGS_PER_PROBE]
        self._restored = (self._restored + len(following)) % len(self._own.bindings)
        # A channel of its own: a refused declaration closes it, and must not stop the deliveries.
        aside = await OpenChannel.open(channel.connection)
        try:
            await declare(Topology(queues=self._own.queues[1:], bindings=following), aside.raw)
        except (ChannelAccessRefused, ChannelPreconditionFailed) as error:
            _log.warning("topology not declared again", consumer=self._name, error=str(error))
        finally:
            await asyncio.wait({aside.close()})

    def _is_starving(self, waiting: int) -> bool:
        """Return whether two probes in a row have seen messages wait for us, and none has come in between."""
        consumer_channel = self._consumer_channels[-1]
        # Of the consumers of a queue in order, the broker delivers to one, and the others wait.
        if (
            not waiting
            or not consumer_channel.has_room
            or self._keyed is not None
            or self._consuming < self._prefetch
        ):
            self._starved_at = None
            return False
        was, self._starved_at = self._starved_at, consumer_channel.received
        return was == consumer_channel.received

    async def _unsubscribe(self, channel: OpenChannel) -> None:
        try:
            await bounded(
                channel.raw.basic_cancel(self._tag),
                seconds=CANCEL_SECONDS,
                tasks=self._tasks,
                name=f"cancelling {self._name}",
            )
        except LIBRARY_ERRORS as error:
            _log.debug("consumer not cancelled", consumer=self._name, error=str(error))

    # ── deliveries ───────────────────────────────────────────────────────────────────────────────

    def _take(self, delivery: Delivery) -> None:
        if not self._draining:
            self._backlog.put(delivery)

    async def _handle(self, delivery: Delivery) -> None:
        """Process a delivery; one whose handler is cancelled, as at the end of a drain, goes back to its queue."""
        if not delivery.is_ours:
            return
        try:
            await self._process(delivery)
        except asyncio.CancelledError:
            if delivery.is_settled:
                pass
            elif self._keyed is None:
                delivery.requeue()
            elif not self._draining:
                # Alone it would come back behind its successors, so all unsettled messages go back with the channel. At
                # the end of a drain the channel is closed anyway, and only then may the next consumer begin.
                delivery.give_back()
            raise
        finally:
            self._ran_at = time.monotonic()

    async def _process(self, delivery: Delivery) -> None:
        """Process a delivery; an error that nothing has foreseen must neither lose nor keep a message."""
        try:
            if self._parked is None or await self._knows_parked(self._parked, delivery):
                await self._processor.process(delivery)
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and is_cancelled():
                raise
            await self._processor.settle_unexpected(delivery, error)

    async def _knows_parked(self, parked: ParkedKeys, delivery: Delivery) -> bool:
        """Return whether the parked keys are known, after reading them where needed; no handler runs before."""
        try:
            with self._processor.stalls.attempt("the log of parked keys is not read"):
                # There is a channel: it is set before anything can be delivered on it.
                await parked.read(cast("OpenChannel", self._open_channel), self._processor.forward)
        except HybridkitError as error:
            _log.warning("parked keys not read yet", consumer=self._name, error=str(error))
            await asyncio.sleep(UNEXPECTED_PAUSE_SECONDS)
            delivery.give_back()
            return False
        return True


async def _nothing(_: object) -> None:
    """Do nothing: aiormq wants a callback, but deliveries go to the port."""
