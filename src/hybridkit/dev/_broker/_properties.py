"""A message's properties as raw bytes; only those that the broker reads or changes are decoded.

Decoding and encoding by pamqp would cost time and lose the exact types that the publisher chose.
"""

import struct
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final

from pamqp import decode

_FLAGS: Final = struct.Struct(">H")
_LENGTH: Final = struct.Struct(">I")
_LONG: Final = struct.Struct(">q")

# In the order of the wire, from the highest flag down: the name of each property, and the form of its length.
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
    """The properties of one message; immutable.

    Args:
        raw: the payload of a content header from the flags on.

    Raises:
        ValueError: the bytes do not contain what the flags announce.
    """

    __slots__ = ("__dict__", "_parts", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._parts = _split(raw)

    def __repr__(self) -> str:
        return f"Properties({', '.join(self._parts)})"

    def text(self, name: str) -> str | None:
        """Return a property that is a short string, or None without it."""
        part = self._parts.get(name)
        return None if part is None else part[1:].decode(errors="replace")

    @cached_property
    def headers(self) -> Mapping[str, bytes]:
        """The type and value of each header as raw bytes, by name."""
        part = self._parts.get("headers")
        return {} if part is None else split_table(part)

    def header(self, name: str) -> Any:
        """Return the decoded value of a header, or None without it."""
        raw = self.headers.get(name)
        return None if raw is None else decode.embedded_value(raw)[1]

    def with_headers(self, headers: Mapping[str, bytes], *, without: str = "") -> "Properties":
        """Return a copy with other headers, and without the property named `without`."""
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
    """Return the raw values of a field table by name.

    Args:
        part: the table, preceded by its length.

    Raises:
        ValueError: the table is malformed.
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
    """Return the end of the value whose type byte is at that position."""
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
    """Encode a field table of raw values, preceded by its length."""
    pieces: list[bytes] = []
    for name, raw in entries.items():
        encoded = name.encode(errors="surrogateescape")
        pieces += [bytes([len(encoded)]), encoded, raw]
    body = b"".join(pieces)
    return _LENGTH.pack(len(body)) + body


def long_integer(number: int) -> bytes:
    """Encode a field value of 64 bits, which RabbitMQ uses for counts."""
    return b"l" + _LONG.pack(number)


def long_string(text: str) -> bytes:
    """Encode a field value that is text."""
    encoded = text.encode(errors="surrogateescape")
    return b"S" + _LENGTH.pack(len(encoded)) + encoded


def timestamp(seconds: int) -> bytes:
    """Encode a field value that is a time, in seconds since 1970."""
    return b"T" + _LONG.pack(seconds)


def array(*values: bytes) -> bytes:
    """Encode a field value that is a list of field values."""
    body = b"".join(values)
    return b"A" + _LENGTH.pack(len(body)) + body


def table(entries: Mapping[str, bytes]) -> bytes:
    """Encode a field value that is a table."""
    return b"F" + join_table(entries)
