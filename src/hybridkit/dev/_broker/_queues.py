"""Queues: messages in order, until they are acknowledged, expire, or are dropped.

```
put -> ready -> delivered, unacknowledged -> acknowledged
         ^                |
         └── given back ──┴-> dead (rejected, expired, maxlen, delivery_limit)
```
"""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from hybridkit.dev._broker._arguments import Arguments, QueueSettings
from hybridkit.dev._broker._dead_letters import DeadLetters
from hybridkit.dev._broker._messages import Message, Reason


@dataclass(slots=True, eq=False)
class Entry:
    """A message in one queue.

    Attributes:
        message: the published message.
        order: its position in the queue.
        expires_at: the time of the event loop when it expires, or None.
        redelivered: whether it was delivered before.
        acquired: how often it was delivered and given back; counted by quorum queues.
        failures: how often it was given back by a reject or the end of its channel.
        is_copy: whether it is a duplicate unknown to the queue.
    """

    message: Message
    order: int
    expires_at: float | None = None
    redelivered: bool = False
    acquired: int = 0
    failures: int = 0
    is_copy: bool = False

    def __lt__(self, other: "Entry") -> bool:
        return self.order < other.order


class QueueConsumer(Protocol):
    """A consumer, as its queue sees it."""

    def can_accept(self) -> bool:
        """Return whether the consumer may have one more message."""
        ...

    def accept(self, entry: Entry) -> None:
        """Deliver a message to the consumer."""
        ...

    def on_cancelled(self) -> None:
        """End the consumer: its queue was deleted, or its consumers were cancelled."""
        ...


