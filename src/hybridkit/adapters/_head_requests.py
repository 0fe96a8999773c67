"""`HEAD` for whatever answers `GET` (RFC 9110, section 9.1): FastAPI's routes don't have it by themselves."""

from collections.abc import Callable
from typing import Final

from hybridkit._asgi_types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HeadMiddleware"]

_ROUTED: Final = ("endpoint", "route", "fastapi")
"""What routing notes in a scope, for those around it."""


class HeadMiddleware:
    """Has `HEAD` answered as `GET` where nothing answers it otherwise.

    Args:
        app: the application.
        is_routed: whether something answers the request that this is.
    """

    def __init__(self, app: ASGIApp, *, is_routed: Callable[[Scope], bool]) -> None:
        self.app = app
        self.is_routed = is_routed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http" or scope["method"] != "HEAD" or self.is_routed(scope):
            await self.app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}
        if not self.is_routed(as_get):
            await self.app(scope, receive, send)
            return
        try:
            await self.app(as_get, receive, _Head(send).send)
        finally:
            scope.update({name: as_get[name] for name in _ROUTED if name in as_get})


class _Head:
    """An answer that ends with its head: what makes its body, which may never end, is not waited for."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(message)
            await self._send({"type": "http.response.body", "body": b""})
