"""The queues of a bot with `updates="queue"`, and the messages in them.

The updates of a chat are in one of sixteen queues, in their order. Each queue has a single active consumer, so that one
replica handles them in that order; the queues are spread over the replicas.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final
from zlib import crc32

from hybridkit.events import Event
from hybridkit.messaging import Order, RobustConsumer, Topology, topology_of
from hybridkit.retry import UNLIMITED, Retry

QUEUES: Final = 16
"""The number of queues, and so of replicas that can share the work. Another number moves chats to other queues."""

CONCURRENCY: Final = 16
"""How many updates of a queue are handled at the same time, each of another chat."""


_AGAIN: Final = Retry.exponential(first_seconds=1.0, cap_seconds=5.0, attempts=UNLIMITED)


class TelegramUpdate(Event, type="telegram.update_received", key="chat"):
    """An update as Telegram has delivered it.

    Attributes:
        chat: what the updates that are handled in order have in common: the id of the chat, or else of the user.
        update: the update in the Bot API's form.
    """

    chat: str
    update: dict[str, Any]


def queue_of(service_name: str, chat: str) -> str:
    """Return the name of the queue for a chat."""
    return _queue(service_name, crc32(chat.encode()) % QUEUES)


def update_consumers(
    service_name: str, handle: Callable[[TelegramUpdate], Awaitable[None]]
) -> list[RobustConsumer]:
    """Return the consumers of a bot's queues.

    Args:
        service_name: the name of the bot's service.
        handle: handles an update; an error that it raises is retried in the update's place, without an end.

    Raises:
        DeclarationError: the service's name is not one.
    """
    consumers = [
        # Twenty minutes are the most that a consumer allows; an update has a time limit of its own.
        RobustConsumer(
            _queue(service_name, number), concurrency=CONCURRENCY, timeout_seconds=1200.0, order=Order.SKIP
        )
        for number in range(QUEUES)
    ]
    for consumer in consumers:
        consumer.on(TelegramUpdate, retry=_AGAIN)(handle)
    return consumers


def update_topology(service_name: str) -> Topology:
    """Return the topology that a bot with `updates="queue"` needs.

    Raises:
        DeclarationError: the service's name is not one.
    """
    return topology_of(update_consumers(service_name, _handled_elsewhere))


async def _handled_elsewhere(_: TelegramUpdate) -> None:
    raise NotImplementedError  # pragma: no cover # its queue is declared here, and consumed by the bot


def _queue(service_name: str, number: int) -> str:
    return f"{service_name}.updates.q{number:02}"
