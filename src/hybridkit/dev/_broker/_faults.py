"""Faults on demand: how tests make the broker misbehave."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from hybridkit.dev._broker._channel import Channel
from hybridkit.dev._broker._connection import Connection
from hybridkit.dev._broker._fault_plan import Direction, FaultPlan
from hybridkit.dev._broker._refusals import reply_text
from hybridkit.dev._broker._virtual_host import VirtualHost


class FaultyBroker(Protocol):
    """The broker that faults act on."""

    @property
    def open_connections(self) -> Sequence[Connection]:
        """The connections of its clients."""
        ...

    def virtual_host(self, name: str) -> VirtualHost:
        """Return the virtual host of that name."""
        ...


class BrokerFaults:
    """The faults of a `DevelopmentBroker`. Each applies to all connections, until it is used up or `clear` ends it.

    Call the methods from the event loop that the broker runs in.
    """

    def __init__(self, broker: FaultyBroker, plan: FaultPlan) -> None:
        self._broker = broker
        self._plan = plan

    def __repr__(self) -> str:
        return f"BrokerFaults(is_frozen={self.is_frozen}, blocked_because={self.blocked_because!r})"

    @property
    def is_frozen(self) -> bool:
        """Whether the broker neither reads nor writes."""
        return self._plan.is_frozen

    @property
    def blocked_because(self) -> str | None:
        """The reason of the alarm, or None without an alarm."""
        return self._plan.blocked_because

    # ── publishers ───────────────────────────────────────────────────────────────────────────────

    def drop_confirms(self, count: int) -> None:
        """Accept the next publishes and never confirm them."""
        self._plan.unconfirmed = count

    def delay_confirms(self, seconds: float) -> None:
        """Confirm each publish that many seconds later."""
        self._plan.confirm_delay_seconds = seconds

    def nack_publishes(self, count: int) -> None:
        """Refuse the next publishes with `basic.nack`; they reach no queue."""
        self._plan.nacks = count

    def block(self, reason: str = "low on memory") -> None:
        """Raise an alarm: a connection that publishes gets `connection.blocked`, and nothing more is read from it.

        As in RabbitMQ, connections that do not publish go on, and the publish that is told waits unread.
        """
        self._plan.blocked_because = reason

    def unblock(self) -> None:
        """End the alarm; send `connection.unblocked`, and read what has waited."""
        self._plan.blocked_because = None
        for connection in self._broker.open_connections:
            connection.unblock()

    # ── consumers ────────────────────────────────────────────────────────────────────────────────

    def duplicate_deliveries(self, count: int) -> None:
        """Deliver each of the next messages twice, under two delivery tags."""
        self._plan.duplicates = count

    def reorder_deliveries(self, count: int) -> None:
        """Hold back that many messages, and then deliver them in reverse order."""
        self._plan.release()
        self._plan.reorder = count

    def cancel_consumers(self, queue: str, *, virtual_host: str = "/") -> int:
        """Cancel the consumers of a queue with `basic.cancel`, as a fail-over does; return their number."""
        found = self._broker.virtual_host(virtual_host).queues.get(queue)
        return found.cancel_consumers() if found else 0

    # ── channels and connections ─────────────────────────────────────────────────────────────────

    def close_channels(self, code: int = 406, text: str = "a fault", *, queue: str | None = None) -> int:
        """Close channels with a reply code, and return their number.

        Args:
            code: AMQP's reply code.
            text: the reply text.
            queue: close only the channels that consume from this queue.
        """
        channels = list(self._channels(queue))
        for connection, channel in channels:
            connection.close_channel(channel, code, reply_text(code, text))
        return len(channels)

    def close_connections(self, code: int = 320, text: str = "a fault") -> int:
        """Close all connections with a reply code, and return their number.

        `rabbitmqctl close_all_connections` does the same on RabbitMQ.
        """
        connections = self._broker.open_connections
        for connection in connections:
            connection.close(code, reply_text(code, text))
        return len(connections)

    def cut(self, direction: Direction, *, at_byte: int) -> None:
        """End each connection after that many more bytes in one direction; exactly those bytes arrive.

        Args:
            direction: `to_server` or `to_client`; each has a limit of its own.
            at_byte: the number of bytes that pass, counted per connection from now or from its later start.
        """
        self._plan.cut(direction, at_byte)

    def freeze(self) -> None:
        """Stop reading, writing and closing, as a process under SIGSTOP does; new connections wait."""
        self._plan.is_frozen = True
        for connection in self._broker.open_connections:
            connection.freeze()

    def thaw(self) -> None:
        """Continue after a freeze."""
        self._plan.is_frozen = False
        for connection in self._broker.open_connections:
            connection.thaw()

    def clear(self) -> None:
        """End every fault, and deliver the messages that were held back."""
        self._plan.clear()
        self.thaw()
        self.unblock()
        self._plan.release()

    def _channels(self, queue: str | None) -> Iterable[tuple[Connection, Channel]]:
        for connection in self._broker.open_connections:
            for channel in connection.channels:
                consumers = channel.deliveries.consumers.values()
                if queue is None or any(consumer.queue.name == queue for consumer in consumers):
                    yield connection, channel
