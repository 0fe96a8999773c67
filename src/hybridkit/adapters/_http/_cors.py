"""Cross-origin requests: which pages may call the application from a browser.

https://fetch.spec.whatwg.org/#http-cors-protocol
"""

from collections.abc import Iterable
from typing import Final

from hybridkit._asgi_types import ASGIApp, Receive, Scope, Send
from hybridkit._header_fields import Fields
from hybridkit.errors import AccessDeniedError

ANY_ORIGIN: Final = b"*"
_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE, QUERY"
_EXPOSED: Final = (
    b"ETag, Idempotency-Replayed, Link, Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-ID"
)
_PREFLIGHT_SECONDS: Final = b"7200"
"""How long browsers remember an answer; the longest time that all of them accept."""
_VARY: Final = (b"vary", b"Origin")


class Cors:
    """Tells browsers that pages of these origins may read responses, and which requests these may send.

    Args:
        origins: the origins, as browsers write them, or `*` for all.
        credentials: whether requests may have cookies; not for `*`.
    """

    def __init__(self, origins: Iterable[str], *, credentials: bool) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self._credentials = [(b"access-control-allow-credentials", b"true")] if credentials else []

    def __repr__(self) -> str:
        return f"Cors({sorted(self._origins)}, credentials={bool(self._credentials)})"

    def headers(self, fields: Fields) -> list[tuple[bytes, bytes]]:
        """Return what a response gets; `Vary` also without an origin, for caches.

        Args:
            fields: the header fields of the request.
        """
        if ANY_ORIGIN in self._origins:
            return [
                (b"access-control-allow-origin", ANY_ORIGIN),
                (b"access-control-expose-headers", _EXPOSED),
            ]
        origin = (fields.single("origin") or "").encode("latin-1")
        if origin not in self._origins:
            return [_VARY]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
            *self._credentials,
            _VARY,
        ]

    def preflight(self, scope: Scope, fields: Fields) -> ASGIApp | None:
        """Return what answers a browser's question before a request, or None for any other request."""
        if scope["method"] != "OPTIONS" or fields.listed("access-control-request-method") is None:
            return None
        if fields.single("origin") is None:
            return None
        wanted = (fields.listed("access-control-request-headers") or "").encode("latin-1")
        is_allowed = len(self.headers(fields)) > 1

        async def answer(_: Scope, __: Receive, send: Send) -> None:
            if not is_allowed:
                raise AccessDeniedError("pages of this origin may not call this service")
            headers = [
                (b"access-control-allow-methods", _METHODS),
                (b"access-control-max-age", _PREFLIGHT_SECONDS),
                *([(b"access-control-allow-headers", wanted)] if wanted else []),
            ]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

        return answer
