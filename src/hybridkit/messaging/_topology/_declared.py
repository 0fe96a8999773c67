"""Exchanges, queues and bindings as values, and those that hybridkit declares (RabbitMQ 3.10 to 4.x, no plugin).

```
hk.events         topic                        event type -> the queues of consumers
<consumer>        quorum queue                 after 20 failed deliveries -> hk.dlx, at least once
hk.dlx            direct                       <consumer> -> <consumer>.dlq
hk.delay.L<n>     topic exchange and queue     waits 2^n s, then goes on to level n-1, finally to hk.delay.deliver
hk.delay.deliver  topic                        17 bits and the queue's name -> that queue
hk.unrouted       fanout and queue             messages for which hk.dlx and hk.delay.deliver find no queue
```

A delay is written in binary into the routing key, highest bit first, one word per bit; at level n a 1 leads through the
queue and a 0 past it, so a power of two costs one queue. After NServiceBus:
https://docs.particular.net/transports/rabbitmq/delayed-delivery
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from aiormq.abc import AbstractChannel

from hybridkit.errors import DeclarationError

EVENT_EXCHANGE: Final = "hk.events"
DEAD_LETTER_EXCHANGE: Final = "hk.dlx"
DELAY_DELIVER_EXCHANGE: Final = "hk.delay.deliver"
UNROUTED: Final = "hk.unrouted"

DELAY_LEVELS: Final = 17
MAX_DELAY_SECONDS: Final = 2**DELAY_LEVELS - 1
DELIVERY_LIMIT: Final = 20
ORDERED_DELIVERY_LIMIT: Final = 1000
"""A queue in order gets its unacknowledged messages back each time that waiting takes too long, and that counts."""

# A queue that nothing consumes still counts the deliveries to tools that look into it, and RabbitMQ 4 gives it a limit
# of 20 where none is declared. (-1 for "none" drops at the second delivery on 3.10.)
# https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
NO_DELIVERY_LIMIT: Final = 1_000_000_000


type Value = str | int | bool | None
"""The value of a property; None means that it isn't set."""

