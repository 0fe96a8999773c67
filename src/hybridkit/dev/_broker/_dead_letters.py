"""Where a queue's dead messages go: to its dead-letter exchange, at most once or at least once.

https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
"""

import asyncio
from collections import deque
from typing import Final, Protocol

from hybridkit.dev._broker._arguments import QueueSettings
from hybridkit.dev._broker._messages import Message, Reason

PREFETCH: Final = 32
"""So many may be on their way at once: as many as RabbitMQ's, so that it stalls behind them as there."""

RETRY_SECONDS: Final = 180.0
"""After that time RabbitMQ tries again what no queue has taken."""


class Router(Protocol):
    """What dead letters are published with."""

    def deliver_letter(self, letter: Message, reason: Reason) -> bool:
        """Put it into every queue that it is routed to; False where there is none, or one refuses."""
        ...


class DeadLetters:
    """Publishes what dies in one queue.

    Args:
        queue: the queue's name.
        settings: where dead letters go, and with which guarantee.
        router: finds their queues.
    """

    def __init__(self, queue: str, settings: QueueSettings, router: Router) -> None:
        self._queue = queue
        self._settings = settings
        self._router = router
        self._stuck: list[tuple[Message, Reason]] = []
        self._waiting: deque[tuple[Message, Reason]] = deque()
        self._retry: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"DeadLetters({self._queue!r}, pending={self.pending})"

    @property
    def pending(self) -> int:
        """How many have not arrived yet."""
        return len(self._stuck) + len(self._waiting)

    def send(self, message: Message, reason: Reason, *, was_delivered: bool) -> None:
        """Publish what has died; without a dead-letter exchange it is gone."""
        exchange = self._settings.dead_letter_exchange
        if exchange is None:
            return
        letter = message.died(
            queue=self._queue,
            reason=reason,
            exchange=exchange,
            key=self._settings.dead_letter_key,
            was_delivered=was_delivered,
        )
        if not self._settings.is_at_least_once:
            self._router.deliver_letter(letter, reason)
            return
        self._waiting.append((letter, reason))
        self._deliver()

    def close(self) -> None:
        """Forget what is pending."""
        self._stuck.clear()
        self._waiting.clear()
        if self._retry:
            self._retry.cancel()

    def _deliver(self) -> None:
        while self._waiting and len(self._stuck) < PREFETCH:
            letter, reason = self._waiting.popleft()
            if not self._router.deliver_letter(letter, reason):
                self._stuck.append((letter, reason))
        if self._stuck and self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._waiting.extendleft(reversed(self._stuck))
        self._stuck.clear()
        self._deliver()
