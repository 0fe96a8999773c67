"""Dead letters as values: the message, the reason, the queue it came from, and the copy that is sent back.

Dead letters of three origins are understood. Our consumers publish a copy with the reason in `hk_` headers. The broker
itself (a delivery limit, a reject by a plain client) writes `x-death`. Any other message has neither, and only its body
and its queue can say something. https://www.rabbitmq.com/docs/dlx#effects
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, cast

from pamqp import commands

from hybridkit.codec import truncate_timestamp
from hybridkit.errors import PayloadError, UnroutableError
from hybridkit.events.cloudevents import read_wire
from hybridkit.messaging._amqp._frames import JSON_MEDIA_TYPE, decode_properties
from hybridkit.messaging._amqp._headers import (
    ATTEMPT,
    ERROR,
    ERROR_TYPE,
    EVENT_ID,
    FAILED_AT,
    FIRST_FAILED_AT,
    GENERATION,
    QUEUE,
    REASON,
    STACK,
    copied_headers,
    read_count,
    read_text,
    redriven_headers,
)
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._publishing._writer import OutgoingMessage
from hybridkit.messaging._topology._declared import (
    DEAD_LETTER_EXCHANGE,
    DELAY_DELIVER_EXCHANGE,
    DELAY_LEVELS,
    dead_letter_queue,
)

MAX_TEXT_CHARS: Final = 16_000

_DELAY_QUEUES: Final = "hk.delay."


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One message of a dead-letter queue.

    Attributes:
        queue: the queue in which it waits.
        position: its place in the queue, from 1.
        target: the consumer's queue from which it came and to which it is sent back; None where it is unknown.
        event_type: the event's type, from AMQP's `type`, otherwise from the body.
        event_id: the event's id, from the header, otherwise from the body; of a CloudEvent as its source gave it.
        derived_id: the id by which consumers know and log it, where that is another: a CloudEvent's `id` may be any
            text.
        reason: `exhausted`, `permanent`, `malformed`, `unknown_type`, `unknown_version`, `mismatch`, `takeovers`,
            `key_parked` or `unexpected` by our consumers; `rejected`, `delivery_limit`, `expired` or `maxlen` by the
            broker; None for a message of any other origin.
        error_type: the exception's class with its module; only our consumers write it and the three that follow.
        error: its message, up to 1,000 characters.
        stack: its traceback, the last 8,000 characters.
        attempts: the number of runs of the handler that failed.
        generation: the number of times that it was redriven already.
        first_failed_at: the time of its first failure; by the broker's clock if the broker gave it up.
        failed_at: the time at which it became a dead letter.
        headers: its headers, unchanged.
        body: its body, as it was published.
    """

    queue: str
    position: int
    target: str | None
    event_type: str | None
    event_id: str | None
    reason: str | None
    error_type: str | None
    error: str | None
    stack: str | None
    attempts: int
    generation: int
    first_failed_at: datetime | None
    failed_at: datetime | None
    derived_id: str | None = None
    headers: Mapping[str, Any] = field(repr=False)
    body: bytes = field(repr=False)
    message_type: str | None = field(repr=False)
    service: str | None = field(repr=False)
    content_type: str = field(default=JSON_MEDIA_TYPE, repr=False)

    def copy(self) -> OutgoingMessage:
        """Return the copy that is sent back: the same event, one generation on, with all its attempts ahead.

        Raises:
            UnroutableError: the dead letter has no target.
        """
        if self.target is None:
            raise UnroutableError("nothing says which queue it came from", exchange="", routing_key="")
        return OutgoingMessage(
            exchange="",
            routing_key=self.target,
            body=self.body,
            headers=copied_headers(redriven_headers(self.headers)),
            message_type=self.message_type,
            service=self.service,
            content_type=self.content_type,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Selects dead letters: those that match all attributes that are not None.

    Attributes:
        event_type: the event's type.
        reason: the reason.
        error_type: the exception's class, with or without its module: `OSError` or `builtins.OSError`.
        event_id: the event's id, or the derived one in the consumers' log.
        since: the earliest time of failure; a naive time is UTC. A dead letter without a time doesn't match.
        until: the time before which it failed.
        predicate: returns whether a dead letter matches.
    """

    event_type: str | None = None
    reason: str | None = None
    error_type: str | None = None
    event_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    predicate: Callable[[DeadLetter], bool] | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Return whether a dead letter matches."""
        return (
            self.event_type in {None, letter.event_type}
            and self.reason in {None, letter.reason}
            and (self.event_id is None or self.event_id in {letter.event_id, letter.derived_id})
            and _names(self.error_type, letter.error_type)
            and self._is_in_time(letter.failed_at)
            and (self.predicate is None or self.predicate(letter))
        )

    def _is_in_time(self, failed_at: datetime | None) -> bool:
        if self.since is None and self.until is None:
            return True
        if failed_at is None:
            return False
        return (self.since is None or _aware(self.since) <= failed_at) and (
            self.until is None or failed_at < _aware(self.until)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterGroup:
    """Dead letters that have the same type, reason and error.

    Attributes:
        event_type: the type of all of them.
        reason: the reason of all of them.
        error_type: the exception's class of all of them.
        count: the number of dead letters.
        first_failed_at: the time of the earliest failure.
        last_failed_at: the latest time at which one became a dead letter.
        event_id: the id of the one that came last, as an example.
        error: the message of that one's exception.
    """

    event_type: str | None
    reason: str | None
    error_type: str | None
    count: int
    first_failed_at: datetime | None
    last_failed_at: datetime | None
    event_id: str | None
    error: str | None


class Groups:
    """Counts of dead letters by type, reason and error; the dead letters themselves are not kept."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str | None, str | None, str | None], DeadLetterGroup] = {}

    def __repr__(self) -> str:
        return f"Groups({len(self._groups)})"

    def add(self, letter: DeadLetter) -> None:
        """Count one dead letter."""
        key = (letter.event_type, letter.reason, letter.error_type)
        known = self._groups.get(key)
        self._groups[key] = DeadLetterGroup(
            event_type=letter.event_type,
            reason=letter.reason,
            error_type=letter.error_type,
            count=known.count + 1 if known else 1,
            first_failed_at=_pick(min, known.first_failed_at if known else None, letter.first_failed_at),
            last_failed_at=_pick(max, known.last_failed_at if known else None, letter.failed_at),
            event_id=letter.event_id,
            error=letter.error,
        )

    def largest_first(self) -> tuple[DeadLetterGroup, ...]:
        """Return the groups, the largest first."""
        return tuple(sorted(self._groups.values(), key=lambda group: -group.count))


# ── reading one ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Death:
    """The broker's note about the newest death that was no delay: queue, reason and time."""

    queue: str | None = None
    reason: str | None = None
    at: datetime | None = None


def read_dead_letter(queue: str, position: int, message: IncomingMessage) -> DeadLetter:
    """Read a message as a dead letter, whatever its origin; no content can make this fail.

    Args:
        queue: the queue in which it waits.
        position: its place in the queue, from 1.
        message: the message as its port has it.
    """
    properties = decode_properties(message.properties)
    headers = cast("Mapping[str, Any]", properties.headers or {})
    death = _newest_death(headers)
    reason = read_text(headers, REASON)
    event_type, event_id, derived_id = _identity(properties, headers, message.body)
    failed_at = _time(headers, FAILED_AT) if reason else None
    return DeadLetter(
        queue=queue,
        position=position,
        target=_target(queue, message, headers, death),
        event_type=event_type,
        event_id=event_id,
        derived_id=derived_id,
        reason=reason or death.reason,
        error_type=read_text(headers, ERROR_TYPE),
        error=_text(headers, ERROR),
        stack=_text(headers, STACK),
        attempts=read_count(headers, ATTEMPT),
        generation=read_count(headers, GENERATION),
        first_failed_at=_time(headers, FIRST_FAILED_AT) or failed_at or death.at,
        failed_at=failed_at or death.at,
        headers=headers,
        body=message.body,
        message_type=properties.message_type,
        service=properties.app_id,
        content_type=properties.content_type or JSON_MEDIA_TYPE,
    )


def _target(queue: str, message: IncomingMessage, headers: Mapping[str, Any], death: _Death) -> str | None:
    """Return the queue from which it came, by the most reliable source that names one."""
    ours = read_text(headers, QUEUE)
    sources = (
        ours if REASON in headers else None,
        death.queue,
        ours,
        _routed_to(message.method.exchange, message.method.routing_key),
        queue.removesuffix(dead_letter_queue("")),
    )
    return next((each for each in sources if each and each != queue), None)


def _routed_to(exchange: str, routing_key: str) -> str | None:
    """Return the queue to which our exchanges routed a message; an alternate exchange keeps both names."""
    if exchange == DEAD_LETTER_EXCHANGE:
        return routing_key
    if exchange == DELAY_DELIVER_EXCHANGE:
        return ".".join(routing_key.split(".")[DELAY_LEVELS:])
    return None


def _newest_death(headers: Mapping[str, Any]) -> _Death:
    """Read `x-death`, which has the newest first; any client can write any value under that name."""
    deaths: Any = headers.get("x-death")
    for death in cast("list[Any]", deaths) if isinstance(deaths, list) else ():
        if not isinstance(death, dict):
            continue
        noted = cast("Mapping[str, Any]", death)
        queue = read_text(noted, "queue")
        if queue is not None and not queue.startswith(_DELAY_QUEUES):
            return _Death(queue, read_text(noted, "reason"), _moment(noted.get("time")))
    return _Death()


def _identity(
    properties: commands.Basic.Properties, headers: Mapping[str, Any], body: bytes
) -> tuple[str | None, str | None, str | None]:
    """Return type, id and derived id, from the properties, otherwise from the body."""
    event_type, event_id = properties.message_type or None, read_text(headers, EVENT_ID)
    if event_type and event_id:
        return event_type, event_id, None
    try:
        wire = read_wire(body, headers, content_type=properties.content_type)
    except PayloadError:
        return event_type, event_id, None
    members = wire.members
    known_as = _text(members, "event_id")
    event_id = event_id or wire.original_id or known_as
    return event_type or _text(members, "event_type"), event_id, known_as if known_as != event_id else None


def _text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return value[:MAX_TEXT_CHARS] if isinstance(value, str) else None


def _time(headers: Mapping[str, Any], name: str) -> datetime | None:
    try:
        return _moment(datetime.fromisoformat(read_text(headers, name) or ""))
    except ValueError:
        return None


def _moment(value: object) -> datetime | None:
    """Return the moment in UTC; None for a value that is none, or in no year that UTC has."""
    try:
        return truncate_timestamp(value) if isinstance(value, datetime) else None
    except ValueError:
        return None


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _names(wanted: str | None, error_type: str | None) -> bool:
    return wanted in {None, error_type} or (error_type or "").endswith(f".{wanted}")


def _pick(
    choose: Callable[[datetime, datetime], datetime], one: datetime | None, other: datetime | None
) -> datetime | None:
    return choose(one, other) if one and other else one or other
