"""Consuming: a consumer is a queue, with one typed handler for each type of event or command in it."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from hybridkit.errors import DeclarationError, MisuseError, NotConnectedError
from hybridkit.events import Message
from hybridkit.ids import new_id
from hybridkit.messaging._backlog import Backlog, Fifo, Workers
from hybridkit.messaging._bounded import Background, bounded
from hybridkit.messaging._channel import Lane, SupervisedChannel
from hybridkit.messaging._connection import LIBRARY_ERRORS, BrokerConnection
from hybridkit.messaging._delivery import Delivery
from hybridkit.messaging._guard import Guard
from hybridkit.messaging._handlers import Handlers
from hybridkit.messaging._port import Delivered
from hybridkit.messaging._processor import LOCAL_SECONDS, Processor
from hybridkit.messaging._publisher import RobustPublisher
from hybridkit.messaging._topology import consumer_topology, declare, shared_topology
from hybridkit.observability import get_logger, metrics
from hybridkit.retry import Retry

__all__ = ["RobustConsumer"]

PREFETCH_PER_HANDLER: Final = 3
MAX_CONCURRENCY: Final = 65_535 // PREFETCH_PER_HANDLER
MAX_TIMEOUT_SECONDS: Final = LOCAL_SECONDS - 240.0
"""What is left of the time that a message may be in our hands, after waiting for its turn."""
PROBE_SECONDS: Final = 15.0
CANCEL_SECONDS: Final = 2.0
"""How long a handler gets to end when its time is up, and the broker to say that it stops delivering."""
UNEXPECTED_PAUSE_SECONDS: Final = 1.0

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
MAX_NAME_LENGTH: Final = 200
"""A routing key has 255 bytes, and the delay levels put 34 in front of the name."""

_log = get_logger(__name__)


class RobustConsumer:
    """A durable queue and what is done with the messages in it; declared at import, started by the process.

    Args:
        name: the queue's name, in snake_case with dots: `worker_service.analytics`.
        concurrency: how many handlers run at the same time.
        timeout_seconds: how long one run of a handler may take, at most 20 minutes; then it counts as failed.
    """

    def __init__(self, name: str, *, concurrency: int = 16, timeout_seconds: float = 300.0) -> None:
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
            raise DeclarationError(
                f"a consumer's name is snake_case with dots, at most {MAX_NAME_LENGTH} characters, not {name!r}"
            )
        if not 1 <= concurrency <= MAX_CONCURRENCY:
            raise DeclarationError(f"{name}: concurrency is from 1 to {MAX_CONCURRENCY}, not {concurrency}")
        if not 0 < timeout_seconds <= MAX_TIMEOUT_SECONDS:
            raise DeclarationError(
                f"{name}: timeout_seconds is at most {MAX_TIMEOUT_SECONDS:g}, not {timeout_seconds}:"
                f" the broker wants every message back after half an hour"
            )
        self.name = name
        self.concurrency = concurrency
        self.timeout_seconds = timeout_seconds
        self._handlers = Handlers(name)
        self._run: _Run | None = None

    def __repr__(self) -> str:
        return f"RobustConsumer({self.name!r}, {self._handlers}, is_ready={self.is_ready})"

    @property
    def is_ready(self) -> bool:
        """Whether the broker delivers to this consumer now."""
        return self._run is not None and self._run.is_ready

    @property
    def in_flight(self) -> int:
        """How many messages are delivered and not yet settled."""
        return 0 if self._run is None else self._run.in_flight

    @property
    def handles(self) -> tuple[type[Message], ...]:
        """The events and commands that it has handlers for."""
        return tuple(handler.message for handler in self._handlers)

    def on[HandlerT: Callable[..., Awaitable[object]]](
        self, message: type[Message], *, retry: Retry | None = None
    ) -> Callable[[HandlerT], HandlerT]:
        """Register the handler for a type of event or command, as a decorator; the function stays as it is.

        Parameters are injected by their annotation: the message's class, `EventEnvelope[...]`, `RequestContext`,
        `RobustPublisher`, and whatever the process provides.

        Args:
            message: the event or command class.
            retry: what to do when the handler fails; by default `Retry.exponential()`.

        Raises:
            DeclarationError: naming what contradicts what.
        """

        def register(function: HandlerT) -> HandlerT:
            if self._run is not None:
                raise DeclarationError(
                    f"{self.name} is running; its handlers are registered before it starts"
                )
            self._handlers.add(message, function, retry or Retry.exponential())
            return function

        return register

    async def start(
        self,
        connection: BrokerConnection,
        *,
        publisher: RobustPublisher,
        providers: Mapping[Any, object] | None = None,
        guard: Guard | None = None,
    ) -> None:
        """Declare the queue, subscribe, and stay subscribed until `drain`.

        Returns as soon as the broker delivers, at the latest at the context's deadline, or after 30 s without one.

        Args:
            connection: where messages come from; consumers of a process share one.
            publisher: sends retries and dead letters, over its own connection.
            providers: what handlers may ask for: the annotated class and the object to pass.
            guard: lets each event run once; without one, a redelivered event runs again.

        Raises:
            DeclarationError: a handler wants something that no provider gives.
            TopologyError: the queue exists with other properties.
            AccessDeniedError: the user may not declare or read the queue.
            NotConnectedError: the broker did not answer in that time.
        """
        if self._run is not None:
            raise MisuseError(f"{self.name} is running already")
        available = {RobustPublisher: publisher, **(providers or {})}
        self._check_handlers(available)
        processor = Processor(
            self.name,
            self._handlers,
            publisher=publisher,
            providers=available,
            guard=guard,
            timeout_seconds=self.timeout_seconds,
        )
        self._run = _Run(self.name, self._handlers, connection, processor, concurrency=self.concurrency)
        try:
            await self._run.start()
        except BaseException:
            self._run = None
            raise
        _log.info("consumer started", consumer=self.name)

    async def drain(self, *, budget_seconds: float) -> bool:
        """Stop taking messages, wait for the running handlers, acknowledge, unsubscribe.

        What is not finished in that time is cancelled and goes back to the queue.

        Args:
            budget_seconds: for all of it.

        Returns:
            Whether everything was finished. A consumer that isn't running has nothing to finish.
        """
        run, self._run = self._run, None
        if run is None:
            return True
        finished = await run.drain(budget_seconds)
        _log.info("consumer drained", consumer=self.name, finished=finished)
        return finished

    @asynccontextmanager
    async def running(
        self,
        connection: BrokerConnection,
        *,
        publisher: RobustPublisher,
        providers: Mapping[Any, object] | None = None,
        guard: Guard | None = None,
        drain_seconds: float = 10.0,
    ) -> AsyncGenerator[None]:
        """`start` before the block and `drain` after it."""
        await self.start(connection, publisher=publisher, providers=providers, guard=guard)
        try:
            yield
        finally:
            await self.drain(budget_seconds=drain_seconds)

    def _check_handlers(self, available: Mapping[Any, object]) -> None:
        if not self._handlers:
            raise DeclarationError(f"{self.name} has no handlers; register one with `@consumer.on(...)`")
        for handler in self._handlers:
            if missing := handler.missing(available):
                raise DeclarationError(
                    f"{self.name}: nothing provides {missing} for the handler {handler.plan.owner}"
                )


class _Run:
    """One consumer between start and drain."""

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
        self._backlog: Backlog = Fifo(prefetch=self._prefetch)
        self._workers = Workers(self._backlog, self._handle, concurrency=concurrency, name=f"{name} message")
        self._background = Background()
        self._draining = False
        self._tag = f"{name}.{new_id()}"
        self._channel = SupervisedChannel(
            connection,
            name=f"consumer {name}",
            confirms=False,
            prepare=self._subscribe,
            probe=self._probe,
            probe_seconds=PROBE_SECONDS,
        )

    @property
    def is_ready(self) -> bool:
        return self._channel.current is not None

    @property
    def in_flight(self) -> int:
        return len(self._workers) + len(self._backlog)

    async def start(self) -> None:
        await self._channel.start()
        self._workers.start()

    async def drain(self, budget_seconds: float) -> bool:
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
        if lane is not None:
            await asyncio.wait({lane.close()}, timeout=max(give_up_at - time.monotonic(), reserve_seconds))
        return finished

    async def _subscribe(self, lane: Lane) -> None:
        """Declare everything again, also what is there: a queue that was deleted is back before it is consumed."""
        await declare(self._topology, lane.channel)
        await lane.channel.basic_qos(prefetch_count=self._prefetch)
        lane.channel.on_consumer_cancel_callbacks.add(partial(self._cancelled, lane))
        inbox = _Inbox(lane, self._take)
        lane.open_port(inbox)
        await lane.channel.basic_consume(self._name, _nothing, consumer_tag=self._tag)

    def _cancelled(self, lane: Lane, _: object) -> None:
        self._channel.retire(lane, reason="the broker cancelled the consumer")

    async def _probe(self, lane: Lane) -> None:
        """Ask whether the queue has consumers: a subscription can die without a word."""
        queue = await lane.channel.queue_declare(self._name, passive=True)
        metrics.queue_backlog.labels(self._name).set(queue.message_count or 0)
        if not queue.consumer_count:
            raise NotConnectedError("the broker knows no consumer of the queue")

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

    def _take(self, inbox: "_Inbox", message: Delivered) -> None:
        if not self._draining:
            self._backlog.put(Delivery(self._name, inbox, message))

    async def _handle(self, delivery: Delivery) -> None:
        if not delivery.is_ours:
            return
        try:
            await self._processor.process(delivery)
        except Exception as error:  # noqa: BLE001 - a mistake in here must neither lose nor hold a message
            _log.exception("message not processed", consumer=self._name, error=repr(error))
            await asyncio.sleep(UNEXPECTED_PAUSE_SECONDS)
            delivery.requeue()


class _Inbox:
    """Takes the deliveries of a channel, and settles them."""

    def __init__(self, lane: Lane, take: Callable[["_Inbox", Delivered], None]) -> None:
        self.lane = lane
        self._take = take
        self._in_hand = 0

    @property
    def is_open(self) -> bool:
        return self.lane.is_open

    def ack(self, tag: int, _: object, /) -> None:
        if self.lane.port is not None:
            self.lane.port.ack(tag)
        self._settle()

    def requeue(self, tag: int) -> None:
        if self.lane.port is not None:
            self.lane.port.requeue(tag)
        self._settle()

    def _settle(self) -> None:
        self._in_hand -= 1
        if not self._in_hand:
            self.lane.__exit__()

    def reject(self, tag: int) -> None:
        raise NotImplementedError

    def was_finished(self, _: object, /) -> bool:
        return False

    def delivered(self, message: Delivered) -> None:
        """Hand it on."""
        if not self._in_hand:
            self.lane.__enter__()
        self._in_hand += 1
        self._take(self, message)

    def settled(self, tag: int, *, multiple: bool, accepted: bool) -> None:
        """Nothing is published here."""

    def returned(self, properties: bytes) -> None:
        """Nothing is published here."""

    def closed(self, reason: str) -> None:
        """The supervision sees it."""


async def _nothing(_: object) -> None:
    """For aiormq, which never sees a delivery."""
