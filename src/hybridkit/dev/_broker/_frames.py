"""Frames on the wire: encoded by pamqp, and by hand the few kinds that make up nearly all traffic.

https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf (4.2.3, General Frame Format).
"""

import struct
from collections.abc import Iterator
from typing import Final

from pamqp import base, commands, constants
from pamqp.frame import marshal

from hybridkit.dev._broker._messages import Message
from hybridkit.dev._broker._properties import Properties
from hybridkit.dev._broker._refusals import RefusalError

METHOD: Final = constants.FRAME_METHOD
HEADER: Final = constants.FRAME_HEADER
BODY: Final = constants.FRAME_BODY
HEARTBEAT: Final = constants.FRAME_HEARTBEAT
PROTOCOL: Final = b"AMQP\x00\x00\x09\x01"
HEARTBEAT_FRAME: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"
OVERHEAD_BYTES: Final = 8

PUBLISH: Final = b"\x00\x3c\x00\x28"
ACK: Final = b"\x00\x3c\x00\x50"
_DELIVER: Final = b"\x00\x3c\x00\x3c"
_RETURN: Final = b"\x00\x3c\x00\x32"
_GET_OK: Final = b"\x00\x3c\x00\x47"
_NACK: Final = b"\x00\x3c\x00\x78"
_DECLARE_OK: Final = b"\x00\x32\x00\x0b"

_FRAME: Final = struct.Struct(">BHI")
_TAG: Final = struct.Struct(">QB")
_COUNT: Final = struct.Struct(">I")
_COUNTS: Final = struct.Struct(">II")
_CODE: Final = struct.Struct(">H")
_CONTENT: Final = struct.Struct(">HHQ")
_END: Final = b"\xce"
_BASIC: Final = 60


def split_frames(data: bytes, max_bytes: int) -> Iterator[tuple[int, int, bytes, int]]:
    """Yield each complete frame of some bytes: its type, channel, payload, and the position where it ends.

    Raises:
        RefusalError: the bytes are no frame, or the frame is too large (501).
    """
    at, size = 0, len(data)
    while at + 7 <= size:
        kind, channel, length = _FRAME.unpack_from(data, at)
        if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
            raise RefusalError(
                501, f"type {kind}, all octets = {_shown(data[at + 7 : at + 7 + length])}: unknown_frame"
            )
        if length + OVERHEAD_BYTES > max_bytes:
            allowed = max_bytes - OVERHEAD_BYTES
            raise RefusalError(501, f"type {kind}, all octets = <<>>: {{frame_too_large,{length},{allowed}}}")
        end = at + 7 + length
        if end >= size:
            return
        payload = data[at + 7 : end]
        if data[end] != 0xCE:
            reason = f"{{invalid_frame_end_marker,{data[end]}}}"
            raise RefusalError(501, f"type {kind}, all octets = {_shown(payload)}: {reason}")
        at = end + 1
        yield kind, channel, payload, at


def _shown(octets: bytes) -> str:
    return f"<<{','.join(map(str, octets[:40]))}>>"


def decode_method(payload: bytes) -> base.Frame:
    """Return the method of a method frame.

    Raises:
        RefusalError: the method does not exist (503), or its arguments are malformed (501).
    """
    if len(payload) < 4:
        raise RefusalError(501, f"type 1, all octets = {_shown(payload)}: unknown_frame")
    (index,) = _COUNT.unpack_from(payload)
    if index not in commands.INDEX_MAPPING:
        raise RefusalError(503, f"unknown method {index >> 16}, {index & 0xFFFF}")
    # Without __init__, which warns of methods that are deprecated: that is the client's business.
    method: base.Frame = object.__new__(commands.INDEX_MAPPING[index])
    try:
        method.unmarshal(payload[4:])
    except Exception as error:  # pamqp lets out whatever its bytes led to
        raise RefusalError(501, f"cannot decode {_shown(payload[4:])}") from error
    return method


