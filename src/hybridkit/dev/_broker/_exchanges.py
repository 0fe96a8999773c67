"""Exchanges and the bindings that a message matches (https://www.rabbitmq.com/docs/exchanges)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hybridkit.dev._broker._arguments import Arguments
from hybridkit.dev._broker._properties import Properties
from hybridkit.dev._broker._refusals import RefusalError

if TYPE_CHECKING:
    from hybridkit.dev._broker._queues import Queue

_REMEMBERED_KEYS: Final = 10_000
_HEADER_MODES: Final = ("all", "any", "all-with-x", "any-with-x")


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding of an exchange to a queue or to another exchange.

    Attributes:
        target: the queue or exchange that messages go to.
        key: the routing key or its pattern.
        arguments: the header values that a headers exchange compares.
    """

    target: "Queue | Exchange"
    key: str
    arguments: Arguments = field(hash=False)


Matches = Callable[[Binding, str, Properties], bool]


class Exchange:
    """An exchange with its bindings.

    Attributes:
        name: the name; empty for the default exchange.
        kind: `direct`, `fanout`, `topic` or `headers`.
        durable: compared by declarations only, as the whole broker is in memory.
        auto_delete: whether it is deleted with its last binding.
        internal: whether clients may not publish to it.
        alternate: the name of the exchange that gets the messages that match no binding.
        arguments: the arguments as declared.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        *,
        durable: bool = True,
        auto_delete: bool = False,
        internal: bool = False,
        alternate: str | None = None,
        arguments: Arguments | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.durable = durable
        self.auto_delete = auto_delete
        self.internal = internal
        self.alternate = alternate
        self.arguments = arguments or {}
        self.bindings: list[Binding] = []
        self._matches = KINDS[kind]
        self._remembered: dict[str, Sequence[Queue | Exchange]] = {}

    def __repr__(self) -> str:
        return f"Exchange({self.name!r}, {self.kind}, bindings={len(self.bindings)})"

    def bind(self, binding: Binding) -> None:
        """Add a binding; do nothing when the same one exists.

        Raises:
            RefusalError: a headers exchange does not know the value of `x-match` (406).
        """
        mode = binding.arguments.get("x-match", "all")
        if self.kind == "headers" and mode not in _HEADER_MODES:
            known = "expected all, any, all-with-x, or any-with-x"
            raise RefusalError(406, f'Invalid x-match field value <<"{mode}">>; {known}')
        if binding not in self.bindings:
            self.bindings.append(binding)
            self._remembered.clear()

    def unbind(self, matches: Callable[[Binding], bool]) -> bool:
        """Remove the bindings for which `matches` is true, and return whether there were any."""
        kept = [binding for binding in self.bindings if not matches(binding)]
        found = len(kept) < len(self.bindings)
        self.bindings = kept
        self._remembered.clear()
        return found

    def targets(self, key: str, properties: Properties) -> Sequence["Queue | Exchange"]:
        """Return the queues and exchanges that a message matches, each once."""
        if self.kind == "headers":
            return self._match(key, properties)
        if key not in self._remembered:
            if len(self._remembered) >= _REMEMBERED_KEYS:
                self._remembered.clear()
            self._remembered[key] = self._match(key, properties)
        return self._remembered[key]

    def _match(self, key: str, properties: Properties) -> Sequence["Queue | Exchange"]:
        matching = (binding for binding in self.bindings if self._matches(binding, key, properties))
        return list(dict.fromkeys(binding.target for binding in matching))


def _direct(binding: Binding, key: str, _: Properties) -> bool:
    return binding.key == key


def _fanout(_: Binding, _key: str, _properties: Properties) -> bool:
    return True


def _topic(binding: Binding, key: str, _: Properties) -> bool:
    return topic_matches(_words(binding.key), _words(key))


def _words(key: str) -> Sequence[str]:
    # RabbitMQ finds no words in an empty key, and two empty words in ".".
    return key.split(".") if key else ()


def topic_matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Return whether the words match a pattern, where `*` is one word and `#` any number of words."""
    # The numbers of words that the pattern can have matched so far.
    taken = {0}
    for part in pattern:
        if part == "#":
            taken = set(range(min(taken), len(words) + 1))
        else:
            taken = {n + 1 for n in taken if n < len(words) and part in ("*", words[n])}
        if not taken:
            return False
    return len(words) in taken


def _headers(binding: Binding, _: str, properties: Properties) -> bool:
    mode = binding.arguments.get("x-match", "all")
    wanted = {
        name: value
        for name, value in binding.arguments.items()
        if name != "x-match" and (mode.endswith("-with-x") or not name.startswith("x-"))
    }
    found = (_has_header(properties, name, value) for name, value in wanted.items())
    return any(found) if mode.startswith("any") else all(found)


def _has_header(properties: Properties, name: str, value: Any) -> bool:
    # A binding without a value matches any value of the header.
    if name not in properties.headers:
        return False
    given = properties.header(name)
    return value is None or (type(given) is type(value) and bool(given == value))


KINDS: Final[Mapping[str, Matches]] = {
    "direct": _direct,
    "fanout": _fanout,
    "topic": _topic,
    "headers": _headers,
}


def standard_exchanges() -> Iterable[Exchange]:
    """Yield the exchanges that every virtual host begins with."""
    yield Exchange("", "direct")
    for kind in ("direct", "fanout", "topic", "headers"):
        yield Exchange(f"amq.{kind}", kind)
    yield Exchange("amq.match", "headers")
    yield Exchange("amq.rabbitmq.trace", "topic", internal=True)
