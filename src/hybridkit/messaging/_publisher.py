"""Publishing: confirmed and routed, or an error that says what is known."""

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from uuid import UUID

from hybridkit.errors import HybridkitError
from hybridkit.events import Command, Event

__all__ = ["Receipt", "RobustPublisher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The broker has stored the message.

    Attributes:
        event_id: the identity of what was published.
        routed: whether a queue took it; False only with `allow_unrouted=True`.
    """

    event_id: UUID
    routed: bool = True


class RobustPublisher:
    """Publishes events and sends commands, over a connection of its own.

    Every call ends with the broker's answer or a typed error, at the latest at the context's deadline, or after 10 s
    without one.

    Args:
        url: `amqp://user:password@host:port/vhost`, or `amqps://`.
        service: the name that envelopes carry as their `service`.
    """

    def __init__(self, url: str, *, service: str) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        """Connect and declare the exchanges, trying again until the context's deadline, or for 30 s without one.

        Raises:
            NotConnectedError: the broker did not answer in that time.
            AccessDeniedError: it refuses the user, the password or the virtual host.
            TopologyError: an exchange exists with other properties.
        """
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait up to 5 s for the broker's answers to what was published, then close."""
        raise NotImplementedError

    @property
    def is_ready(self) -> bool:
        """Whether an event published now would be sent: connected, and not blocked by a broker alarm."""
        raise NotImplementedError

    async def publish(self, event: Event, *, allow_unrouted: bool = False) -> Receipt:
        """Publish to everybody who wants events of this type.

        Publishing the same object again is the same event: after `OutcomeUnknownError` just do it.

        Args:
            event: what happened.
            allow_unrouted: it is no error that no queue wants it; the receipt says so.

        Raises:
            UnroutableError: no queue wants it.
            NackedError: the broker gave it back.
            BlockedError: the broker has an alarm; nothing was sent.
            NotConnectedError: no connection; nothing was sent.
            OutcomeUnknownError: it was sent, and no answer came.
            PayloadTooLargeError: over 16 MiB; nothing was sent.
        """
        raise NotImplementedError

    async def publish_many(
        self, events: Iterable[Event], *, allow_unrouted: bool = False
    ) -> list[Receipt | HybridkitError]:
        """As `publish`, all at once: a receipt or an error for each event, in their order."""
        raise NotImplementedError

    async def send(self, command: Command, *, delay_seconds: float = 0.0) -> Receipt:
        """Give work to the command's queue; with the errors of `publish`.

        Args:
            command: the work.
            delay_seconds: the earliest time from now at which it is delivered, in whole seconds, at most 36 h.
        """
        raise NotImplementedError

    async def publish_encoded(
        self,
        body: bytes,
        *,
        event_type: str,
        event_id: UUID,
        queue: str | None = None,
        allow_unrouted: bool = False,
    ) -> Receipt:
        """Publish an envelope that is bytes already, as an outbox relay has it; with the errors of `publish`.

        The headers come from the bound context: bind one with the row's request id and user id.

        Args:
            body: the whole envelope, UTF-8 JSON.
            event_type: its `event_type`; the routing key.
            event_id: its `event_id`.
            queue: send it to this queue instead, as a command.
            allow_unrouted: it is no error that no queue wants it.
        """
        raise NotImplementedError
