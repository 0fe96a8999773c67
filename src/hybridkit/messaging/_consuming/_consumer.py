"""Consumers: a consumer is a queue, with one typed handler for each type of event or command in it."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from hybridkit.errors import DeclarationError, MisuseError
from hybridkit.events import Event, Message
from hybridkit.messaging._amqp._connection import BrokerConnection
from hybridkit.messaging._consuming._delivery import MAX_UNACKED_SECONDS
from hybridkit.messaging._consuming._guarded_runner import Guard
from hybridkit.messaging._consuming._handlers import Handlers
from hybridkit.messaging._consuming._keyed_backlog import KeyedBacklog
from hybridkit.messaging._consuming._parked_keys import ParkedKeys
from hybridkit.messaging._consuming._pause_gate import Paused, PauseGate
from hybridkit.messaging._consuming._processor import Processor
from hybridkit.messaging._consuming._subscription import (
    PREFETCH_PER_HANDLER,
    PREFETCH_PER_HANDLER_IN_ORDER,
    Subscription,
)
from hybridkit.messaging._publishing._publisher import RobustPublisher
from hybridkit.messaging._topology._declared import Topology, consumer_topology, shared_topology
from hybridkit.observability import get_logger
from hybridkit.retry import Retry

MAX_CONCURRENCY: Final = 65_535 // PREFETCH_PER_HANDLER
MAX_CONCURRENCY_IN_ORDER: Final = 65_535 // PREFETCH_PER_HANDLER_IN_ORDER
MAX_TIMEOUT_SECONDS: Final = MAX_UNACKED_SECONDS - 240.0
"""The part of the time for which a message may be unacknowledged that its handler may take; the rest is for waiting."""

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
MAX_NAME_LENGTH: Final = 200
"""A routing key has 255 bytes at most, and the delay levels put 34 in front of the name."""

_log = get_logger(__name__)


class Order(StrEnum):
    """The policy for a key when one of its messages is given up."""

    SKIP = "skip"
    """The message goes to the dead-letter queue, and the key goes on with the next one."""

    PARK = "park"
    """The message goes to the dead-letter queue, and so do all messages that come after it with the same key, in order,
    until all of them have been redriven."""


class _RunningConsumer(NamedTuple):
    """The name, the broker and the messages of a consumer that runs."""

    name: str
    address: str
    handles: frozenset[type[Message]]


_RUNNING: Final[WeakKeyDictionary[Subscription, _RunningConsumer]] = WeakKeyDictionary()
"""All consumers of this process."""


class RobustConsumer:
    """A durable queue with the handlers for its messages; declared at import, started by the process.

    Args:
        name: the queue's name, in snake_case with dots: `worker_service.analytics`.
        concurrency: the number of handlers that run at the same time.
        timeout_seconds: the time that one run of a handler may take, at most 20 minutes; then it counts as failed.
        order: keeps the events of a key in order, and says what to do when one of them is given up. The queue then has
            a single active consumer: of several replicas one works, and the next takes over when it ends. None, the
            default, keeps no order.

    Raises:
        DeclarationError: the name is no queue's name, or a number is out of its range.
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency: int = 16,
        timeout_seconds: float = 300.0,
        order: Order | None = None,
    ) -> None:
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
            raise DeclarationError(
                f"a consumer's name is snake_case with dots, at most {MAX_NAME_LENGTH} characters, not {name!r}"
            )
        most = MAX_CONCURRENCY if order is None else MAX_CONCURRENCY_IN_ORDER
        if not 1 <= concurrency <= most:
            raise DeclarationError(f"{name}: concurrency is from 1 to {most}, not {concurrency}")
        if not 0 < timeout_seconds <= MAX_TIMEOUT_SECONDS:
            raise DeclarationError(
                f"{name}: timeout_seconds is at most {MAX_TIMEOUT_SECONDS:g}, not {timeout_seconds}:"
                f" the broker wants every message back after half an hour"
            )
        self.name = name
        self.concurrency = concurrency
        self.timeout_seconds = timeout_seconds
        self.order = order
        self._handlers = Handlers(name)
        self._run: Subscription | None = None

    def __repr__(self) -> str:
        return f"RobustConsumer({self.name!r}, {self._handlers}, is_ready={self.is_ready})"

    @property
    def is_ready(self) -> bool:
        """Whether the broker delivers to this consumer now, and its messages get on."""
        return self._run is not None and self._run.is_ready

    @property
    def paused(self) -> Paused | None:
        """The reason why it takes no messages now: a dependency of its handlers is down. None while it works."""
        return None if self._run is None else self._run.paused

    @property
    def stalled(self) -> str | None:
        """The step at which it is stuck now, as a sentence, so that its messages don't get on. None while it works."""
        return None if self._run is None else self._run.stalled

    @property
    def in_flight(self) -> int:
        """The number of messages that are delivered and not yet settled."""
        return 0 if self._run is None else self._run.in_flight

    @property
    def handles(self) -> tuple[type[Message], ...]:
        """The classes of the events and commands that it has handlers for."""
        return tuple(handler.message for handler in self._handlers)

    def on[HandlerT: Callable[..., Awaitable[object]]](
        self, message: type[Message], *, retry: Retry | None = None
    ) -> Callable[[HandlerT], HandlerT]:
        """Register the handler for a type of event or command, as a decorator; the function stays as it is.

        Parameters are injected by their annotation: the message's class, `EventEnvelope[...]`, `RequestContext`,
        `RobustPublisher`, and the classes that the process provides.

        Args:
            message: the event or command class.
            retry: the policy for the handler's failures; by default `Retry.exponential()`.

        Raises:
            DeclarationError: the consumer runs already, has a handler for this type, or can't get this message; or the
                function is no handler for it.
        """

        def register(function: HandlerT) -> HandlerT:
            if self._run is not None:
                raise DeclarationError(
                    f"{self.name} is running; its handlers are registered before it starts"
                )
            if self.order is not None and not (issubclass(message, Event) and message.event_key):
                raise DeclarationError(
                    f"{self.name} keeps the events of a key in order, and {message.__name__} has no key:"
                    f" declare it with key=..., or handle it in another consumer"
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
        priority: int = 0,
    ) -> None:
        """Declare the queue, subscribe, and stay subscribed until `drain`.

        Returns as soon as the broker delivers, at the latest at the context's deadline, or after 30 s without one (and
        0.05 s for each type that is handled).

        Args:
            connection: the connection on which messages come; the consumers of a process share one.
            publisher: sends retries and dead letters, over its own connection.
            providers: the objects that handlers may ask for, by their annotation.
            guard: lets each event run once; without one, a redelivered event runs again.
            priority: the priority of this subscription. Of the replicas of a consumer that keeps an order, the one with
                the highest works, since RabbitMQ 4; it takes over when the other has finished what it has.

        Raises:
            DeclarationError: a handler wants an object that no provider gives; or another consumer of this name runs in
                this process with other handlers.
            MisuseError: this consumer runs already.
            TopologyError: the queue exists with other properties.
            AccessDeniedError: the user may not declare or read the queue.
            NotConnectedError: the broker did not answer in that time.
        """
        if self._run is not None:
            raise MisuseError(f"{self.name} is running already")
        self._check_namesakes(connection)
        available = {RobustPublisher: publisher, **(providers or {})}
        self._check_handlers(available)
        gate, keyed = PauseGate(self.name), None if self.order is None else KeyedBacklog()
        parked = ParkedKeys(self.name) if self.order is Order.PARK else None
        processor = Processor(
            self.name,
            self._handlers,
            publisher=publisher._writer,  # noqa: SLF001 - the same package
            providers=available,
            guard=guard,
            timeout_seconds=self.timeout_seconds,
            gate=gate,
            keyed=keyed,
            parked=parked,
        )
        self._run = Subscription(
            self.name,
            self._handlers,
            connection,
            processor,
            gate,
            concurrency=self.concurrency,
            keyed=keyed,
            parked=parked,
            priority=priority,
        )
        _RUNNING[self._run] = _RunningConsumer(self.name, connection.address, frozenset(self.handles))
        try:
            await self._run.start()
        except BaseException:
            del _RUNNING[self._run]
            self._run = None
            raise
        _log.info("consumer started", consumer=self.name)

    async def drain(self, *, budget_seconds: float) -> bool:
        """Stop taking messages, wait for the running handlers, acknowledge, and unsubscribe.

        Handlers that have not ended in that time are cancelled, and their messages go back to the queue.

        Args:
            budget_seconds: the time for all of it.

        Returns:
            Whether all handlers ended in time; True for a consumer that isn't running.
        """
        run, self._run = self._run, None
        if run is None:
            return True
        _RUNNING.pop(run, None)
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
        """Run the block between `start` and `drain`.

        Args:
            connection: as in `start`, and so are the other arguments.
            publisher: sends retries and dead letters.
            providers: the objects that handlers may ask for.
            guard: lets each event run once.
            drain_seconds: the time for `drain`.
        """
        await self.start(connection, publisher=publisher, providers=providers, guard=guard)
        try:
            yield
        finally:
            await self.drain(budget_seconds=drain_seconds)

    def _check_namesakes(self, connection: BrokerConnection) -> None:
        """Refuse a second consumer of this queue, unless it is a replica: it handles the same messages."""
        for running in _RUNNING.values():
            if (running.name, running.address) != (self.name, connection.address):
                continue
            if running.handles != frozenset(self.handles):
                raise DeclarationError(
                    f"another consumer named {self.name!r} runs in this process: they would share one queue, and each"
                    f" would get messages that only the other one handles. Register all handlers on one of them, or"
                    f" give the other its own name"
                )

    def _check_handlers(self, available: Mapping[Any, object]) -> None:
        if not self._handlers:
            raise DeclarationError(f"{self.name} has no handlers; register one with `@consumer.on(...)`")
        for handler in self._handlers:
            if missing := handler.missing(available):
                raise DeclarationError(
                    f"{self.name}: nothing provides {missing} for the handler {handler.plan.owner}"
                )


def topology_of(consumers: Iterable[RobustConsumer]) -> Topology:
    """Return the topology that these consumers need: the part that all services share, and their own queues."""
    topology = shared_topology()
    for consumer in consumers:
        types = consumer._handlers.event_types()  # noqa: SLF001 - the same package
        topology += consumer_topology(
            consumer.name, types, ordered=consumer.order is not None, parks=consumer.order is Order.PARK
        )
    return topology
