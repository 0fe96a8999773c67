"""The AMQP frames that carry messages, encoded and decoded by hand; pamqp does all others.

A message is a method frame, a content header frame and body frames. There is one function for each: an encoder returns
whole frames, a decoder reads a payload inside of a larger buffer.
https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, sections 4.2.3 to 4.2.7.
"""

import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from pamqp import commands, encode

from hybridkit.errors import PayloadTooLargeError
from hybridkit.messaging._amqp._lenient_properties import decode_leniently
from hybridkit.observability import get_logger

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
FRAME_KINDS: Final = frozenset({METHOD, HEADER, BODY, 8})
HEARTBEAT_FRAME: Final = b"\x08\0\0\0\0\0\0\xce"
HEAD: Final = struct.Struct(">BHI")
"""Kind, channel, and the size of the payload, which the frame end follows."""
FRAME_OVERHEAD: Final = HEAD.size + 1

# Class and method, as the first four bytes of a method frame's payload.
CONNECTION_BLOCKED: Final = b"\x00\x0a\x00\x3c"
CONNECTION_UNBLOCKED: Final = b"\x00\x0a\x00\x3d"
CHANNEL_CLOSE: Final = b"\x00\x14\x00\x28"
PUBLISH: Final = b"\x00\x3c\x00\x28"
RETURN: Final = b"\x00\x3c\x00\x32"
DELIVER: Final = b"\x00\x3c\x00\x3c"
ACK: Final = b"\x00\x3c\x00\x50"
NACK: Final = b"\x00\x3c\x00\x78"

PROPERTIES_AT: Final = 12
"""The offset of the property flags in a content header, after class, weight and body size."""
MANDATORY: Final = b"\x01"
END: Final = b"\xce"

_CONTENT: Final = struct.Struct(">BHIHHQH")  # a header frame up to its property flags
_SETTLE: Final = struct.Struct(">BHI4sQBB")  # a whole frame of basic.ack or basic.nack
_TAG_AND_BITS: Final = struct.Struct(">QB")
_SIZE: Final = struct.Struct(">Q")
_LENGTH: Final = struct.Struct(">I")
_LENGTHS: Final = tuple(bytes((length,)) for length in range(256))

_HAS_TYPE: Final = 0x0020
_HAS_APP_ID: Final = 0x0008
# Content type, headers, delivery mode (2: persistent) and message id are in every message of ours.
_FLAGS: Final = 0x8000 | 0x2000 | 0x1000 | 0x0080
JSON_MEDIA_TYPE: Final = "application/json"
_PERSISTENT_AND_LENGTHS: Final = tuple(
    b"\x02" + length for length in _LENGTHS
)  # that of the id, which follows
_FIXED_BYTES: Final = _CONTENT.size - HEAD.size + len(_PERSISTENT_AND_LENGTHS[0])

_log = get_logger(__name__)


class DeliverMethod(NamedTuple):
    """The fields of a `basic.deliver`, without the consumer tag."""

    tag: int
    redelivered: bool
    exchange: str
    routing_key: str


class FrameTemplate(NamedTuple):
    """The parts of a message's frames that are the same for every message of one kind, encoded once.

    Attributes:
        method: the payload of a `basic.publish` with the mandatory bit, and the end of its frame.
        flags: the property flags.
        content_type: the first property, encoded.
        tail: the properties after the message id, encoded (type and application id), and the end of the frame.
        header_bytes: the size of a content header's payload, without the table of headers and the message id.
        exchange: "" for the default exchange, where the routing key is the queue's name.
        routing_key: for the exchange.
        message_type: AMQP's `type`.
    """

    method: bytes
    flags: int
    content_type: bytes
    tail: bytes
    header_bytes: int
    exchange: str
    routing_key: str
    message_type: str | None

    def __str__(self) -> str:
        return f"{self.message_type or 'the message'} for {self.exchange or 'queue'!r} {self.routing_key!r}"


@lru_cache(maxsize=4096)
def frame_template(
    exchange: str,
    routing_key: str,
    message_type: str | None,
    app_id: str | None,
    content_type: str = JSON_MEDIA_TYPE,
) -> FrameTemplate:
    """Encode where messages go and what they are; the result is cached.

    Args:
        exchange: at most 255 bytes of UTF-8, like the other arguments.
        routing_key: for the exchange.
        message_type: AMQP's `type`.
        app_id: the name of the publishing service.
        content_type: of the body.

    Raises:
        ValueError: an argument is longer, or has no UTF-8 form.
    """
    flags, tail = _FLAGS, b""
    if message_type is not None:
        flags |= _HAS_TYPE
        tail = _short(message_type)
    if app_id is not None:
        flags |= _HAS_APP_ID
        tail += _short(app_id)
    method = PUBLISH + b"\0\0" + _short(exchange) + _short(routing_key) + MANDATORY + END
    first = _short(content_type)
    return FrameTemplate(
        method=method,
        flags=flags,
        content_type=first,
        tail=tail + END,
        header_bytes=_FIXED_BYTES + len(first) + len(tail),
        exchange=exchange,
        routing_key=routing_key,
        message_type=message_type,
    )


