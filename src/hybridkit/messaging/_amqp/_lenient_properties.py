"""Decoding the properties of a message one by one, without those that can't be decoded.

pamqp gives up at the first one: a header with a time beyond the calendar would cost the message its attempts, its
request id and its content type.
"""

from contextlib import suppress
from typing import Any, Final

from pamqp import commands, decode

_SIZES: Final = {
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"su", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"LldT", 8),
    **dict.fromkeys(b"V\0", 0),
    ord("D"): 5,
}
"""The size in bytes by the type of a value in a table (https://www.rabbitmq.com/amqp-0-9-1-errata.html)."""
_SIZED: Final = frozenset(b"SAFx")
"""The types whose values begin with their length, in four bytes."""


def decode_leniently(octets: bytes) -> commands.Basic.Properties:
    """Decode all properties that can be decoded; one that can't is None, and such a header is absent.

    Args:
        octets: a content header from its flags on. Where it ends too early, the properties do as well.
    """
    properties = commands.Basic.Properties()
    flags, at = int.from_bytes(octets[:2], "big"), 2
    for name in properties.__slots__:
        if not flags & properties.flags[name]:
            continue
        kind: str = getattr(properties, f"_{name}")
        stop = at + _size(kind, octets, at)
        if stop > len(octets):
            break
        setattr(properties, name, _value(kind, octets[at:stop]))
        at = stop
    return properties


def _size(kind: str, octets: bytes, at: int) -> int:
    match kind:
        case "shortstr":
            return 1 + (octets[at] if at < len(octets) else 0)
        case "table":
            return 4 + int.from_bytes(octets[at : at + 4], "big")
        case "timestamp":
            return 8
        case _:
            return 1


def _value(kind: str, octets: bytes) -> Any:
    if kind == "table":
        return _fields(octets[4:])
    try:
        return decode.by_type(octets, kind)[1]
    except Exception:  # noqa: BLE001 - a decoder meets what its author did not expect
        return None


def _fields(octets: bytes) -> dict[str, Any]:
    """Decode the fields of a table, up to one whose size isn't known, and without those that can't be decoded."""
    fields: dict[str, Any] = {}
    at, end = 0, len(octets)
    while at < end:
        value_at = at + 1 + octets[at]
        kind = octets[value_at] if value_at < end else -1
        if kind in _SIZED:
            stop = value_at + 5 + int.from_bytes(octets[value_at + 1 : value_at + 5], "big")
        elif kind in _SIZES:
            stop = value_at + 1 + _SIZES[kind]
        else:
            break
        if stop > end:
            break
        with suppress(Exception):  # as above
            fields[octets[at + 1 : value_at].decode()] = decode.embedded_value(octets[value_at:stop])[1]
        at = stop
    return fields
