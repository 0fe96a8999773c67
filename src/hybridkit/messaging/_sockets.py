"""The socket under an AMQP connection: one that can be dropped at once, and that lets no header kill its reader."""

import asyncio
from typing import Any, Final

import pamqp.frame
from aiormq.connection import SSLContextProvider, TransportFactory
from pamqp.constants import FRAME_HEADER, FRAME_HEADER_SIZE
from yarl import URL

from hybridkit.observability import get_logger

__all__ = ["FrameReader", "Sockets", "readable_header"]

# https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, section 4.2.6.1: class id, weight, body size, then the flags.
FLAGS_AT: Final = 12

_log = get_logger(__name__)


class Sockets(TransportFactory):
    """Opens a socket for aiormq and keeps it, because aiormq's own way to close waits for a peer that may be frozen."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None

    def __repr__(self) -> str:
        return f"Sockets({self._transport})"

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, with TLS for `amqps`: what `asyncio.open_connection` does, around a reader of ours."""
        certificates: SSLContextProvider = options.pop("ssl_context_provider")
        context = await certificates.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = FrameReader(loop=loop)
        transport, protocol = await loop.create_connection(
            lambda: asyncio.StreamReaderProtocol(reader, loop=loop),
            url.host or "",
            url.port or 0,
            ssl=context,
            **options,
        )
        self._transport = transport
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def abort(self) -> None:
        """Drop the connection without a word."""
        if self._transport is not None:
            self._transport.abort()


class FrameReader(asyncio.StreamReader):
    """Reads what aiormq asks for, frame by frame: the first byte, the rest of the frame's header, its payload."""

    _head = b""

    async def readexactly(self, n: int) -> bytes:
        """The next bytes; a content header that can't be decoded comes without its properties."""
        octets = await super().readexactly(n)
        if len(self._head) < FRAME_HEADER_SIZE:
            self._head += octets
            return octets
        head, self._head = self._head, b""
        return readable_header(head, octets) if head[0] == FRAME_HEADER else octets


def readable_header(head: bytes, payload: bytes) -> bytes:
    """The payload of a content header frame, without properties where they can't be decoded.

    A publisher can send a timestamp of the year 292277026596, and the broker passes it on. Decoding raises, aiormq's
    reader dies of it, and with it the connection; at every redelivery again, for everybody who shares it.

    Args:
        head: type, channel and size of the frame, 7 bytes.
        payload: of the frame, and its end mark.
    """
    try:
        pamqp.frame.unmarshal(head + payload)
    except Exception as error:  # noqa: BLE001 - a decoder meets what its author did not expect
        _log.warning("message properties unreadable", error=repr(error))
        return payload[:FLAGS_AT] + b"\0\0" + payload[FLAGS_AT + 2 :]
    return payload
