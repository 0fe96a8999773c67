"""Order per key: messages of one key run one after another, and keys beside each other.

The queue has a single active consumer, so one process gets all messages, in order. There each key is a line: the next
message of it runs when the one before is done with. A message that has to wait (for its next attempt, for another
process that still works on it) rests at the head of its line, without a place among the running handlers.
https://www.rabbitmq.com/docs/consumers#single-active-consumer
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

from hybridkit.errors import PayloadError, UnknownEventVersionError
from hybridkit.events import Event, registry
from hybridkit.messaging._consuming._delivery import Delivery
from hybridkit.observability import class_name, get_logger

_log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Line:
    """Who waits behind the message of a key that runs or rests."""

    waiting: deque[Delivery] = field(default_factory=deque[Delivery])
    resting: Delivery | None = None
    timer: asyncio.TimerHandle | None = None


class KeyedBacklog:
    """A backlog that gives out one message of each key at a time."""

    def __init__(self) -> None:
        self._incoming: deque[Delivery] = deque()  # not read yet
        self._ready: deque[Delivery] = deque()
        self._filled = asyncio.Event()
        self._lines: dict[str, _Line] = {}

    def __repr__(self) -> str:
        return f"KeyedBacklog({len(self)} deliveries, {len(self._lines)} keys)"

    def __len__(self) -> int:
        behind = sum(len(line.waiting) + (line.resting is not None) for line in self._lines.values())
        return len(self._incoming) + len(self._ready) + behind

    def put(self, delivery: Delivery) -> None:
        """Keep it, unread: this is called while the socket is read, where a message's content can do no harm."""
        self._incoming.append(delivery)
        self._filled.set()

    def _line_up(self, delivery: Delivery) -> None:
        """Append it to the line of its key; what has no key stands in none."""
        key = delivery.key = key_of(delivery)
        if key is None:
            self._give_out(delivery)
        elif (line := self._lines.get(key)) is None:
            self._lines[key] = _Line()
            self._give_out(delivery)
        else:
            line.waiting.append(delivery)
            if line.resting is not None and not line.resting.is_ours:  # the same message is in the line again
                self._go_on(key, line)

    async def get(self) -> Delivery:
        """Take the message that has been ready for the longest time."""
        while not self._ready:
            if self._incoming:
                self._line_up(self._incoming.popleft())
                if not self._ready:
                    await asyncio.sleep(0)  # a long line is read in pieces
            else:
                self._filled.clear()
                await self._filled.wait()
        return self._ready.popleft()

    def rest(self, key: str, delivery: Delivery, seconds: float) -> None:
        """Have a running message wait at the head of its line, and run again after that time."""
        line = self._lines[key]
        line.resting = delivery
        line.timer = asyncio.get_running_loop().call_later(seconds, self._wake, line, delivery)

    def done(self, delivery: Delivery) -> None:
        """Go on with the next of its key, unless that one only rests."""
        if delivery.key is None:
            return
        line = self._lines[delivery.key]
        if line.resting is None:
            self._go_on(delivery.key, line)

    def stop(self) -> None:
        """Wake nobody any more."""
        for line in self._lines.values():
            if line.timer is not None:
                line.timer.cancel()

    def _wake(self, line: _Line, delivery: Delivery) -> None:
        line.resting = line.timer = None
        self._give_out(delivery)

    def _go_on(self, key: str, line: _Line) -> None:
        if line.timer is not None:
            line.timer.cancel()
        line.resting = line.timer = None
        while line.waiting:
            following = line.waiting.popleft()
            if following.is_ours:
                self._give_out(following)
                return
        del self._lines[key]

    def _give_out(self, delivery: Delivery) -> None:
        self._ready.append(delivery)
        self._filled.set()


def key_of(delivery: Delivery) -> str | None:
    """The value that keeps a message in order; None where nothing can be read or its type has no key."""
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
    """The key of a version that is not known here, should it be in the same place."""
    newest = registry.newest(event_type)
    name = newest.event_key if newest is not None and issubclass(newest, Event) else None
    if name is None or not isinstance(data, dict):
        return None
    value = cast("dict[str, Any]", data).get(name)
    return None if value is None else str(value)
