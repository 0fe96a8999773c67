"""The properties of a message in which something can't be decoded: all the others, one by one.

pamqp gives up at the first one: a header that holds a time beyond the calendar would cost the message its attempts, its
request id and its content type.
"""

from contextlib import suppress
from typing import Any, Final

from pamqp import commands, decode

__all__ = ["read_properties"]

_SIZES: Final = {
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"su", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"LldT", 8),
    **dict.fromkeys(b"V\0", 0),
    ord("D"): 5,
}
"""In bytes, by the type of a value in a table (https://www.rabbitmq.com/amqp-0-9-1-errata.html)."""
_SIZED: Final = frozenset(b"SAFx")
"""Those that begin with their length, in four bytes."""


def read_properties(octets: bytes) -> commands.Basic.Properties:
    """Read as many of the properties as there are; one that can't be decoded is None, a header absent.

    Args:
        octets: flags and fields of a content header. Where they end too early, so do the properties.
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
    """The fields of a table that can be decoded, up to where the next one can't be found."""
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
