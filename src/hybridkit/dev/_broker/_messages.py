"""Messages, and the headers of those that were dead-lettered (https://www.rabbitmq.com/docs/dlx)."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from hybridkit.dev._broker import _properties as fields
from hybridkit.dev._broker._properties import Properties
from hybridkit.dev._broker._refusals import RefusalError

Reason = Literal["rejected", "expired", "maxlen", "delivery_limit"]

_MAX_EXPIRATION_MS: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Death:
    """The count of a message's deaths by one reason in one queue, and its route there."""

    queue: str
    reason: Reason
    count: int
    exchange: str
    keys: tuple[str, ...]
    seconds: int
    expiration: str | None

    def encode(self) -> bytes:
        """Encode the entry for the header `x-death`."""
        entries = (
            {} if self.expiration is None else {"original-expiration": fields.long_string(self.expiration)}
        )
        return fields.table(
            entries
            | {
                "count": fields.long_integer(self.count),
                "reason": fields.long_string(self.reason),
                "queue": fields.long_string(self.queue),
                "time": fields.timestamp(self.seconds),
                "exchange": fields.long_string(self.exchange),
                "routing-keys": fields.array(*map(fields.long_string, self.keys)),
            }
        )


class Message:
    """A published message; the same object in each queue that it has reached.

    Attributes:
        exchange: the exchange of the last publish, by a client or by dead-lettering.
        keys: the routing key, and those of the CC and BCC headers.
        properties: the properties with the headers.
        body: the bytes as published.
        deaths: the entries of `x-death`, the latest first.
        was_delivered: whether it was delivered before it was dead-lettered.
    """

    __slots__ = ("body", "deaths", "exchange", "first_death", "keys", "properties", "was_delivered")

    def __init__(self, exchange: str, keys: tuple[str, ...], properties: Properties, body: bytes) -> None:
        self.exchange = exchange
        self.keys = keys
        self.properties = properties
        self.body = body
        self.deaths: tuple[Death, ...] = ()
        self.first_death: Death | None = None
        self.was_delivered = False

    def __repr__(self) -> str:
        return f"Message({self.exchange!r}, {self.keys[0]!r}, {len(self.body)} bytes)"

    @property
    def ttl_seconds(self) -> float | None:
        """The time to live that the publisher has set, or None.

        Raises:
            RefusalError: the expiration is not a number of milliseconds (406).
        """
        text = self.properties.text("expiration")
        if text is None:
            return None
        if not text.removeprefix("-").isdecimal():
            raise RefusalError(406, f"invalid expiration '{text}': no_integer")
        if text.startswith("-"):
            raise RefusalError(406, f"invalid expiration '{text}': {{value_negative,{text}}}")
        return min(int(text), _MAX_EXPIRATION_MS) / 1000

    def died(
        self, *, queue: str, reason: Reason, exchange: str, key: str | None, was_delivered: bool
    ) -> "Message":
        """Return the dead letter that replaces this message."""
        death = self._death(queue, reason)
        others = tuple(old for old in self.deaths if (old.queue, old.reason) != (queue, reason))
        first = self.first_death or death
        deaths = (death, *others)
        headers = {**self.properties.headers, **_death_headers(deaths, first)}
        properties = self.properties.with_headers(headers, without="expiration")
        dead_letter = Message(exchange, self.keys if key is None else (key,), properties, self.body)
        dead_letter.deaths = deaths
        dead_letter.first_death = first
        dead_letter.was_delivered = was_delivered
        return dead_letter

    def is_in_cycle(self, queue: str) -> bool:
        """Return whether the message was dead-lettered from that queue before, and not rejected since."""
        for death in self.deaths:
            if death.reason == "rejected":
                return False
            if death.queue == queue:
                return True
        return False

    def _death(self, queue: str, reason: Reason) -> Death:
        now = int(time.time())
        for old in self.deaths:
            if (old.queue, old.reason) == (queue, reason):
                return replace(old, count=old.count + 1, seconds=now)
        expiration = self.properties.text("expiration")
        return Death(queue, reason, 1, self.exchange, self.keys, now, expiration)


def _death_headers(deaths: tuple[Death, ...], first: Death) -> Mapping[str, bytes]:
    headers = {"x-death": fields.array(*(death.encode() for death in deaths))}
    for which, death in (("first", first), ("last", deaths[0])):
        headers[f"x-{which}-death-exchange"] = fields.long_string(death.exchange)
        headers[f"x-{which}-death-queue"] = fields.long_string(death.queue)
        headers[f"x-{which}-death-reason"] = fields.long_string(death.reason)
    return headers
