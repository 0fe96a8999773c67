"""Calls of an ASGI application without a server: in this process, or from the bytes of a loopback socket.

https://asgi.readthedocs.io/en/latest/specs/www.html
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import unquote

from hybridkit._asgi_types import ASGIApp, Message
from hybridkit.clients._transports._base import headers_of
from hybridkit.errors import HeadTooLargeError, RejectedError
from hybridkit.testing._data_faults import Reply

MAX_HEAD_BYTES: Final = 64 * 1024


class Asked(NamedTuple):
    """A request.

    Attributes:
        method: upper case.
        target: path and query, percent-encoded.
        headers: lower-case names.
        body: whole.
    """

    method: str
    target: str
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    @property
    def line(self) -> str:
        """`POST /v1/orders`."""
        return f"{self.method} {self.target.partition('?')[0]}"


@dataclass(slots=True)
class _Collector:
    body: bytes
    given: bool = False
    status: int = 500
    headers: Sequence[tuple[bytes, bytes]] = ()
    answer: bytes = b""

    async def receive(self) -> Message:
        if self.given:
            await asyncio.Event().wait()  # the caller stays connected
        self.given = True
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], message.get("headers", ())
        else:
            self.answer += message.get("body", b"")


async def call(app: ASGIApp, asked: Asked) -> Reply:
    """What the application answers, all of it."""
    path, _, query = asked.target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": list(asked.headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    collector = _Collector(asked.body)
    await app(scope, collector.receive, collector.send)
    return Reply(collector.status, headers_of(collector.headers), collector.answer)


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked | None:
    """The next request of a connection; None where it has ended.

    https://www.rfc-editor.org/rfc/rfc9112

    Raises:
        HeadTooLargeError: its head has more than 64 KiB.
        RejectedError: it is no HTTP.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError:
        raise HeadTooLargeError(f"the head of the request has more than {MAX_HEAD_BYTES} bytes") from None
    try:
        line, *lines = head.removesuffix(b"\r\n\r\n").lstrip(b"\r\n").split(b"\r\n")
        method, target, _ = line.decode("latin-1").split(" ")
        pairs = (header.split(b":", 1) for header in lines)
        headers = [(name.strip().lower(), value.strip()) for name, value in pairs]
        named = dict(headers)
        if named.get(b"expect", b"").lower() == b"100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if named.get(b"transfer-encoding", b"").lower() == b"chunked":
            body = await _read_chunks(reader)
        else:
            body = await reader.readexactly(int(named.get(b"content-length", b"0")))
    except ValueError:
        raise RejectedError("the request is no HTTP") from None
    return Asked(method, target, headers, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size_bytes := int((await reader.readline()).partition(b";")[0], 16):
        body += await reader.readexactly(size_bytes)
        await reader.readline()
    while (await reader.readline()).strip():
        pass  # trailers mean nothing here
    return bytes(body)


async def send_reply(writer: asyncio.StreamWriter, reply: Reply, *, to: Asked) -> None:
    """Write an answer, as slowly as it says."""
    has_body = to.method != "HEAD" and reply.status not in (204, 304)
    phrase = HTTPStatus(reply.status).phrase
    headers = dict(reply.headers)
    if has_body:
        headers["content-length"] = str(len(reply.body))
    lines = [f"HTTP/1.1 {reply.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    if has_body and reply.drip_seconds:
        for byte in reply.body:
            await writer.drain()
            await asyncio.sleep(reply.drip_seconds)
            writer.write(bytes([byte]))
    elif has_body:
        writer.write(reply.body)
    await writer.drain()
