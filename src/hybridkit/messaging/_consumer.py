"""Consuming: a consumer is a queue, with one typed handler for each type of event or command in it."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from hybridkit.events import Message
from hybridkit.messaging._connection import BrokerConnection
from hybridkit.messaging._guard import Guard
from hybridkit.messaging._publisher import RobustPublisher
from hybridkit.retry import Retry

__all__ = ["RobustConsumer"]


class RobustConsumer:
    """A durable queue and what is done with the messages in it; declared at import, started by the process.

    Args:
        name: the queue's name, in snake_case with dots: `worker_service.analytics`.
        concurrency: how many handlers run at the same time.
        timeout_seconds: how long one run of a handler may take; then it counts as failed.
    """

    def __init__(self, name: str, *, concurrency: int = 16, timeout_seconds: float = 300.0) -> None:
        raise NotImplementedError

    def on[**P](
        self, message: type[Message], *, retry: Retry | None = None
    ) -> Callable[[Callable[P, Awaitable[None]]], Callable[P, Awaitable[None]]]:
        """Register the handler for a type of event or command, as a decorator; the function stays as it is.

        Parameters are injected by their annotation: the message's class, `EventEnvelope[...]`, `RequestContext`,
        `RobustPublisher`, and whatever the process provides.

        Args:
            message: the event or command class.
            retry: what to do when the handler fails; by default `Retry.exponential()`.

        Raises:
            DeclarationError: naming what contradicts what.
        """
        raise NotImplementedError

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
            NotConnectedError: the broker did not answer in that time.
        """
        raise NotImplementedError

    async def drain(self, *, budget_seconds: float) -> bool:
        """Stop taking messages, wait for the running handlers, acknowledge, unsubscribe.

        What is not finished in that time is cancelled and goes back to the queue.

        Returns:
            Whether everything was finished. A consumer that isn't running has nothing to finish.
        """
        raise NotImplementedError

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
        raise NotImplementedError
        yield

    @property
    def is_ready(self) -> bool:
        """Whether the broker delivers to this consumer now."""
        raise NotImplementedError

    @property
    def in_flight(self) -> int:
        """How many messages are delivered and not yet settled."""
        raise NotImplementedError