def message_parts(
    template: FrameTemplate, table: bytes, body: bytes, *, message_id: bytes, channel: int, frame_max: int
) -> tuple[bytes, ...]:
    """Encode a persistent message: the parts of its method, content header and body frames, to be joined.

    They are parts, because joining those of many messages at once copies each body once instead of twice.

    Args:
        template: by `frame_template`.
        table: the headers, by `encode_table`.
        body: written in one frame if it fits, otherwise in as many as it needs.
        message_id: ASCII, at most 255 bytes.
        channel: the channel's number.
        frame_max: the largest frame that the broker takes, in bytes.

    Raises:
        PayloadTooLargeError: the content header, which can't be cut into frames, is larger than one.
    """
    most = frame_max - FRAME_OVERHEAD
    body_bytes, id_bytes = len(body), len(message_id)
    header_bytes = template.header_bytes + len(table) + id_bytes
    if header_bytes > most:
        raise PayloadTooLargeError(
            f"the headers of {template} have {header_bytes} bytes, and have to fit into a frame of {frame_max}",
            size_bytes=header_bytes,
            limit_bytes=most,
        )
    head = (
        HEAD.pack(METHOD, channel, len(template.method) - 1),
        template.method,
        _CONTENT.pack(HEADER, channel, header_bytes, 60, 0, body_bytes, template.flags),
        template.content_type,
        table,
        _PERSISTENT_AND_LENGTHS[id_bytes],
        message_id,
        template.tail,
    )
    if 0 < body_bytes <= most:
        return (*head, HEAD.pack(BODY, channel, body_bytes), body, END)
    return (*head, *_body_frames(channel, body, most))


def _body_frames(channel: int, body: bytes, most: int) -> Iterator[bytes]:
    for start in range(0, len(body), most):
        part = body[start : start + most]
        yield HEAD.pack(BODY, channel, len(part)) + part + END


def ack_frame(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Encode a `basic.ack`; with `multiple`, of all deliveries up to that tag."""
    return _SETTLE.pack(METHOD, channel, 13, ACK, tag, multiple, END[0])


def nack_frame(channel: int, tag: int, *, requeue: bool = True) -> bytes:
    """Encode a `basic.nack`, which puts the message back into its queue, or has the queue dead-letter it."""
    return _SETTLE.pack(METHOD, channel, 13, NACK, tag, 2 if requeue else 0, END[0])


def encode_fields(headers: Mapping[str, Any]) -> bytes:
    """Encode the fields of a table, without its length; several results together are fields of one table.

    Raises:
        TypeError: AMQP can't carry a value.
        ValueError: AMQP can't carry a value, or a name has more than 255 bytes.
    """
    parts: list[bytes] = []
    for name, value in headers.items():
        if type(value) is str:
            octets = value.encode()
            parts += _text_key(name), _LENGTH.pack(len(octets)), octets
        else:
            parts += _short(name), encode.encode_table_value(value)
    return b"".join(parts)


def encode_table(*fields: bytes) -> bytes:
    """Encode a field table: its length, then its fields, by `encode_fields`."""
    return b"".join((_LENGTH.pack(sum(map(len, fields))), *fields))


def read_settled(data: bytes, start: int) -> tuple[int, int]:
    """Decode tag and bits of the `basic.ack` or `basic.nack` at that offset; bit 0 is `multiple`."""
    tag, bits = _TAG_AND_BITS.unpack_from(data, start + 4)
    return tag, bits


def read_deliver(data: bytes, start: int, stop: int) -> DeliverMethod:
    """Decode the `basic.deliver` between these offsets."""
    at = start + 5 + data[start + 4]  # after the consumer tag
    tag, redelivered = _TAG_AND_BITS.unpack_from(data, at)
    return DeliverMethod(tag, bool(redelivered), *_read_route(data[at + 9 : stop]))


@lru_cache(maxsize=1024)
def _read_route(octets: bytes) -> tuple[str, str]:
    """Decode exchange and routing key, which are the same for many messages."""
    exchange, at = _read_short(octets, 0)
    routing_key, _ = _read_short(octets, at)
    return exchange, routing_key


def read_close(data: bytes, start: int) -> str:
    """Decode code and text of the `channel.close` at that offset, such as `404 NOT_FOUND - no exchange 'a'`."""
    text, _ = _read_short(data, start + 6)
    return f"{int.from_bytes(data[start + 4 : start + 6], 'big')} {text}"


def read_body_size(data: bytes, start: int) -> int:
    """Decode the body size in the content header at that offset."""
    size: int = _SIZE.unpack_from(data, start + 4)[0]
    return size


def decode_properties(octets: bytes) -> commands.Basic.Properties:
    """Decode the properties of a content header, from its flags on, and leave out what can't be decoded.

    A publisher can send a timestamp of the year 292277026596, and the broker passes it on to the consumers.
    """
    properties = commands.Basic.Properties()
    try:
        flags = int.from_bytes(octets[:2], "big")
        properties.unmarshal(flags, octets[2:])
    except Exception as error:  # noqa: BLE001 - a decoder meets what its author did not expect
        _log.warning("message properties unreadable", error=f"{error!r:.200}")
        return decode_leniently(octets)
    return properties


@lru_cache(maxsize=1024)
def _text_key(name: str) -> bytes:
    return _short(name) + b"S"


def _short(text: str) -> bytes:
    octets = text.encode()
    if len(octets) >= len(_LENGTHS):
        raise ValueError(f"AMQP takes up to 255 bytes here, not {len(octets)}: {text[:40]!r}…")
    return _LENGTHS[len(octets)] + octets


def _read_short(data: bytes, at: int) -> tuple[str, int]:
    stop = at + 1 + data[at]
    return data[at + 1 : stop].decode(errors="replace"), stop
