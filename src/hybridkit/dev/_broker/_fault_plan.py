"""The faults that are due, looked up by connections, channels and consumers where each of them strikes."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from hybridkit.dev._broker._queues import Entry

Direction = Literal["to_server", "to_client"]


class Recipient(Protocol):
    """A consumer whose deliveries a fault changes."""

    def deliver(self, entry: Entry) -> None:
        """Deliver a message as if there were no fault."""
        ...

    def deliver_copy(self, entry: Entry) -> None:
        """Deliver a message once more, without the knowledge of its queue."""
        ...

    def deliver_late(self, entry: Entry) -> None:
        """Deliver a message that was held back, or give it back to its queue when the consumer has ended."""
        ...


@dataclass(slots=True, kw_only=True)
class FaultPlan:
    """The faults of one broker that have been asked for and are not used up.

    Attributes:
        is_frozen: whether reading and writing have stopped.
        blocked_because: the reason of the alarm that publishers are told of, or None without an alarm.
        unconfirmed: the number of next publishes that are never confirmed.
        nacks: the number of next publishes that are refused.
        confirm_delay_seconds: the delay of each confirm.
        duplicates: the number of next messages that are delivered twice.
        reorder: the number of messages that are held back and then delivered in reverse order.
    """

    is_frozen: bool = False
    blocked_because: str | None = None
    unconfirmed: int = 0
    nacks: int = 0
    confirm_delay_seconds: float = 0.0
    duplicates: int = 0
    reorder: int = 0
    _held_back: list[tuple[Recipient, Entry]] = field(default_factory=list[tuple[Recipient, Entry]])
    _cuts: dict[Direction, int] = field(default_factory=dict[Direction, int])
    _passed: dict[tuple[object, Direction], int] = field(default_factory=dict[tuple[object, Direction], int])

    def cut(self, direction: Direction, at_byte: int) -> None:
        """End each connection after that many more bytes in that direction."""
        self._cuts[direction] = at_byte
        self._passed = {key: passed for key, passed in self._passed.items() if key[1] != direction}

    def clear(self) -> None:
        """Forget every fault but a freeze and an alarm, which connections have to be told to end."""
        self.unconfirmed = self.nacks = self.duplicates = self.reorder = 0
        self.confirm_delay_seconds = 0.0
        self._cuts.clear()
        self._passed.clear()

    @property
    def concern_confirms(self) -> bool:
        """Whether any fault of confirms is left."""
        return bool(self.unconfirmed or self.nacks or self.confirm_delay_seconds)

    @property
    def concern_deliveries(self) -> bool:
        """Whether any fault of deliveries is left."""
        return bool(self.duplicates or self.reorder)

    def take_nack(self) -> bool:
        """Return whether the publish at hand is refused, and count it."""
        if not self.nacks:
            return False
        self.nacks -= 1
        return True

    def take_confirm(self, tag: int, confirm_late: Callable[[int], None], *, is_ack: bool) -> bool:
        """Return whether a confirm is dropped or put off, and count it.

        Args:
            tag: the publish that is confirmed.
            confirm_late: called with the tag when a confirm that was put off is due.
            is_ack: whether the confirm is an acknowledgement; faults leave the others alone.
        """
        if not is_ack:
            return False
        if self.unconfirmed:
            self.unconfirmed -= 1
            return True
        if not self.confirm_delay_seconds:
            return False
        asyncio.get_running_loop().call_later(self.confirm_delay_seconds, confirm_late, tag)
        return True

    def deliver(self, consumer: Recipient, entry: Entry) -> None:
        """Deliver a message once, twice or later, as the faults demand."""
        if self.reorder:
            self._held_back.append((consumer, entry))
            if len(self._held_back) >= self.reorder:
                self.reorder = 0
                self.release()
            return
        consumer.deliver(entry)
        if self.duplicates:
            self.duplicates -= 1
            consumer.deliver_copy(entry)

    def release(self) -> None:
        """Deliver the messages that were held back, the last one first."""
        held_back, self._held_back = self._held_back, []
        for consumer, entry in reversed(held_back):
            consumer.deliver_late(entry)

    def passing(self, connection: object, direction: Direction, data: bytes) -> bytes:
        """Return the beginning of some bytes that a cut lets through, all of them where there is no cut."""
        limit = self._cuts.get(direction)
        if limit is None:
            return data
        passed = self._passed.get((connection, direction), 0)
        self._passed[connection, direction] = passed + len(data)
        return data[: max(limit - passed, 0)]
