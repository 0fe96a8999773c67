"""Optional arguments of queues and exchanges, checked as RabbitMQ checks them.

https://www.rabbitmq.com/docs/queues#optional-arguments
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from hybridkit.dev._broker._refusals import RefusalError

Arguments = Mapping[str, Any]
QueueKind = Literal["classic", "quorum"]

_DEFAULT_DELIVERY_LIMIT: Final = 20
_OVERFLOWS: Final = ("drop-head", "reject-publish", "reject-publish-dlx")
_CLASSIC_ONLY: Final = ("x-max-priority", "x-queue-mode", "x-queue-version")
_QUORUM_ONLY: Final = ("x-delivery-limit", "x-dead-letter-strategy", "x-quorum-initial-group-size")
# The arguments that a second declaration has to repeat; RabbitMQ compares no others.
_COMPARED: Final = (
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-priority",
    "x-overflow",
    "x-single-active-consumer",
    "x-delivery-limit",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """The meaning of a queue's arguments."""

    kind: QueueKind = "classic"
    ttl_seconds: float | None = None
    expires_seconds: float | None = None
    max_length: int | None = None
    max_bytes: int | None = None
    overflow: str = "drop-head"
    dead_letter_exchange: str | None = None
    dead_letter_key: str | None = None
    is_at_least_once: bool = False
    delivery_limit: int | None = None
    has_single_active_consumer: bool = False


def queue_settings(arguments: Arguments, *, subject: str) -> QueueSettings:
    """Parse the arguments of a queue.

    Args:
        arguments: the arguments as declared.
        subject: the name of the queue in error messages.

    Raises:
        RefusalError: an argument is invalid (406), or this broker does not have what it asks for (540).
    """
    read = _Reader(arguments, subject)
    kind = read.kind()
    read.refuse(_QUORUM_ONLY if kind == "classic" else _CLASSIC_ONLY, kind)
    milliseconds, expires = read.number("x-message-ttl"), read.number("x-expires", least=1)
    exchange, key = read.text("x-dead-letter-exchange"), read.text("x-dead-letter-routing-key")
    if key is not None and exchange is None:
        raise read.error("x-dead-letter-routing-key", "routing_key_but_no_dlx_defined")
    overflow = read.text("x-overflow") or "drop-head"
    if overflow not in _OVERFLOWS:
        raise read.error("x-overflow", "invalid_overflow")
    if arguments.get("x-max-priority") is not None:
        raise RefusalError(540, f"the development broker has no priorities: {subject}")
    return QueueSettings(
        kind=kind,
        ttl_seconds=None if milliseconds is None else milliseconds / 1000,
        expires_seconds=None if expires is None else expires / 1000,
        max_length=read.number("x-max-length"),
        max_bytes=read.number("x-max-length-bytes"),
        overflow=overflow,
        dead_letter_exchange=exchange,
        dead_letter_key=key,
        is_at_least_once=(
            arguments.get("x-dead-letter-strategy") == "at-least-once" and overflow == "reject-publish"
        ),
        delivery_limit=_delivery_limit(arguments.get("x-delivery-limit")) if kind == "quorum" else None,
        has_single_active_consumer=bool(arguments.get("x-single-active-consumer")),
    )


def _delivery_limit(given: int | None) -> int | None:
    if given is None:
        return _DEFAULT_DELIVERY_LIMIT
    return given if given >= 0 else None


@dataclass(frozen=True, slots=True)
class _Reader:
    arguments: Arguments
    subject: str

    def error(self, name: str, why: str) -> RefusalError:
        return RefusalError(406, f"invalid arg '{name}' for {self.subject}: {why}")

    def kind(self) -> QueueKind:
        kind: object = self.arguments.get("x-queue-type", "classic")
        if kind == "stream":
            raise RefusalError(540, f"the development broker has no streams: {self.subject}")
        if kind == "classic":
            return "classic"
        if kind == "quorum":
            return "quorum"
        raise self.error("x-queue-type", f"\"unsupported queue type '{kind}'\"")

    def refuse(self, names: tuple[str, ...], kind: str) -> None:
        for name in names:
            if name in self.arguments:
                text = f"invalid arg '{name}' for {self.subject} of queue type rabbit_{kind}_queue"
                raise RefusalError(406, text)

    def number(self, name: str, *, least: int = 0) -> int | None:
        value = self.arguments.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(name, f'"expected integer, got {type_name(value)}"')
        if value < 0:
            raise self.error(name, f"{{value_negative,{value}}}")
        if value < least:
            raise self.error(name, f"{{value_zero,{value}}}")
        return value

    def text(self, name: str) -> str | None:
        value = self.arguments.get(name)
        if value is not None and not isinstance(value, str):
            raise RefusalError(406, f"invalid type '{type_name(value)}' for arg '{name}' in {self.subject}")
        return value


def alternate_exchange(arguments: Arguments, *, subject: str) -> str | None:
    """Return the exchange that gets the messages for which the declared one finds no queue, or None without one.

    Raises:
        RefusalError: the argument is not a string (406).
    """
    return _Reader(arguments, subject).text("alternate-exchange")


def compare(subject: str, current: Mapping[str, Any], received: Mapping[str, Any]) -> None:
    """Check that a second declaration has the properties of the first one.

    Raises:
        RefusalError: a property differs (406); the message names the first one that does.
    """
    for name, now in current.items():
        given = received[name]
        if now != given:
            raise RefusalError(
                406, f"inequivalent arg '{name}' for {subject}: {_difference(given, now, _plain)}"
            )


def compare_arguments(
    subject: str, current: Arguments, received: Arguments, names: tuple[str, ...] = _COMPARED
) -> None:
    """Check that a second declaration has the optional arguments of the first one.

    Raises:
        RefusalError: an argument differs (406); the message names the first one that does.
    """
    for name in names:
        now, given = current.get(name), received.get(name)
        if now == given:
            continue
        form = _with_type if now is None or given is None else _plain
        raise RefusalError(406, f"inequivalent arg '{name}' for {subject}: {_difference(given, now, form)}")


def _difference(received: object, current: object, form: Callable[[object], str]) -> str:
    return f"received {form(received)} but current is {form(current)}"


def _plain(value: object) -> str:
    return f"'{str(value).lower() if isinstance(value, bool) else value}'"


def _with_type(value: object) -> str:
    return "none" if value is None else f"the value '{value}' of type '{type_name(value)}'"


def type_name(value: object) -> str:
    """Return RabbitMQ's name for the type of an argument, as far as pamqp's decoding preserves it."""
    match value:
        case bool():
            return "bool"
        case int():
            return "byte" if -128 <= value < 128 else "signedint"
        case str() | bytes():
            return "longstr"
        case _:
            return type(value).__name__
