"""A consumer while it runs: its channel, what the broker delivers on it, and how it ends."""

import asyncio
import time
from functools import partial
from typing import Final

from hybridkit.errors import NotConnectedError
from hybridkit.ids import new_id
from hybridkit.messaging._backlog import Backlog, Fifo, Workers
from hybridkit.messaging._bounded import Background, bounded
from hybridkit.messaging._channel import Lane, SupervisedChannel
from hybridkit.messaging._connection import LIBRARY_ERRORS, BrokerConnection
from hybridkit.messaging._delivery import Delivery
from hybridkit.messaging._finished import Finished
from hybridkit.messaging._handlers import Handlers
from hybridkit.messaging._inbox import Inbox
from hybridkit.messaging._processor import Processor
from hybridkit.messaging._topology import consumer_topology, declare, shared_topology
from hybridkit.observability import get_logger, metrics

__all__ = ["PREFETCH_PER_HANDLER", "Subscription"]

PREFETCH_PER_HANDLER: Final = 3
PROBE_SECONDS: Final = 15.0
CANCEL_SECONDS: Final = 2.0
"""How long a handler gets to end when its time is up, and the broker to say that it stops delivering."""
UNEXPECTED_PAUSE_SECONDS: Final = 1.0

_log = get_logger(__name__)


class Subscription:
    """One consumer between start and drain.

    Args:
        name: of the queue.
        handlers: whose types it is bound for.
        connection: where messages come from.
        processor: settles them.
        concurrency: how many at the same time.
    """

    def __init__(
        self,
        name: str,
        handlers: Handlers,
        connection: BrokerConnection,
        processor: Processor,
        *,
        concurrency: int,
    ) -> None:
        self._name = name
        self._topology = shared_topology() + consumer_topology(name, handlers.event_types())
        self._processor = processor
        self._prefetch = concurrency * PREFETCH_PER_HANDLER
        self._finished = Finished(prefetch=self._prefetch)
        self._backlog: Backlog = Fifo(prefetch=self._prefetch)
        self._workers = Workers(self._backlog, self._handle, concurrency=concurrency, name=f"{name} message")
        self._background = Background()
        self._draining = False
        self._tag = f"{name}.{new_id()}"
        self._inboxes: list[Inbox] = []  # of the channels that are open; the last one is the current
        self._starved_at: int | None = None
        self._channel = SupervisedChannel(
            connection,
            name=f"consumer {name}",
            confirms=False,
            prepare=self._subscribe,
            probe=self._probe,
            probe_seconds=PROBE_SECONDS,
        )

    def __repr__(self) -> str:
        return f"Subscription({self._name!r}, is_ready={self.is_ready}, in_flight={self.in_flight})"

    @property
    def is_ready(self) -> bool:
        """Whether the broker delivers: from its answer to `basic.consume` until it cancels or the channel is lost."""
        lane = self._channel.current
        return lane is not None and not lane.retired.is_set()

    @property
    def in_flight(self) -> int:
        """How many messages run or wait."""
        return len(self._workers) + len(self._backlog)

    async def start(self) -> None:
        """Subscribe, and stay subscribed; raises as `SupervisedChannel.start` does."""
        await self._channel.start()
        self._workers.start()

    async def drain(self, budget_seconds: float) -> bool:
        """Unsubscribe, wait for what runs, acknowledge, close the channel; whether all was finished in time."""
        give_up_at = time.monotonic() + budget_seconds
        self._draining = True
        lane = await self._channel.stop()
        if lane is not None:
            await self._unsubscribe(lane)
        await self._workers.stop()
        reserve_seconds = min(CANCEL_SECONDS, budget_seconds / 4)
        finished = await self._workers.wait(seconds=max(give_up_at - reserve_seconds - time.monotonic(), 0.0))
        if not finished:
            _log.warning(
                "handlers cancelled at the end of the drain", consumer=self._name, count=len(self._workers)
            )
            await self._workers.cancel(seconds=reserve_seconds)
        if closing := {inbox.close() for inbox in self._inboxes if inbox.is_open}:
            await asyncio.wait(closing, timeout=max(give_up_at - time.monotonic(), reserve_seconds))
        return finished

    # ── the channel ──────────────────────────────────────────────────────────────────────────────

    async def _subscribe(self, lane: Lane) -> None:
        """Declare everything again, also what is there: a queue that was deleted is back before it is consumed."""
        await declare(self._topology, lane.channel)
        await lane.channel.basic_qos(prefetch_count=self._prefetch)
        lane.channel.on_consumer_cancel_callbacks.add(partial(self._cancelled, lane))
        inbox = Inbox(
            lane, queue=self._name, prefetch=self._prefetch, finished=self._finished, take=self._take
        )
        self._inboxes = [*(known for known in self._inboxes if known.is_open), inbox]
        self._starved_at = None
        await lane.channel.basic_consume(self._name, _nothing, consumer_tag=self._tag)

    def _cancelled(self, lane: Lane, _: object) -> None:
        self._channel.retire(lane, reason="the broker cancelled the consumer")

    async def _probe(self, lane: Lane) -> None:
        """Find out whether the broker still knows this consumer: a subscription can die without a word.

        The broker tells how many consumers a queue has, not which. So one that lives beside others is known by its
        deliveries: where messages wait and there is room for them here, they come.
        """
        queue = await lane.channel.queue_declare(self._name, passive=True)
        metrics.queue_backlog.labels(self._name).set(queue.message_count or 0)
        if not queue.consumer_count:
            raise NotConnectedError("the broker knows no consumer of the queue")
        if self._is_starving(queue.message_count or 0):
            await self._unsubscribe(lane)
            raise NotConnectedError("messages wait in the queue, and none is delivered here")

    def _is_starving(self, waiting: int) -> bool:
        """Whether two probes in a row have seen messages wait for us, and nothing has come in between."""
        inbox = self._inboxes[-1]
        if not waiting or not inbox.has_room:
            self._starved_at = None
            return False
        was, self._starved_at = self._starved_at, inbox.received
        return was == inbox.received

    async def _unsubscribe(self, lane: Lane) -> None:
        try:
            await bounded(
                lane.channel.basic_cancel(self._tag),
                seconds=CANCEL_SECONDS,
                background=self._background,
                name=f"cancelling {self._name}",
            )
        except LIBRARY_ERRORS as error:
            _log.debug("consumer not cancelled", consumer=self._name, error=str(error))

    # ── deliveries ───────────────────────────────────────────────────────────────────────────────

    def _take(self, delivery: Delivery) -> None:
        if not self._draining:
            self._backlog.put(delivery)

    async def _handle(self, delivery: Delivery) -> None:
        if not delivery.is_ours:
            return
        try:
            await self._processor.process(delivery)
        except asyncio.CancelledError:
            delivery.requeue()
            raise
        except Exception as error:  # noqa: BLE001 - a mistake in here must neither lose nor hold a message
            _log.exception("message not processed", consumer=self._name, error=repr(error))
            await asyncio.sleep(UNEXPECTED_PAUSE_SECONDS)
            delivery.requeue()


async def _nothing(_: object) -> None:
    """For aiormq, which never sees a delivery."""
