"""Comparing a broker with a topology by declaring over AMQP, without creating anything.

An exchange or queue is first declared passively, which never creates it; only one that exists is declared again with
its own properties. A broker that has others closes the channel with 406 and names the first property that differs, with
its value. The next declare has that value, and finds the second property, and so on.
https://www.rabbitmq.com/docs/queues#property-equivalence
"""

import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

from aiormq.channel import Channel
from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from hybridkit.errors import AccessDeniedError, DeclarationError, NotConnectedError
from hybridkit.messaging._amqp._channel import OpenChannel
from hybridkit.messaging._amqp._connection import OpenConnection
from hybridkit.messaging._topology._declared import Exchange, Queue, Value, declare_exchange, declare_queue

type _Declare = Callable[[Channel, str, Mapping[str, Value]], Coroutine[Any, Any, None]]

_INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' for (?:queue|exchange) '.*' in vhost '.*': "
    r"received (?P<received>.+) but current is (?P<current>.+)",
    re.DOTALL,
)
_TYPED: Final = re.compile(r"the value '(?P<value>.*)' of type '(?P<type>\w+)'", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyDifference:
    """A property of an exchange or queue that has another value at the broker.

    Attributes:
        name: `durable`, `type`, or an argument such as `x-delivery-limit`.
        declared: the value in the topology; None where the property isn't set.
        actual: the value at the broker; None where the property isn't set.
    """

    name: str
    declared: Value
    actual: Value

    def __str__(self) -> str:
        return f"{self.name} is {_shown(self.actual)}, declared {_shown(self.declared)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """The state of one exchange or queue at the broker.

    Attributes:
        exists: whether there is one of that name, as declared or not.
        differences: the properties that differ.
        refusal: the broker's error, where it names no property or not all differences could be found.
        messages: the number of messages that wait in a queue.
        consumers: the number of consumers of a queue.
    """

    exists: bool
    differences: tuple[TopologyDifference, ...] = ()
    refusal: str = ""
    messages: int = 0
    consumers: int = 0


class Inspection:
    """Asks the broker about exchanges and queues, on a new channel after each one that an error has closed."""

    def __init__(self, connection: OpenConnection) -> None:
        self._connection = connection
        self._opened: OpenChannel | None = None

    def __repr__(self) -> str:
        return f"Inspection({self._connection})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.close()

    async def server_properties(self) -> Mapping[str, Any]:
        """Return the broker's properties from `connection.start`."""
        return dict((await self._channel()).connection.server_properties)

    async def compare_exchange(self, exchange: Exchange) -> Inspected:
        """Compare an exchange with the one of its name at the broker.

        Raises:
            AccessDeniedError: the user may not declare the exchange.
            NotConnectedError: the broker did not reply.
        """
        try:
            await self.ask(lambda channel: channel.exchange_declare(exchange.name, passive=True))
        except ChannelNotFoundEntity:
            return Inspected(exists=False)
        differences, refusal = await self._compare(declare_exchange, exchange.name, exchange.properties)
        return Inspected(exists=True, differences=differences, refusal=refusal)

    async def compare_queue(self, queue: Queue) -> Inspected:
        """Compare a queue with the one of its name at the broker.

        Raises:
            AccessDeniedError: the user may not declare the queue.
            NotConnectedError: the broker did not reply.
        """
        found = await self.find_queue(queue.name)
        if not found.exists or found.refusal:
            return found
        differences, refusal = await self._compare(declare_queue, queue.name, queue.properties)
        return replace(found, differences=differences, refusal=refusal)

    async def find_queue(self, name: str) -> Inspected:
        """Look for a queue by its name; its properties are not compared."""
        try:
            answer = await self.ask(lambda channel: channel.queue_declare(name, passive=True))
        except ChannelNotFoundEntity:
            return Inspected(exists=False)
        except ChannelLockedResource as error:
            return Inspected(exists=True, refusal=str(error))
        return Inspected(
            exists=True, messages=answer.message_count or 0, consumers=answer.consumer_count or 0
        )

    async def ask[T](
        self, question: Callable[[Channel], Coroutine[Any, Any, T]], *, seconds: float | None = None
    ) -> T:
        """Return the broker's reply to a call on a channel.

        Args:
            question: the call into aiormq.
            seconds: how long to wait; 10 by default.

        Raises:
            ChannelNotFoundEntity: there is no such exchange or queue.
            ChannelPreconditionFailed: the exchange or queue has other properties.
            ChannelLockedResource: the queue is exclusive to another connection.
            AccessDeniedError: the user may not do this.
            DeclarationError: AMQP can't carry a name or a value.
            NotConnectedError: the broker did not reply.
        """
        channel = await self._channel()
        try:
            return await self._connection.ask(
                question(channel), name="inspecting the topology", seconds=seconds
            )
        except (ChannelNotFoundEntity, ChannelPreconditionFailed, ChannelLockedResource):
            self._opened = None
            raise
        except ChannelAccessRefused as error:
            self._opened = None
            raise AccessDeniedError(str(error)) from error
        except ValueError as error:
            raise DeclarationError(f"AMQP can't carry this: {error}") from error
        except AMQPError as error:
            raise NotConnectedError(f"{type(error).__name__}: {error}") from error

    async def _channel(self) -> Channel:
        if self._opened is None:
            self._opened = await OpenChannel.open(self._connection)
        return self._opened.raw

    async def _compare(
        self, declare: _Declare, name: str, declared: Mapping[str, Value]
    ) -> tuple[tuple[TopologyDifference, ...], str]:
        """Return the differences, and the broker's error where not all of them could be found."""
        differences: dict[str, TopologyDifference] = {}
        said = dict(declared)
        while True:
            try:
                await self.ask(lambda channel: declare(channel, name, said))
            except ChannelPreconditionFailed as error:
                found = difference_in(str(error), declared)
                if found is None or found.name in differences:
                    return tuple(differences.values()), str(error)
                differences[found.name] = found
                said[found.name] = found.actual
            else:
                return tuple(differences.values()), ""


def difference_in(text: str, declared: Mapping[str, Value]) -> TopologyDifference | None:
    """Return the property that a 406 names; None where it names none, or where its text was cut off at 255 bytes.

    Args:
        text: `… inequivalent arg 'x-max-length' for queue 'a' in vhost '/': received '2' but current is '1'`.
        declared: the properties, for the types of their values.
    """
    match = _INEQUIVALENT.search(text)
    if match is None:
        return None
    current = match["current"]
    if current.endswith("..."):
        return None
    value = declared.get(match["name"])
    return TopologyDifference(name=match["name"], declared=value, actual=_value(current, like=value))


def _value(text: str, *, like: Value) -> Value:
    """Read `none`, `'text'` of the same type as the declared value, or `the value '20' of type 'byte'`."""
    if text == "none":
        return None
    typed = _TYPED.fullmatch(text)
    raw = typed["value"] if typed else text.strip("'")
    if typed["type"] == "longstr" if typed else isinstance(like, str):
        return raw
    if raw in {"true", "false"}:
        return raw == "true"
    return int(raw) if re.fullmatch(r"-?\d+", raw) else raw


def _shown(value: Value) -> str:
    if value is None:
        return "not set"
    return str(value).lower() if isinstance(value, bool) else str(value)
