"""What the broker can be told to get wrong, for tests of what a client makes of it."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from hybridkit.dev._broker._refusals import reply_text

if TYPE_CHECKING:
    from hybridkit.dev._broker._broker import DevelopmentBroker
    from hybridkit.dev._broker._channel import Channel
    from hybridkit.dev._broker._connection import Connection
    from hybridkit.dev._broker._deliveries import Consumer
    from hybridkit.dev._broker._queues import Entry

Direction = Literal["to_server", "to_client"]


class BrokerFaults:
    """Faults of a `DevelopmentBroker`, for all its connections, until they are used up or `clear` ends them.

    Call everything from the event loop in which the broker runs.
    """

    def __init__(self, broker: "DevelopmentBroker") -> None:
        self.is_frozen = False
        self.blocked_because: str | None = None
        self._broker = broker
        self._unconfirmed = 0
        self._nacks = 0
        self._delay_seconds = 0.0
        self._twins = 0
        self._reorder = 0
        self._held: list[tuple[Consumer, Entry]] = []
        self._cuts: dict[Direction, int] = {}
        self._passed: dict[tuple[Connection, Direction], int] = {}

    def __repr__(self) -> str:
        return f"BrokerFaults(is_frozen={self.is_frozen}, blocked_because={self.blocked_because!r})"

    # ── publishers ───────────────────────────────────────────────────────────────────────────────

    def drop_confirms(self, count: int) -> None:
        """Store the next publishes and never confirm them."""
        self._unconfirmed = count

    def delay_confirms(self, seconds: float) -> None:
        """Confirm each publish that much later."""
        self._delay_seconds = seconds

    def nack_publishes(self, count: int) -> None:
        """Refuse the next publishes with `basic.nack`; they reach no queue."""
        self._nacks = count

    def block(self, reason: str = "low on memory") -> None:
        """Raise an alarm: who publishes is told (`connection.blocked`), and nothing more is read from it.

        As in RabbitMQ, connections that don't publish go on, and the publish that is told waits unread.
        """
        self.blocked_because = reason

    def unblock(self) -> None:
        """End the alarm: `connection.unblocked`, and what has waited is read."""
        self.blocked_because = None
        for connection in self._broker.open_connections:
            connection.unblock()

    # ── consumers ────────────────────────────────────────────────────────────────────────────────

    def duplicate_deliveries(self, count: int) -> None:
        """Deliver each of the next messages twice, with a delivery tag each."""
        self._twins = count

    def reorder_deliveries(self, count: int) -> None:
        """Hold back the next messages until there are that many, and deliver them in reverse order."""
        self._release()
        self._reorder = count

    def cancel_consumers(self, queue: str, *, virtual_host: str = "/") -> int:
        """Cancel a queue's consumers with `basic.cancel`, as a fail-over does; how many they were."""
        found = self._broker.virtual_host(virtual_host).queues.get(queue)
        return found.cancel_consumers() if found else 0

    # ── channels and connections ─────────────────────────────────────────────────────────────────

    def close_channels(self, code: int = 406, text: str = "a fault", *, queue: str | None = None) -> int:
        """Close channels with that code; how many they were.

        Args:
            code: AMQP's reply code.
            text: the reply text.
            queue: only those that consume from a queue of that name.
        """
        channels = list(self._channels(queue))
        for channel in channels:
            channel.connection.close_channel(channel, code, reply_text(code, text))
        return len(channels)

    def close_connections(self, code: int = 320, text: str = "a fault") -> int:
        """Close all connections with that code, as `rabbitmqctl close_all_connections` does; how many they were."""
        connections = self._broker.open_connections
        for connection in connections:
            connection.close(code, reply_text(code, text))
        return len(connections)

    def cut(self, direction: Direction, *, at_byte: int) -> None:
        """End each connection when that many more bytes went in that direction; exactly those arrive.

        Args:
            direction: `to_server` or `to_client`; each can have its own cut.
            at_byte: how many bytes pass, counted per connection from now, or from its start if it comes later.
        """
        self._cuts[direction] = at_byte
        self._passed = {key: passed for key, passed in self._passed.items() if key[1] != direction}

    def freeze(self) -> None:
        """Read and write nothing and close nothing, as under SIGSTOP; new connections wait."""
        self.is_frozen = True
        for connection in self._broker.open_connections:
            connection.freeze()

    def thaw(self) -> None:
        """Go on where it was frozen."""
        self.is_frozen = False
        for connection in self._broker.open_connections:
            connection.thaw()

    def clear(self) -> None:
        """End every fault; what was held back is delivered."""
        self._unconfirmed = self._nacks = self._twins = self._reorder = 0
        self._delay_seconds = 0.0
        self._cuts.clear()
        self._passed.clear()
        self.thaw()
        self.unblock()
        self._release()

    # ── asked by the broker ──────────────────────────────────────────────────────────────────────

    @property
    def concern_confirms(self) -> bool:
        """Whether a confirm may have to be treated in another way."""
        return bool(self._unconfirmed or self._nacks or self._delay_seconds)

    @property
    def concern_deliveries(self) -> bool:
        """Whether a delivery may have to be treated in another way."""
        return bool(self._twins or self._reorder)

    def take_nack(self) -> bool:
        """Whether this publish is to be refused."""
        if not self._nacks:
            return False
        self._nacks -= 1
        return True

    def take_confirm(self, channel: "Channel", tag: int, *, is_ack: bool) -> bool:
        """Whether this confirm is not to be sent now."""
        if not is_ack:
            return False
        if self._unconfirmed:
            self._unconfirmed -= 1
            return True
        if not self._delay_seconds:
            return False
        asyncio.get_running_loop().call_later(self._delay_seconds, channel.confirm_late, tag)
        return True

    def deliver(self, consumer: "Consumer", entry: "Entry") -> None:
        """Deliver it, in the way that was asked for."""
        if self._reorder:
            self._held.append((consumer, entry))
            if len(self._held) >= self._reorder:
                self._reorder = 0
                self._release()
            return
        consumer.channel.deliveries.send(consumer, entry)
        if self._twins:
            self._twins -= 1
            consumer.take_twin(entry)

    def passing(self, connection: "Connection", direction: Direction, data: bytes) -> bytes:
        """What of these bytes gets through."""
        limit = self._cuts.get(direction)
        if limit is None:
            return data
        passed = self._passed.get((connection, direction), 0)
        self._passed[connection, direction] = passed + len(data)
        return data[: max(limit - passed, 0)]

    def _release(self) -> None:
        held, self._held = self._held, []
        for consumer, entry in reversed(held):
            if consumer.channel.is_closing or consumer.tag not in consumer.channel.deliveries.consumers:
                consumer.queue.give_back([entry], failed=False)
            else:
                consumer.channel.deliveries.send(consumer, entry)

    def _channels(self, queue: str | None) -> Iterable["Channel"]:
        for connection in self._broker.open_connections:
            for channel in connection.channels:
                consumers = channel.deliveries.consumers.values()
                if queue is None or any(consumer.queue.name == queue for consumer in consumers):
                    yield channel
