"""The queues of a bot with `updates="queue"`, and the messages in them.

The updates of a chat are in one of sixteen queues, in their order. Each queue has a single active consumer, so that one
replica handles them in that order; the queues are spread over the replicas.
"""

from typing import Any, Final
from zlib import crc32

from hybridkit.events import Event
from hybridkit.messaging import Order, RobustConsumer

QUEUES: Final = 16
"""The number of queues, and so of replicas that can share the work. Another number moves chats to other queues."""

CONCURRENCY: Final = 16
"""How many updates of a queue are handled at the same time, each of another chat."""


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


def update_consumers(service_name: str) -> list[RobustConsumer]:
    """Return the consumers of a bot's queues, whose handlers are still to be registered."""
    return [
        # Twenty minutes are the most that a consumer allows; an update has a time limit of its own.
        RobustConsumer(
            _queue(service_name, number), concurrency=CONCURRENCY, timeout_seconds=1200.0, order=Order.SKIP
        )
        for number in range(QUEUES)
    ]


def _queue(service_name: str, number: int) -> str:
    return f"{service_name}.updates.q{number:02}"
