"""Calls of an ASGI application without a server.

https://asgi.readthedocs.io/en/latest/specs/www.html
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from hybridkit._asgi_types import ASGIApp, Message
from hybridkit._http_server import HttpRequest
from hybridkit.clients._transports._base import headers_of
from hybridkit.testing._data_faults import Reply


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


async def call(app: ASGIApp, request: HttpRequest) -> Reply:
    """Call an ASGI application, and return its complete response."""
    path, _, query = request.target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": list(request.headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    collector = _Collector(request.body)
    await app(scope, collector.receive, collector.send)
    return Reply(collector.status, headers_of(collector.headers), collector.answer)
