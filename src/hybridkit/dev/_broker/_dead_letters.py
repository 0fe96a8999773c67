"""The dead-lettering of one queue, at most once or at least once.

https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
"""

import asyncio
from collections import deque
from typing import Final, Protocol

from hybridkit.dev._broker._arguments import QueueSettings
from hybridkit.dev._broker._messages import Message, Reason

PREFETCH: Final = 32
"""How many undelivered dead letters block those behind them, as in RabbitMQ."""

RETRY_SECONDS: Final = 180.0
"""The time after which RabbitMQ retries a dead letter that no queue has accepted."""


class Router(Protocol):
    """The virtual host, as a publisher of dead letters."""

    def deliver_dead_letter(self, dead_letter: Message, reason: Reason) -> bool:
        """Publish a dead letter to its queues, and return whether there are any and all have accepted it."""
        ...


class DeadLetters:
    """The publisher of one queue's dead letters.

    Args:
        queue: the name of the queue.
        settings: the dead-letter exchange and the guarantee of the queue.
        router: publishes to the queues that the dead-letter exchange routes to.
    """

    def __init__(self, queue: str, settings: QueueSettings, router: Router) -> None:
        self._queue = queue
        self._settings = settings
        self._router = router
        self._undelivered: list[tuple[Message, Reason]] = []
        self._waiting: deque[tuple[Message, Reason]] = deque()
        self._retry: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"DeadLetters({self._queue!r}, pending={self.pending})"

    @property
    def pending(self) -> int:
        """The number of dead letters that no queue has accepted yet."""
        return len(self._undelivered) + len(self._waiting)

    def send(self, message: Message, reason: Reason, *, was_delivered: bool) -> None:
        """Publish a dead message; drop it when the queue has no dead-letter exchange."""
        exchange = self._settings.dead_letter_exchange
        if exchange is None:
            return
        dead_letter = message.died(
            queue=self._queue,
            reason=reason,
            exchange=exchange,
            key=self._settings.dead_letter_key,
            was_delivered=was_delivered,
        )
        if not self._settings.is_at_least_once:
            self._router.deliver_dead_letter(dead_letter, reason)
            return
        self._waiting.append((dead_letter, reason))
        self._deliver()

    def close(self) -> None:
        """Drop the pending dead letters."""
        self._undelivered.clear()
        self._waiting.clear()
        if self._retry:
            self._retry.cancel()

    def _deliver(self) -> None:
        while self._waiting and len(self._undelivered) < PREFETCH:
            dead_letter, reason = self._waiting.popleft()
            if not self._router.deliver_dead_letter(dead_letter, reason):
                self._undelivered.append((dead_letter, reason))
        if self._undelivered and self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._waiting.extendleft(reversed(self._undelivered))
        self._undelivered.clear()
        self._deliver()
