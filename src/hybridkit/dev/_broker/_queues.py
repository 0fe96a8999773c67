"""Queues: messages in order, until somebody takes them, they expire, or there is no more room.

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
        message: what was published.
        order: its place in the queue.
        expires_at: in the loop's time, or None.
        redelivered: somebody has had it before.
        acquired: how often somebody had it and gave it back (quorum queues count).
        failures: how often because it was rejected, or its channel ended.
        is_copy: a copy that the queue knows nothing of.
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


class Taker(Protocol):
    """A consumer, as its queue sees it."""

    def can_take(self) -> bool:
        """Whether it may be given one more."""
        ...

    def take(self, entry: Entry) -> None:
        """Deliver it."""
        ...

    def cancelled(self) -> None:
        """The queue has gone."""
        ...


class Queue:
    """Holds messages and hands them out.

    Attributes:
        name: unique in its virtual host.
        settings: what its arguments mean.
        arguments: as declared.
        durable: only compared: everything here is lost with the broker.
        auto_delete: it goes with its last consumer.
        owner: the connection that it belongs to, of an exclusive queue.
        unacknowledged: how many are delivered and not settled.
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
        self._fresh: deque[Entry] = deque()
        self._returned: list[Entry] = []
        self._orders = itertools.count()
        self._bytes = 0
        self._takers: deque[Taker] = deque()
        self._exclusive: Taker | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._disuse: asyncio.TimerHandle | None = None
        self._is_dispatching = False
        self.touch()

    def __repr__(self) -> str:
        return f"Queue({self.name!r}, ready={self.ready}, unacknowledged={self.unacknowledged})"

    @property
    def ready(self) -> int:
        """How many wait to be delivered."""
        return len(self._fresh) + len(self._returned)

    @property
    def consumers(self) -> int:
        """How many consumers it has."""
        return len(self._takers)

    # ── messages in and out ──────────────────────────────────────────────────────────────────────

    def put(self, message: Message, *, ttl_seconds: float | None = None) -> bool:
        """Take a message; False where it is full and refuses."""
        if self._refuses(message):
            return False
        entry = Entry(message, next(self._orders), redelivered=message.was_delivered)
        lifetimes = [s for s in (self.settings.ttl_seconds, ttl_seconds) if s is not None]
        if lifetimes:
            entry.expires_at = self._loop.time() + min(lifetimes)
        self._fresh.append(entry)
        self._bytes += len(message.body)
        self.dispatch()
        self._make_room()
        return True

    def get(self) -> Entry | None:
        """Hand out the first one (`basic.get`); it is unacknowledged from then on."""
        self.touch()
        self._expire()
        if not self.ready:
            return None
        self.unacknowledged += 1
        return self._pop()

    def dispatch(self) -> None:
        """Deliver as long as there are messages and consumers that may have more."""
        if self._is_dispatching:
            return
        self._is_dispatching = True
        try:
            if self._takers:
                self._expire()
                while self.ready and (taker := self._next_taker()):
                    self.unacknowledged += 1
                    taker.take(self._pop())
                    self._expire()
        finally:
            self._is_dispatching = False
        self._watch_expiry()

    def settle(self, entry: Entry) -> None:
        """It was acknowledged."""
        if not entry.is_copy:
            self.unacknowledged -= 1

    def reject(self, entry: Entry) -> None:
        """Somebody doesn't want it, and nobody else shall have it."""
        if not entry.is_copy:
            self.unacknowledged -= 1
            self._bury(entry, "rejected", was_delivered=True)

    def give_back(self, entries: Iterable[Entry], *, failed: bool) -> None:
        """Somebody had them and didn't settle them: they go to their old places.

        Args:
            entries: in the order in which they come back.
            failed: it counts for the delivery limit.
        """
        for entry in entries:
            if not (entry.is_copy or self.is_deleted):
                self.unacknowledged -= 1
                self._give_back(entry, failed=failed)
        self.dispatch()
        self._make_room()

    def purge(self) -> int:
        """Drop all that wait; how many they were."""
        count = self.ready
        self._fresh.clear()
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
                self._bury(entry, "delivery_limit", was_delivered=True)
                return
            # A quorum queue hands them out again in the order in which they came back, before all others.
            entry.order = next(self._orders)
        heapq.heappush(self._returned, entry)
        self._bytes += len(entry.message.body)

    def _pop(self) -> Entry:
        entry = heapq.heappop(self._returned) if self._returned else self._fresh.popleft()
        self._bytes -= len(entry.message.body)
        return entry

    def _bury(self, entry: Entry, reason: Reason, *, was_delivered: bool | None = None) -> None:
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
                self._bury(self._pop(), "maxlen")

    def _expire(self) -> None:
        while head := self._head():
            if head.expires_at is None or head.expires_at > self._loop.time():
                return
            self._bury(self._pop(), "expired")

    def _watch_expiry(self) -> None:
        """Wake up when the first one expires: only those at the head do, as in RabbitMQ."""
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
        return self._fresh[0] if self._fresh else None

    def touch(self) -> None:
        """It is in use: it expires (`x-expires`) only that long after the last consumer, get or declaration."""
        if self._disuse:
            self._disuse.cancel()
            self._disuse = None
        if self.settings.expires_seconds is not None and not self._takers and not self.is_deleted:
            self._disuse = self._loop.call_later(self.settings.expires_seconds, self._delete, self)

    # ── consumers ────────────────────────────────────────────────────────────────────────────────

    @property
    def is_exclusively_used(self) -> bool:
        """Whether a consumer wants to be the only one."""
        return self._exclusive is not None

    def add(self, taker: Taker, *, exclusive: bool) -> None:
        """Deliver to that consumer too."""
        self._takers.append(taker)
        if exclusive:
            self._exclusive = taker
        self.touch()
        self.dispatch()

    def remove(self, taker: Taker) -> None:
        """Deliver nothing more to that consumer; what it has stays unacknowledged."""
        if taker in self._takers:
            self._takers.remove(taker)
            if self._exclusive is taker:
                self._exclusive = None
            self.touch()
            if self.auto_delete and not self._takers:
                self._delete(self)
            self.dispatch()

    def cancel_consumers(self) -> int:
        """Send them away; how many they were."""
        takers = list(self._takers)
        for taker in takers:
            taker.cancelled()
            self.remove(taker)
        return len(takers)

    def close(self) -> None:
        """End it: nothing is delivered or expires any more."""
        self.is_deleted = True
        self.purge()
        self._watch_expiry()
        while self._takers:
            self._takers.popleft().cancelled()
        self.touch()
        self._dead_letters.close()

    def _next_taker(self) -> Taker | None:
        if self.settings.has_single_active_consumer:
            first = self._takers[0] if self._takers else None
            return first if first and first.can_take() else None
        for _ in range(len(self._takers)):
            taker = self._takers[0]
            self._takers.rotate(-1)
            if taker.can_take():
                return taker
        return None
