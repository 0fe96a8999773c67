"""Order per key: messages of one key run one after another, and messages of different keys beside each other.

The queue has a single active consumer, so one process gets all messages, in order. A message becomes ready when the
message before it with the same key is done. A message that has to wait (for its next attempt, or for another process
that still works on it) waits in front of its key's messages, and occupies no handler.
https://www.rabbitmq.com/docs/consumers#single-active-consumer
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

from hybridkit.errors import PayloadError, UnknownEventVersionError
from hybridkit.events import Event, registry
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.observability import class_name, get_logger

_log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class _KeyQueue:
    """The messages of one key that wait behind the one that is ready, runs or is to be retried.

    Attributes:
        waiting: the messages behind it, in order.
        retrying: the message itself while it waits for its next run.
        timer: of that wait.
    """

    waiting: deque[Delivery] = field(default_factory=deque[Delivery])
    retrying: Delivery | None = None
    timer: asyncio.TimerHandle | None = None


class KeyedBacklog:
    """A backlog that gives out one message of each key at a time."""

    def __init__(self) -> None:
        self._incoming: deque[Delivery] = deque()  # not read yet
        self._ready: deque[Delivery] = deque()
        self._filled = asyncio.Event()
        self._keys: dict[str, _KeyQueue] = {}

    def __repr__(self) -> str:
        return f"KeyedBacklog({len(self)} deliveries, {len(self._keys)} keys)"

    def __len__(self) -> int:
        behind = sum(len(queue.waiting) + (queue.retrying is not None) for queue in self._keys.values())
        return len(self._incoming) + len(self._ready) + behind

    def longest_wait_seconds(self) -> float:
        """Return for how long the oldest delivery that waits has done so; 0 where none does."""
        behind = (delivery for queue in self._keys.values() for delivery in queue.waiting)
        retrying = (queue.retrying for queue in self._keys.values() if queue.retrying is not None)
        waiting = chain(self._incoming, self._ready, behind, retrying)
        return max((delivery.age_seconds() for delivery in waiting), default=0.0)

    def put(self, delivery: Delivery) -> None:
        """Append a delivery unread: this runs while the socket is read, where a message's content can do no harm."""
        self._incoming.append(delivery)
        self._filled.set()

    async def get(self) -> Delivery:
        """Return the delivery that has been ready for the longest time, as soon as there is one."""
        while not self._ready:
            if self._incoming:
                self._sort_in(self._incoming.popleft())
                if not self._ready:
                    await asyncio.sleep(0)  # many messages behind one key are read in pieces
            else:
                self._filled.clear()
                await self._filled.wait()
        return self._ready.popleft()

    def retry_later(self, key: str, delivery: Delivery, seconds: float) -> None:
        """Keep a delivery that has just run in front of its key's messages, and make it ready again after a time."""
        queue = self._keys[key]
        queue.retrying = delivery
        queue.timer = asyncio.get_running_loop().call_later(seconds, self._end_wait, queue, delivery)

    def done(self, delivery: Delivery) -> None:
        """Make the next message of the delivery's key ready, unless the delivery itself waits for its next run."""
        if delivery.key is None:
            return
        queue = self._keys[delivery.key]
        if queue.retrying is None:
            self._release_next(delivery.key, queue)

    def stop(self) -> None:
        """Cancel all waits for a next run; nothing becomes ready by itself any more."""
        for queue in self._keys.values():
            if queue.timer is not None:
                queue.timer.cancel()

    def _sort_in(self, delivery: Delivery) -> None:
        """Append a delivery to its key's messages; one without a key, or whose key is free, is ready."""
        key = delivery.key = key_of(delivery)
        if key is None:
            self._make_ready(delivery)
        elif (queue := self._keys.get(key)) is None:
            self._keys[key] = _KeyQueue()
            self._make_ready(delivery)
        else:
            queue.waiting.append(delivery)
            # The channel of the message in front has closed: the broker delivers it again, and it is among these now.
            if queue.retrying is not None and not queue.retrying.is_ours:
                self._release_next(key, queue)

    def _end_wait(self, queue: _KeyQueue, delivery: Delivery) -> None:
        queue.retrying = queue.timer = None
        self._make_ready(delivery)

    def _release_next(self, key: str, queue: _KeyQueue) -> None:
        """Make the key's next message ready that is still ours; without one the key is free."""
        if queue.timer is not None:
            queue.timer.cancel()
        queue.retrying = queue.timer = None
        while queue.waiting:
            following = queue.waiting.popleft()
            if following.is_ours:
                self._make_ready(following)
                return
        del self._keys[key]

    def _make_ready(self, delivery: Delivery) -> None:
        self._ready.append(delivery)
        self._filled.set()


def key_of(delivery: Delivery) -> str | None:
    """Return the value by which a message is kept in order; None where it can't be read or its type has no key."""
    try:
        message = delivery.read().data
        return message.ordering_key if isinstance(message, Event) else None
    except UnknownEventVersionError as error:
        return _raw_key(delivery.wire().get("data"), error.event_type)
    except PayloadError:
        return None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a declaration's own code, such as the `__str__` of its key's type
        _log.error("a message has no key that can be read, and is not in order", error=class_name(error))
        return None


def _raw_key(data: Any, event_type: str) -> str | None:
    """Return the key of an unknown version, where it has its key in the same member as the newest known version."""
    newest = registry.newest(event_type)
    name = newest.event_key if newest is not None and issubclass(newest, Event) else None
    if name is None or not isinstance(data, dict):
        return None
    value = cast("dict[str, Any]", data).get(name)
    return None if value is None else str(value)
