"""What may be declared: the optional arguments of queues and exchanges, checked as RabbitMQ checks them.

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
# What has to be the same in a second declaration; any other argument is only carried.
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
    """What a queue's arguments mean."""

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


def queue_settings(arguments: Arguments, *, place: str) -> QueueSettings:
    """Read a queue's arguments.

    Args:
        arguments: as declared.
        place: the queue, for the error.

    Raises:
        RefusalError: 406, one of them is not possible; 540, what this broker doesn't have.
    """
    read = _Reader(arguments, place)
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
        raise RefusalError(540, f"the development broker has no priorities: {place}")
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
    place: str

    def error(self, name: str, why: str) -> RefusalError:
        return RefusalError(406, f"invalid arg '{name}' for {self.place}: {why}")

    def kind(self) -> QueueKind:
        kind: object = self.arguments.get("x-queue-type", "classic")
        if kind == "stream":
            raise RefusalError(540, f"the development broker has no streams: {self.place}")
        if kind == "classic":
            return "classic"
        if kind == "quorum":
            return "quorum"
        raise self.error("x-queue-type", f"\"unsupported queue type '{kind}'\"")

    def refuse(self, names: tuple[str, ...], kind: str) -> None:
        for name in names:
            if name in self.arguments:
                text = f"invalid arg '{name}' for {self.place} of queue type rabbit_{kind}_queue"
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
            raise RefusalError(406, f"invalid type '{type_name(value)}' for arg '{name}' in {self.place}")
        return value


def alternate_exchange(arguments: Arguments, *, place: str) -> str | None:
    """The exchange that gets what the declared one finds no queue for.

    Raises:
        RefusalError: 406, that is no name.
    """
    return _Reader(arguments, place).text("alternate-exchange")


def compare(place: str, current: Mapping[str, Any], received: Mapping[str, Any]) -> None:
    """Demand that a second declaration says what the first one said.

    Raises:
        RefusalError: 406, names the first difference.
    """
    for name, now in current.items():
        given = received[name]
        if now != given:
            raise RefusalError(
                406, f"inequivalent arg '{name}' for {place}: {_difference(given, now, _plain)}"
            )


def compare_arguments(
    place: str, current: Arguments, received: Arguments, names: tuple[str, ...] = _COMPARED
) -> None:
    """The same for the optional arguments.

    Raises:
        RefusalError: 406, names the first difference.
    """
    for name in names:
        now, given = current.get(name), received.get(name)
        if now == given:
            continue
        form = _with_type if now is None or given is None else _plain
        raise RefusalError(406, f"inequivalent arg '{name}' for {place}: {_difference(given, now, form)}")


def _difference(received: object, current: object, form: Callable[[object], str]) -> str:
    return f"received {form(received)} but current is {form(current)}"


def _plain(value: object) -> str:
    return f"'{str(value).lower() if isinstance(value, bool) else value}'"


def _with_type(value: object) -> str:
    return "none" if value is None else f"the value '{value}' of type '{type_name(value)}'"


def type_name(value: object) -> str:
    """What RabbitMQ calls the type of an argument, as far as pamqp has left it to be seen."""
    match value:
        case bool():
            return "bool"
        case int():
            return "byte" if -128 <= value < 128 else "signedint"
        case str() | bytes():
            return "longstr"
        case _:
            return type(value).__name__
