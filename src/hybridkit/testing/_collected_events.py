"""The events and commands that a test sees at the broker."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import aio_pika

from hybridkit.errors import PayloadError
from hybridkit.events import EventEnvelope, Message, decode_envelope
from hybridkit.testing._waiting import until

_EVENTS: Final = "hk.events"


class CollectedEvents:
    """The events and commands that have arrived since `collect_events` was entered.

    Attributes:
        envelopes: the envelopes in the order of arrival; an event that was published twice is here twice.
        unreadable: the bodies that are no envelope of a known type.
    """

    def __init__(self) -> None:
        self.envelopes: list[EventEnvelope[Any]] = []
        self.unreadable: list[bytes] = []

    def __repr__(self) -> str:
        return f"CollectedEvents({[envelope.event_type for envelope in self.envelopes]})"

    def of[MessageT: Message](
        self, kind: type[MessageT], *, where: Callable[[MessageT], object] | None = None
    ) -> list[EventEnvelope[MessageT]]:
        """Return the envelopes of one type that have arrived.

        Args:
            kind: the class of the event or command.
            where: a condition on the event; None for all.
        """
        found = [envelope for envelope in self.envelopes if isinstance(envelope.data, kind)]
        return [envelope for envelope in found if where is None or where(envelope.data)]

    async def wait_for[MessageT: Message](
        self,
        kind: type[MessageT],
        *,
        where: Callable[[MessageT], object] | None = None,
        count: int = 1,
        timeout_seconds: float = 30,
    ) -> list[EventEnvelope[MessageT]]:
        """Wait until `count` events of one type have arrived, and return the envelopes of all that have.

        Args:
            kind: the class of the event or command.
            where: a condition on the event; None for all.
            count: the number to wait for.
            timeout_seconds: the longest time to wait.

        Raises:
            TimeoutError: fewer have arrived in that time; the message names what has.
        """

        def arrived() -> list[EventEnvelope[MessageT]] | None:
            found = self.of(kind, where=where)
            return found if len(found) >= count else None

        wanted = f"{count} of {kind.message_type}"
        try:
            return await until(arrived, wanted, timeout_seconds=timeout_seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; what has arrived: {self!r}") from None


@asynccontextmanager
async def collect_events(rabbitmq_url: str, *kinds: type[Message]) -> AsyncGenerator[CollectedEvents]:
    """Collect the events and commands of some types inside the block, from a queue that ends with it.

    Args:
        rabbitmq_url: the URL of the broker, which may be a `DevelopmentBroker`.
        kinds: the classes of the events and commands.
    """
    collected = CollectedEvents()

    async def keep(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        try:
            collected.envelopes.append(decode_envelope(message.body))
        except PayloadError:
            collected.unreadable.append(message.body)

    async with await aio_pika.connect(rabbitmq_url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(_EVENTS, aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(exclusive=True, auto_delete=True)
        for kind in kinds:
            await queue.bind(exchange, kind.message_type)
        await queue.consume(keep, no_ack=True)
        yield collected
