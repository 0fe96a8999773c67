"""A message, and what is written into it when it dies (https://www.rabbitmq.com/docs/dlx)."""

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
    """How often it died of one cause in one queue, and how it was published there."""

    queue: str
    reason: Reason
    count: int
    exchange: str
    keys: tuple[str, ...]
    seconds: int
    expiration: str | None

    def encode(self) -> bytes:
        """Its entry in `x-death`."""
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
    """What was published; the same object in every queue that it reached.

    Attributes:
        exchange: where it was published last: by a client, or by a queue that dead-lettered it.
        keys: its routing key, and those of its CC header.
        properties: with its headers.
        body: as it came.
        deaths: the latest first.
        was_delivered: it was, before it died.
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
        """How long its publisher wants it to wait at most.

        Raises:
            RefusalError: its expiration is no number of milliseconds.
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
        """The dead letter that is published in its place."""
        death = self._death(queue, reason)
        others = tuple(old for old in self.deaths if (old.queue, old.reason) != (queue, reason))
        first = self.first_death or death
        deaths = (death, *others)
        headers = {**self.properties.headers, **_death_headers(deaths, first)}
        properties = self.properties.with_headers(headers, without="expiration")
        letter = Message(exchange, self.keys if key is None else (key,), properties, self.body)
        letter.deaths = deaths
        letter.first_death = first
        letter.was_delivered = was_delivered
        return letter

    def is_going_in_circles(self, queue: str) -> bool:
        """Whether it would come back to a queue without anybody having rejected it since."""
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