_FLAGS: Final = frozenset({"type", "durable", "auto_delete", "internal"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A durable exchange.

    Attributes:
        name: the exchange's name.
        kind: its type.
        alternate: the exchange that gets the messages that no binding matches.
    """

    name: str
    kind: Literal["topic", "direct", "fanout"]
    alternate: str | None = None

    @property
    def properties(self) -> dict[str, Value]:
        """All that makes another declaration of it equivalent or not, flags and arguments together."""
        return {
            "type": self.kind,
            "durable": True,
            "auto_delete": False,
            "internal": False,
            "alternate-exchange": self.alternate,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A durable quorum queue.

    Attributes:
        name: the queue's name.
        arguments: the `x-` arguments, without the queue type.
    """

    name: str
    arguments: Mapping[str, str | int] = field(default_factory=dict[str, str | int], hash=False)

    @property
    def properties(self) -> dict[str, Value]:
        """All that makes another declaration of it equivalent or not, flags and arguments together."""
        return {"durable": True, "auto_delete": False, "x-queue-type": "quorum", **self.arguments}


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A binding of a queue or an exchange to an exchange.

    Attributes:
        source: the name of the exchange that messages come from.
        target: the name of the queue or exchange that gets them.
        key: the routing key, or a pattern for it.
        to_exchange: whether the target is an exchange.
    """

    source: str
    target: str
    key: str = ""
    to_exchange: bool = False

    def __str__(self) -> str:
        """Return a short form, in which `*{17}.a` stands for 17 stars."""
        key = re.sub(r"(\*\.){3,}", lambda stars: f"*{{{len(stars[0]) // 2}}}.", self.key)
        return f"{self.source} -> {self.target}" + (f" ({key})" if key else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Exchanges, queues and bindings in the order of their declaration; `+` joins two, without duplicates."""

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = ()
    bindings: tuple[Binding, ...] = ()

    def __add__(self, other: "Topology") -> "Topology":
        return Topology(
            exchanges=_once(self.exchanges + other.exchanges),
            queues=_once(self.queues + other.queues),
            bindings=_once(self.bindings + other.bindings),
        )


def _once[T](values: tuple[T, ...]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))


def shared_topology() -> Topology:
    """Return what all services share: events, dead letters, delay levels, and the queue of unrouted messages."""
    # hk.events has no alternate exchange: with one, an event that no queue wants is confirmed and never returned.
    # https://www.rabbitmq.com/docs/ae
    basics = Topology(
        exchanges=(
            Exchange(name=UNROUTED, kind="fanout"),
            Exchange(name=EVENT_EXCHANGE, kind="topic"),
            Exchange(name=DEAD_LETTER_EXCHANGE, kind="direct", alternate=UNROUTED),
            Exchange(name=DELAY_DELIVER_EXCHANGE, kind="topic", alternate=UNROUTED),
        ),
        queues=(Queue(name=UNROUTED, arguments={"x-delivery-limit": NO_DELIVERY_LIMIT}),),
        bindings=(Binding(source=UNROUTED, target=UNROUTED),),
    )
    for level in range(DELAY_LEVELS):
        basics += _delay_level(level)
    return basics


def consumer_topology(
    name: str, event_types: Iterable[str], *, ordered: bool = False, parks: bool = False
) -> Topology:
    """Return a consumer's queue with its bindings, and its dead-letter queue.

    Args:
        name: the queue's name.
        event_types: the types that the queue gets from the event exchange.
        ordered: whether the queue has a single active consumer.
        parks: whether a third queue remembers parked keys.
    """
    single = {"x-single-active-consumer": True} if ordered else {}
    queues: tuple[Queue, ...] = (
        Queue(
            name=name,
            arguments={
                "x-delivery-limit": ORDERED_DELIVERY_LIMIT if ordered else DELIVERY_LIMIT,
                "x-dead-letter-routing-key": name,
                **single,
                **_dead_letter_to(DEAD_LETTER_EXCHANGE),
            },
        ),
        Queue(name=dead_letter_queue(name), arguments={"x-delivery-limit": NO_DELIVERY_LIMIT}),
    )
    if parks:
        one_reader = {"x-delivery-limit": NO_DELIVERY_LIMIT, "x-single-active-consumer": True}
        queues += (Queue(name=parked_queue(name), arguments=one_reader),)
    bindings = (
        Binding(source=DEAD_LETTER_EXCHANGE, target=dead_letter_queue(name), key=name),
        delayed_to(name),
        *(Binding(source=EVENT_EXCHANGE, target=name, key=event_type) for event_type in event_types),
    )
    return Topology(queues=queues, bindings=bindings)


def delayed_to(name: str) -> Binding:
    """Return the binding by which delayed messages reach a queue."""
    # As many stars as bits: `#` would also deliver to the queue `a` what is meant for the queue `b.a`.
    return Binding(source=DELAY_DELIVER_EXCHANGE, target=name, key="*." * DELAY_LEVELS + name)


def dead_letter_queue(name: str) -> str:
    """Return the name of the queue for a consumer's dead letters."""
    return f"{name}.dlq"


def parked_queue(name: str) -> str:
    """Return the name of the queue that remembers which keys of a consumer are parked."""
    return f"{name}.parked"


def delay_route(seconds: float, queue: str) -> tuple[str, str]:
    """Return the exchange and routing key that bring a message to a queue after a delay, rounded up to whole seconds.

    Raises:
        DeclarationError: the delay is not between 0 and 36 h.
    """
    if not 0 <= seconds <= MAX_DELAY_SECONDS:
        raise DeclarationError(
            f"a delay is at least 0 and at most {MAX_DELAY_SECONDS} s (36 h), not {seconds}: the broker keeps nothing"
            " longer. A data service does: in a transaction of its client, `tx.emit(command, not_before=...)` takes any"
            " time"
        )
    whole = max(math.ceil(seconds), 1)
    bits = format(whole, f"0{DELAY_LEVELS}b")
    return _level_name(whole.bit_length() - 1), ".".join(bits) + "." + queue


async def declare(topology: Topology, channel: AbstractChannel) -> None:
    """Declare everything in a topology; what exists as declared stays as it is.

    Raises:
        aiormq.exceptions.AMQPError: the broker refuses something, and the channel is closed.
    """
    for exchange in topology.exchanges:
        await declare_exchange(channel, exchange.name, exchange.properties)
    for queue in topology.queues:
        await declare_queue(channel, queue.name, queue.properties)
    # A consumer may have thousands, and each reply is a round trip. So only the last one has a reply, which comes after
    # all of them: where one is refused, the broker closes the channel instead.
    for binding in topology.bindings[:-1]:
        bind = channel.exchange_bind if binding.to_exchange else channel.queue_bind
        await bind(binding.target, binding.source, binding.key, nowait=True)
    for binding in topology.bindings[-1:]:
        bind = channel.exchange_bind if binding.to_exchange else channel.queue_bind
        await bind(binding.target, binding.source, binding.key)


async def declare_exchange(channel: AbstractChannel, name: str, properties: Mapping[str, Value]) -> None:
    """Declare an exchange with these flags and arguments."""
    flags, arguments = _split(properties)
    kind = flags.pop("type")
    await channel.exchange_declare(name, exchange_type=kind, **flags, arguments=arguments)


async def declare_queue(channel: AbstractChannel, name: str, properties: Mapping[str, Value]) -> None:
    """Declare a queue with these flags and arguments."""
    flags, arguments = _split(properties)
    await channel.queue_declare(name, **flags, arguments=arguments)


def _split(properties: Mapping[str, Value]) -> tuple[dict[str, Any], dict[str, Any]]:
    flags = {name: value for name, value in properties.items() if name in _FLAGS}
    arguments = {
        name: value for name, value in properties.items() if name not in _FLAGS and value is not None
    }
    return flags, arguments


def _delay_level(level: int) -> Topology:
    name = _level_name(level)
    below = _level_name(level - 1) if level else DELAY_DELIVER_EXCHANGE
    skipped = "*." * (DELAY_LEVELS - 1 - level)
    return Topology(
        exchanges=(Exchange(name=name, kind="topic"),),
        queues=(
            Queue(
                name=name,
                arguments={
                    "x-message-ttl": 1000 * 2**level,
                    "x-delivery-limit": NO_DELIVERY_LIMIT,
                    **_dead_letter_to(below),
                },
            ),
        ),
        bindings=(
            Binding(source=name, target=name, key=skipped + "1.#"),
            Binding(source=name, target=below, key=skipped + "0.#", to_exchange=True),
        ),
    )


def _level_name(level: int) -> str:
    return f"hk.delay.L{level}"


def _dead_letter_to(exchange: str) -> dict[str, str]:
    """Dead-letter at least once: a message leaves its queue when the next one has it. Needs `reject-publish`.

    https://www.rabbitmq.com/docs/quorum-queues#activating-at-least-once-dead-lettering
    """
    return {
        "x-dead-letter-exchange": exchange,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
