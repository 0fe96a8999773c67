"""Exchanges: which bindings a message matches (https://www.rabbitmq.com/docs/exchanges)."""

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
    """From an exchange to a queue or to another exchange.

    Attributes:
        target: the queue or the exchange.
        key: the routing key, or its pattern.
        arguments: what a headers exchange compares.
    """

    target: "Queue | Exchange"
    key: str
    arguments: Arguments = field(hash=False)


Matches = Callable[[Binding, str, Properties], bool]


class Exchange:
    """Finds the bindings that a message matches.

    Attributes:
        name: empty for the default exchange.
        kind: direct, fanout, topic or headers.
        durable: only compared: everything here is lost with the broker.
        auto_delete: it goes with its last binding.
        internal: no client may publish to it.
        alternate: the name of the exchange that gets what matches nothing.
        arguments: as declared.
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
        """Add a binding; one that is there already stays.

        Raises:
            RefusalError: 406, a headers exchange doesn't know that way to match.
        """
        mode = binding.arguments.get("x-match", "all")
        if self.kind == "headers" and mode not in _HEADER_MODES:
            known = "expected all, any, all-with-x, or any-with-x"
            raise RefusalError(406, f'Invalid x-match field value <<"{mode}">>; {known}')
        if binding not in self.bindings:
            self.bindings.append(binding)
            self._remembered.clear()

    def unbind(self, matches: Callable[[Binding], bool]) -> bool:
        """Remove these bindings; whether there were any."""
        kept = [binding for binding in self.bindings if not matches(binding)]
        found = len(kept) < len(self.bindings)
        self.bindings = kept
        self._remembered.clear()
        return found

    def targets(self, key: str, properties: Properties) -> Sequence["Queue | Exchange"]:
        """Where a message goes from here, each target once."""
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
    # RabbitMQ finds no word in an empty key, and an empty one at each end of ".".
    return key.split(".") if key else ()


def topic_matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Whether the words fit, where `*` is any one word and `#` any number of them."""
    # Which numbers of words the pattern so far can have taken.
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
    # A binding without a value asks only whether the header is there.
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
    """Those that every virtual host has from the start."""
    yield Exchange("", "direct")
    for kind in ("direct", "fanout", "topic", "headers"):
        yield Exchange(f"amq.{kind}", kind)
    yield Exchange("amq.match", "headers")
    yield Exchange("amq.rabbitmq.trace", "topic", internal=True)
