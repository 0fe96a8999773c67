"""Whatever a publisher wrote into a message's properties, reading it doesn't end the connection."""

import struct
from collections.abc import Iterator, MutableMapping
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from structlog.testing import capture_logs
from yarl import URL

from hybridkit.messaging._sockets import FrameReader, Sockets, readable_header


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as written:
        yield written


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"


def header(flags: int, properties: bytes, *, body_size: int = 5) -> bytes:
    """A content header frame of `basic` (class 60)."""
    return frame(2, struct.pack(">HHQH", 60, 0, body_size, flags) + properties)


ENDLESS = header(0x0040, struct.pack(">Q", 2**63))
"""A message whose timestamp property is in the year 292277026596."""


def decoded(octets: bytes) -> ContentHeader:
    _, _, found = pamqp.frame.unmarshal(octets)
    assert isinstance(found, ContentHeader)
    return found


async def test_a_header_that_can_not_be_decoded_comes_without_properties() -> None:
    """The frames around it stay as they are."""
    fine = pamqp.frame.marshal(ContentHeader(0, 7, Basic.Properties(headers={"a": 1})), 1)
    body = frame(3, b"hello")
    reader = FrameReader()
    reader.feed_data(fine + ENDLESS + body)
    found: list[bytes] = []
    for size in (len(fine), len(ENDLESS), len(body)):  # as aiormq reads: type, rest of the head, payload
        first, rest = await reader.readexactly(1), await reader.readexactly(6)
        found.append(first + rest + await reader.readexactly(size - 7))
    assert found[0] == fine
    assert found[2] == body
    assert (decoded(found[1]).body_size, decoded(found[1]).properties.timestamp) == (5, None)


@given(flags=st.integers(0, 2**16 - 1), properties=st.binary(max_size=60))
def test_no_properties_are_unreadable(flags: int, properties: bytes) -> None:
    octets = header(flags, properties)
    head, payload = octets[:7], octets[7:]
    assert decoded(head + readable_header(head, payload)).body_size == 5


async def test_a_socket_that_was_never_opened_can_be_dropped() -> None:
    sockets = Sockets()
    sockets.abort()
    assert repr(sockets) == "Sockets(None)"


async def test_tls_is_asked_for_where_the_url_says_so() -> None:
    """With the certificates that the URL names; here there are none that fit, so nothing is connected."""

    class NoCertificates:
        async def get_context(self) -> None:
            raise FileNotFoundError("ca.pem")

    sockets = Sockets()
    with pytest.raises(FileNotFoundError):
        await sockets.create(URL("amqps://127.0.0.1:1/"), ssl_context_provider=NoCertificates())
    with pytest.raises(OSError, match="Connect call failed"):
        await sockets.create(URL("amqp://127.0.0.1:1/"), ssl_context_provider=NoCertificates())