def decode_publish(payload: bytes) -> tuple[str, str, int]:
    """Return exchange, routing key and flags (1 mandatory, 2 immediate) of a `basic.publish`.

    Raises:
        RefusalError: the frame is malformed (501).
    """
    try:
        exchange_end = 7 + payload[6]
        key_end = exchange_end + 1 + payload[exchange_end]
        exchange, key = payload[7:exchange_end].decode(), payload[exchange_end + 1 : key_end].decode()
        return exchange, key, payload[key_end]
    except (IndexError, UnicodeDecodeError) as error:
        raise RefusalError(501, f"cannot decode {_shown(payload[4:])}") from error


def decode_ack(payload: bytes) -> tuple[int, bool]:
    """Return delivery tag and `multiple` of a `basic.ack`.

    Raises:
        RefusalError: the frame is malformed (501).
    """
    if len(payload) < 13:
        raise RefusalError(501, f"cannot decode {_shown(payload[4:])}")
    tag, multiple = _TAG.unpack_from(payload, 4)
    return tag, bool(multiple & 1)


def decode_header(payload: bytes) -> tuple[int, Properties]:
    """Return body size and properties of a content header.

    Raises:
        RefusalError: the header is malformed (501), or belongs to another class (505).
    """
    try:
        kind, _, size = _CONTENT.unpack_from(payload)
        if kind != _BASIC:
            raise RefusalError(505, f"expected content header for class 60, got one for class {kind} instead")
        return size, Properties(payload[_CONTENT.size :])
    except (ValueError, struct.error, RecursionError) as error:
        raise RefusalError(502, f"content header: {error}") from error


def encode_method(method: base.Frame, channel: int) -> bytes:
    """Encode a method that has no function of its own below."""
    return marshal(method, channel)


def encode_deliver(
    channel: int, consumer_tag: bytes, tag: int, message: Message, *, redelivered: bool
) -> bytes:
    """Encode `basic.deliver` without its content.

    Args:
        channel: the number of the channel.
        consumer_tag: the tag, encoded by `short`.
        tag: the delivery tag.
        message: the message, for its exchange and routing key.
        redelivered: whether the message may have been delivered before.
    """
    route = short(message.exchange) + short(message.keys[0])
    return _method(channel, _DELIVER + consumer_tag + _TAG.pack(tag, redelivered) + route)


def encode_get_ok(channel: int, tag: int, message: Message, *, redelivered: bool, left: int) -> bytes:
    """Encode `basic.get-ok` without its content."""
    route = short(message.exchange) + short(message.keys[0])
    return _method(channel, _GET_OK + _TAG.pack(tag, redelivered) + route + _COUNT.pack(left))


def encode_return(channel: int, message: Message) -> bytes:
    """Encode `basic.return` of a message without a route, without its content."""
    route = short(message.exchange) + short(message.keys[0])
    return _method(channel, _RETURN + _CODE.pack(312) + short("NO_ROUTE") + route)


def encode_content(channel: int, properties: Properties, body: bytes, max_bytes: int) -> bytes:
    """Encode header and body frames, none larger than the client accepts."""
    payload = _CONTENT.pack(_BASIC, 0, len(body)) + properties.raw
    header = _FRAME.pack(HEADER, channel, len(payload)) + payload + _END
    step = max_bytes - OVERHEAD_BYTES
    if len(body) <= step:
        return header + _FRAME.pack(BODY, channel, len(body)) + body + _END if body else header
    pieces = [header]
    for at in range(0, len(body), step):
        piece = body[at : at + step]
        pieces += [_FRAME.pack(BODY, channel, len(piece)), piece, _END]
    return b"".join(pieces)


def encode_confirm(channel: int, tag: int, *, multiple: bool, is_ack: bool = True) -> bytes:
    """Encode `basic.ack` or `basic.nack` for a publish."""
    return _method(channel, (ACK if is_ack else _NACK) + _TAG.pack(tag, multiple))


def encode_declare_ok(channel: int, queue: str, messages: int, consumers: int) -> bytes:
    """Encode `queue.declare-ok`, also for names that pamqp refuses and RabbitMQ accepts."""
    return _method(channel, _DECLARE_OK + short(queue) + _COUNTS.pack(messages, consumers))


def short(text: str) -> bytes:
    """Encode a short string."""
    encoded = text.encode()[:255]
    return bytes([len(encoded)]) + encoded


def _method(channel: int, payload: bytes) -> bytes:
    return _FRAME.pack(METHOD, channel, len(payload)) + payload + _END
