"""A message's properties as they came: bytes that are only cut where the broker has to read or change one.

pamqp would decode and encode them again, which costs time and loses the exact types that the publisher chose.
"""

import struct
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final

from pamqp import decode

__all__ = ["Properties", "array", "join_table", "long_integer", "long_string", "table", "timestamp"]

_FLAGS: Final = struct.Struct(">H")
_LENGTH: Final = struct.Struct(">I")
_LONG: Final = struct.Struct(">q")

# In the order of the wire, from the highest flag down: the name, and how many bytes it takes (0: read it there).
_FIELDS: Final = tuple(
    (name, 1 << (15 - position), kind)
    for position, (name, kind) in enumerate(
        [
            ("content_type", "short"),
            ("content_encoding", "short"),
            ("headers", "long"),
            ("delivery_mode", "octet"),
            ("priority", "octet"),
            ("correlation_id", "short"),
            ("reply_to", "short"),
            ("expiration", "short"),
            ("message_id", "short"),
            ("timestamp", "octets"),
            ("type", "short"),
            ("user_id", "short"),
            ("app_id", "short"),
            ("cluster_id", "short"),
        ]
    )
)
# The types of https://www.rabbitmq.com/amqp-0-9-1-errata#section_3 that have one size.
_SIZES: Final[Mapping[int, int]] = dict(
    zip(b"tbBsuIilLfdDTV\x00", [1, 1, 1, 2, 2, 4, 4, 8, 8, 4, 8, 5, 8, 0, 0], strict=True)
)


class Properties:
    """The properties of one message; never changed, but copied with changes.

    Args:
        raw: a content header's payload from its flags on.

    Raises:
        ValueError: it does not hold what its flags say.
    """

    __slots__ = ("__dict__", "_parts", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._parts = _split(raw)

    def __repr__(self) -> str:
        return f"Properties({', '.join(self._parts)})"

    def text(self, name: str) -> str | None:
        """A short string among them, or None where it is absent."""
        part = self._parts.get(name)
        return None if part is None else part[1:].decode(errors="replace")

    @cached_property
    def headers(self) -> Mapping[str, bytes]:
        """Each header's type and value, as they came."""
        part = self._parts.get("headers")
        return {} if part is None else split_table(part)

    def header(self, name: str) -> Any:
        """One header's value, or None where it is absent."""
        raw = self.headers.get(name)
        return None if raw is None else decode.embedded_value(raw)[1]

    def with_headers(self, headers: Mapping[str, bytes], *, without: str = "") -> "Properties":
        """A copy with these headers, and without the property of that name."""
        parts = {name: part for name, part in self._parts.items() if name != without}
        parts["headers"] = join_table(headers)
        if not headers:
            del parts["headers"]
        flags = 0
        pieces = [b""]
        for name, flag, _ in _FIELDS:
            if name in parts:
                flags |= flag
                pieces.append(parts[name])
        pieces[0] = _FLAGS.pack(flags)
        return Properties(b"".join(pieces))


def _split(raw: bytes) -> dict[str, bytes]:
    if len(raw) < 2:
        raise ValueError("no property flags")
    (flags,) = _FLAGS.unpack_from(raw)
    if flags & 0b11:
        raise ValueError("property flags that AMQP 0-9-1 doesn't have")
    parts: dict[str, bytes] = {}
    at = 2
    for name, flag, kind in _FIELDS:
        if not flags & flag:
            continue
        end = at + _field_size(raw, at, kind)
        if end > len(raw):
            raise ValueError(f"the property {name} ends behind the frame")
        parts[name] = raw[at:end]
        if kind == "long":
            _check_table(raw, at + 4, end)
        at = end
    return parts


def _field_size(raw: bytes, at: int, kind: str) -> int:
    match kind:
        case "short":
            return 1 + _byte(raw, at)
        case "long":
            return 4 + _length(raw, at)
        case "octet":
            return 1
        case _:
            return 8


def split_table(part: bytes) -> dict[str, bytes]:
    """A field table, with its length before it, as raw values by name.

    Raises:
        ValueError: it is not well formed.
    """
    return _entries(part, 4, len(part))


def _entries(raw: bytes, at: int, end: int) -> dict[str, bytes]:
    entries: dict[str, bytes] = {}
    while at < end:
        name_end = at + 1 + _byte(raw, at)
        value_end = _value_end(raw, name_end, end)
        entries[raw[at + 1 : name_end].decode(errors="surrogateescape")] = raw[name_end:value_end]
        at = value_end
    return entries


def _check_table(raw: bytes, at: int, end: int) -> None:
    while at < end:
        at = _value_end(raw, at + 1 + _byte(raw, at), end)


def _check_array(raw: bytes, at: int, end: int) -> None:
    while at < end:
        at = _value_end(raw, at, end)


_NESTED: Final[Mapping[int, Callable[[bytes, int, int], None]]] = {
    ord("F"): _check_table,
    ord("A"): _check_array,
}


def _value_end(raw: bytes, at: int, end: int) -> int:
    """Where the value ends whose type stands there."""
    kind = _byte(raw, at)
    size = _SIZES.get(kind)
    if size is not None:
        value_end = at + 1 + size
    elif kind in b"SxAF":
        value_end = at + 5 + _length(raw, at + 1)
    else:
        raise ValueError(f"no field type {chr(kind)!r}")
    if value_end > end:
        raise ValueError("a field ends behind its table")
    if check := _NESTED.get(kind):
        check(raw, at + 5, value_end)
    return value_end


def _byte(raw: bytes, at: int) -> int:
    if at >= len(raw):
        raise ValueError("a field is missing")
    return raw[at]


def _length(raw: bytes, at: int) -> int:
    if at + 4 > len(raw):
        raise ValueError("a field has no length")
    return int(_LENGTH.unpack_from(raw, at)[0])


def join_table(entries: Mapping[str, bytes]) -> bytes:
    """The field table with these raw values, its length before it."""
    pieces: list[bytes] = []
    for name, raw in entries.items():
        encoded = name.encode(errors="surrogateescape")
        pieces += [bytes([len(encoded)]), encoded, raw]
    body = b"".join(pieces)
    return _LENGTH.pack(len(body)) + body


def long_integer(number: int) -> bytes:
    """A field value: 64 bits, which is what RabbitMQ counts with."""
    return b"l" + _LONG.pack(number)


def long_string(text: str) -> bytes:
    """A field value: text."""
    encoded = text.encode(errors="surrogateescape")
    return b"S" + _LENGTH.pack(len(encoded)) + encoded


def timestamp(seconds: int) -> bytes:
    """A field value: a point in time, seconds since 1970."""
    return b"T" + _LONG.pack(seconds)


def array(*values: bytes) -> bytes:
    """A field value: a list of field values."""
    body = b"".join(values)
    return b"A" + _LENGTH.pack(len(body)) + body


def table(entries: Mapping[str, bytes]) -> bytes:
    """A field value: a table in a table."""
    return b"F" + join_table(entries)