class Queue:
    """A queue with its messages and consumers.

    Attributes:
        name: the name, unique in its virtual host.
        settings: the meaning of its arguments.
        arguments: the arguments as declared.
        durable: compared by declarations only, as the whole broker is in memory.
        auto_delete: whether it is deleted with its last consumer.
        owner: the connection that an exclusive queue belongs to, or None.
        unacknowledged: the number of delivered and unsettled messages.
    """

    def __init__(
        self,
        name: str,
        settings: QueueSettings,
        *,
        dead_letters: DeadLetters,
        delete: Callable[["Queue"], None],
        arguments: Arguments,
        durable: bool,
        auto_delete: bool,
        owner: object | None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.arguments = arguments
        self.durable = durable
        self.auto_delete = auto_delete
        self.owner = owner
        self.unacknowledged = 0
        self.is_deleted = False
        self._delete = delete
        self._dead_letters = dead_letters
        self._loop = asyncio.get_running_loop()
        self._published: deque[Entry] = deque()
        self._returned: list[Entry] = []
        self._orders = itertools.count()
        self._bytes = 0
        self._consumers: deque[QueueConsumer] = deque()
        self._exclusive: QueueConsumer | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._disuse: asyncio.TimerHandle | None = None
        self._is_dispatching = False
        self.touch()

    def __repr__(self) -> str:
        return f"Queue({self.name!r}, ready={self.ready}, unacknowledged={self.unacknowledged})"

    @property
    def ready(self) -> int:
        """The number of messages that wait to be delivered."""
        return len(self._published) + len(self._returned)

    @property
    def consumers(self) -> int:
        """The number of consumers."""
        return len(self._consumers)

    # ── messages in and out ──────────────────────────────────────────────────────────────────────

    def put(self, message: Message, *, ttl_seconds: float | None = None) -> bool:
        """Add a message, and return False when the queue is full and refuses it."""
        if self._refuses(message):
            return False
        entry = Entry(message, next(self._orders), redelivered=message.was_delivered)
        lifetimes = [s for s in (self.settings.ttl_seconds, ttl_seconds) if s is not None]
        if lifetimes:
            entry.expires_at = self._loop.time() + min(lifetimes)
        self._published.append(entry)
        self._bytes += len(message.body)
        self.dispatch()
        self._make_room()
        return True

    def get(self) -> Entry | None:
        """Take the first message for a `basic.get`, or None from an empty queue."""
        self.touch()
        self._expire()
        if not self.ready:
            return None
        self.unacknowledged += 1
        return self._pop()

    def dispatch(self) -> None:
        """Deliver while there are messages, and consumers that may have more."""
        if self._is_dispatching:
            return
        self._is_dispatching = True
        try:
            if self._consumers:
                self._expire()
                while self.ready and (consumer := self._next_consumer()):
                    self.unacknowledged += 1
                    consumer.accept(self._pop())
                    self._expire()
        finally:
            self._is_dispatching = False
        self._watch_expiry()

    def settle(self, entry: Entry) -> None:
        """Remove a message that was acknowledged."""
        if not entry.is_copy:
            self.unacknowledged -= 1

    def reject(self, entry: Entry) -> None:
        """Dead-letter a message that was rejected."""
        if not entry.is_copy:
            self.unacknowledged -= 1
            self._dead_letter(entry, "rejected", was_delivered=True)

    def give_back(self, entries: Iterable[Entry], *, failed: bool) -> None:
        """Return messages that were delivered and not settled.

        Args:
            entries: the messages, in the order of their return.
            failed: count the return towards the delivery limit.
        """
        for entry in entries:
            if not (entry.is_copy or self.is_deleted):
                self.unacknowledged -= 1
                self._give_back(entry, failed=failed)
        self.dispatch()
        self._make_room()

    def purge(self) -> int:
        """Drop the messages that wait, and return their number."""
        count = self.ready
        self._published.clear()
        self._returned.clear()
        self._bytes = 0
        return count

    def _give_back(self, entry: Entry, *, failed: bool) -> None:
        entry.redelivered = True
        if self.settings.kind == "quorum":
            entry.acquired += 1
            entry.failures += failed
            limit = self.settings.delivery_limit
            if limit is not None and entry.failures > limit:
                self._dead_letter(entry, "delivery_limit", was_delivered=True)
                return
            # A quorum queue delivers returned messages in the order of their return, before all others.
            entry.order = next(self._orders)
        heapq.heappush(self._returned, entry)
        self._bytes += len(entry.message.body)

    def _pop(self) -> Entry:
        entry = heapq.heappop(self._returned) if self._returned else self._published.popleft()
        self._bytes -= len(entry.message.body)
        return entry

    def _dead_letter(self, entry: Entry, reason: Reason, *, was_delivered: bool | None = None) -> None:
        self._dead_letters.send(
            entry.message, reason, was_delivered=entry.redelivered if was_delivered is None else was_delivered
        )

    # ── room and time ────────────────────────────────────────────────────────────────────────────

    def _refuses(self, message: Message) -> bool:
        if self.settings.overflow == "drop-head" or not self._is_full(1, len(message.body)):
            return False
        if self.settings.overflow == "reject-publish-dlx":
            self._dead_letters.send(message, "maxlen", was_delivered=False)
        return True

    def _is_full(self, more: int = 0, more_bytes: int = 0) -> bool:
        length, size = self.settings.max_length, self.settings.max_bytes
        too_many = length is not None and self.ready + more > length
        return too_many or (size is not None and self._bytes + more_bytes > size)

    def _make_room(self) -> None:
        if self.settings.overflow == "drop-head":
            while self.ready and self._is_full():
                self._dead_letter(self._pop(), "maxlen")

    def _expire(self) -> None:
        while head := self._head():
            if head.expires_at is None or head.expires_at > self._loop.time():
                return
            self._dead_letter(self._pop(), "expired")

    def _watch_expiry(self) -> None:
        """Set the timer to the expiry of the first message: only at the head do messages expire, as in RabbitMQ."""
        head = self._head()
        due = head.expires_at if head else None
        if self._expiry and (due is None or self._expiry.when() != due):
            self._expiry.cancel()
            self._expiry = None
        if due is not None and self._expiry is None:
            self._expiry = self._loop.call_at(due, self._expire_now)

    def _expire_now(self) -> None:
        self._expiry = None
        self._expire()
        self._watch_expiry()

    def _head(self) -> Entry | None:
        if self._returned:
            return self._returned[0]
        return self._published[0] if self._published else None

    def touch(self) -> None:
        """Restart the time without use after which the queue is deleted (`x-expires`)."""
        if self._disuse:
            self._disuse.cancel()
            self._disuse = None
        if self.settings.expires_seconds is not None and not self._consumers and not self.is_deleted:
            self._disuse = self._loop.call_later(self.settings.expires_seconds, self._delete, self)

    # ── consumers ────────────────────────────────────────────────────────────────────────────────

    @property
    def is_exclusively_used(self) -> bool:
        """Whether there is an exclusive consumer."""
        return self._exclusive is not None

    def add(self, consumer: QueueConsumer, *, exclusive: bool) -> None:
        """Add a consumer, and deliver to it."""
        self._consumers.append(consumer)
        if exclusive:
            self._exclusive = consumer
        self.touch()
        self.dispatch()

    def remove(self, consumer: QueueConsumer) -> None:
        """Remove a consumer; its unsettled messages stay unacknowledged."""
        if consumer in self._consumers:
            self._consumers.remove(consumer)
            if self._exclusive is consumer:
                self._exclusive = None
            self.touch()
            if self.auto_delete and not self._consumers:
                self._delete(self)
            self.dispatch()

    def cancel_consumers(self) -> int:
        """Cancel all consumers, and return their number."""
        consumers = list(self._consumers)
        for consumer in consumers:
            consumer.on_cancelled()
            self.remove(consumer)
        return len(consumers)

    def close(self) -> None:
        """End the queue: drop its messages and cancel its consumers."""
        self.is_deleted = True
        self.purge()
        self._watch_expiry()
        while self._consumers:
            self._consumers.popleft().on_cancelled()
        self.touch()
        self._dead_letters.close()

    def _next_consumer(self) -> QueueConsumer | None:
        if self.settings.has_single_active_consumer:
            first = self._consumers[0] if self._consumers else None
            return first if first and first.can_accept() else None
        for _ in range(len(self._consumers)):
            consumer = self._consumers[0]
            self._consumers.rotate(-1)
            if consumer.can_accept():
                return consumer
        return None
