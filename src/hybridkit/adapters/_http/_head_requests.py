"""`HEAD` for every path that answers `GET` (RFC 9110, section 9.1), which FastAPI's routes lack."""

from collections.abc import Awaitable, Callable
from typing import Final

from hybridkit._asgi_types import ASGIApp, Message, Receive, Scope, Send

_ROUTED: Final = ("endpoint", "route", "fastapi")
"""The keys that routing adds to a scope, for middleware."""


class HeadMiddleware:
    """Answers `HEAD` as `GET` where no route answers it itself.

    Args:
        app: the application.
        is_routed: returns whether a route answers a request.
    """

    def __init__(self, app: ASGIApp, *, is_routed: Callable[[Scope], bool]) -> None:
        self.app = app
        self.is_routed = is_routed

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request; others than `HEAD` without a coroutine of its own."""
        if scope["type"] != "http" or scope["method"] != "HEAD" or self.is_routed(scope):
            return self.app(scope, receive, send)
        return self._answer_as_get(scope, receive, send)

    async def _answer_as_get(self, scope: Scope, receive: Receive, send: Send) -> None:
        as_get = {**scope, "method": "GET"}
        if not self.is_routed(as_get):
            await self.app(scope, receive, send)
            return
        try:
            await self.app(as_get, receive, _Head(send).send)
        finally:
            scope.update({name: as_get[name] for name in _ROUTED if name in as_get})


class _Head:
    """A response that ends after its head, without waiting for the body, which may never end."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(message)
            await self._send({"type": "http.response.body", "body": b""})
