"""The version of a broker, and its limits for the topology."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

type Version = tuple[int, int, int]

OLDEST: Final[Version] = (3, 10, 0)
"""The first version whose quorum queues dead-letter at least once and expire messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _VersionNote:
    """A note for the versions from `since` to before `until`."""

    said: str
    since: Version = OLDEST
    until: Version = (999, 0, 0)


_VERSION_NOTES: Final = (
    _VersionNote(
        said="a message republished with its x-death header vanishes in the delay levels (until 4.0.1):"
        " hybridkit removes the header, others who republish must",
        until=(4, 0, 1),
    ),
    _VersionNote(
        said="a delivery limit of -1 drops at the second delivery (until 4.0):"
        " queues that need no limit are declared with a large one",
        until=(4, 0, 0),
    ),
    _VersionNote(
        said="a quorum queue without a delivery limit of its own has one of 20 (since 4.0):"
        " every queue declared here has its own",
        since=(4, 0, 0),
    ),
    _VersionNote(
        said="quorum queues can delay retries by themselves, with linear growth (x-delayed-retry-type, since 4.3):"
        " the delay levels work on every version",
        since=(4, 3, 0),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """The product and version that a broker tells when a connection is opened.

    Attributes:
        product: `RabbitMQ`, or the name of another AMQP broker.
        version: the broker's own text, such as `4.3.6`.
    """

    product: str
    version: str

    @classmethod
    def from_properties(cls, properties: Mapping[str, Any]) -> "Broker":
        """Read the server properties of `connection.start`.

        https://www.rabbitmq.com/amqp-0-9-1-reference#connection.start.server-properties
        """
        return cls(product=_text(properties.get("product")), version=_text(properties.get("version")))

    def __str__(self) -> str:
        return f"{self.product} {self.version}"

    @property
    def is_supported(self) -> bool:
        """Whether the topology can work: not on RabbitMQ before 3.10; True for a broker that isn't known."""
        number = self._number()
        return number is None or number >= OLDEST

    @property
    def notes(self) -> tuple[str, ...]:
        """The limits of this version for the topology, one sentence each."""
        number = self._number()
        if number is None:
            said = "no RabbitMQ that is known: quorum queues that dead-letter at least once are needed"
            return (f"{self} is {said}",)
        if number < OLDEST:
            said = "too old: quorum queues dead-letter at least once since RabbitMQ 3.10"
            return (f"{self} is {said}",)
        return tuple(fact.said for fact in _VERSION_NOTES if fact.since <= number < fact.until)

    def _number(self) -> Version | None:
        parts = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", self.version)
        if self.product != "RabbitMQ" or parts is None:
            return None
        major, minor, patch = (int(part or 0) for part in parts.groups())
        return major, minor, patch


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value or "unknown")
