"""What an application does at its edge, by the settings of the current start: headers, origins, proxies, time."""

import os
from collections.abc import Mapping
from typing import Any, Final

from hybridkit._asgi_types import RawHeaders
from hybridkit._header_fields import Fields
from hybridkit.adapters._http._cors import Cors
from hybridkit.adapters._http._limits import by_segments, of_path
from hybridkit.adapters._http._proxies import TrustedProxies
from hybridkit.errors import DeclarationError, SettingsError
from hybridkit.settings import ServiceSettings
from hybridkit.settings._edge import EdgeSettings

_SECURITY: Final[RawHeaders] = [
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
"""For answers that are no pages: a browser that shows one as a page loads and runs nothing."""

_TRANSPORT: Final = (b"strict-transport-security", b"max-age=63072000")
"""For two years the browser asks by TLS only."""

_NO_STORE: Final = (b"cache-control", b"no-store")
_CREDENTIALS: Final = frozenset({b"authorization", b"cookie"})
_UVICORNS: Final = "FORWARDED_ALLOW_IPS"

DOCUMENT_POLICY: Final = (
    b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; connect-src 'self'; "
    b"script-src 'unsafe-inline' https://cdn.jsdelivr.net; worker-src blob:; "
    b"style-src 'unsafe-inline' https://cdn.jsdelivr.net https://fonts.googleapis.com; "
    b"font-src https://fonts.gstatic.com; img-src 'self' data: https://fastapi.tiangolo.com https://cdn.redoc.ly"
)
"""The `Content-Security-Policy` of FastAPI's pages of the OpenAPI document."""


class Edge:
    """The rules at the edge of an application. Those of its settings hold from one start to the next.

    Args:
        internal: whether the callers are our own services: no browser shows their answers, and they name a deadline.
        timeouts: the seconds for a request, by the path that a URL begins with; None for any time.

    Attributes:
        cors: the origins whose pages may call; None for none.
        proxies: the proxies that are believed; None for none.

    Raises:
        DeclarationError: a timeout's path does not begin with a slash, or it is not positive.
    """

    cors: Cors | None
    proxies: TrustedProxies | None

    def __init__(self, *, internal: bool = False, timeouts: Mapping[str, float | None] | None = None) -> None:
        for path, seconds in (timeouts or {}).items():
            if not path.startswith("/") or (seconds is not None and seconds <= 0):
                raise DeclarationError(
                    f"timeout {path!r}: {seconds}: a path begins with `/`, a timeout is positive or None"
                )
        self._internal = internal
        self._timeouts = dict(timeouts or {})
        self.reset()

    def __repr__(self) -> str:
        return f"Edge({self.cors!r}, {self.proxies!r})"

    def reset(self) -> None:
        """Forget the settings of a start."""
        self.cors = self.proxies = None
        self._headers: RawHeaders = [] if self._internal else _SECURITY
        self._names = frozenset(name for name, _ in self._headers)
        self._has_hsts = False
        seconds = None if self._internal else EdgeSettings.model_fields["request_seconds"].default
        self._seconds_by_path = by_segments({"/": seconds, **self._timeouts})

    def configure(self, settings: ServiceSettings) -> None:
        """Take the values of a start from its settings, or the defaults where they are no `EdgeSettings`.

        Raises:
            SettingsError: uvicorn is told to believe every caller's address, in production.
        """
        self.reset()
        is_production = settings.environment == "production"
        if is_production and os.environ.get(_UVICORNS, "").strip() == "*":
            raise SettingsError(
                "the addresses of clients could be anybody's choice:",
                problems=[f"{_UVICORNS}: should be unset; name the proxies in TRUSTED_PROXIES"],
            )
        self._has_hsts = is_production and not self._internal
        if not isinstance(settings, EdgeSettings):
            return
        self._seconds_by_path = by_segments({"/": settings.request_seconds, **self._timeouts})
        if settings.cors_origins:
            self.cors = Cors(settings.cors_origins, credentials=settings.cors_credentials)
        if settings.trusted_proxies or settings.proxy_hops:
            self.proxies = TrustedProxies(settings.trusted_proxies, hops=settings.proxy_hops)

    def seconds_for(self, path: str) -> float | None:
        """Return the time for a request to a path; None for any."""
        return of_path(self._seconds_by_path, path)

    def added_to(
        self, own: Mapping[bytes, bytes], scope: Mapping[str, Any], fields: Fields, *, has_user: bool
    ) -> RawHeaders:
        """Return what a response gets beside its own headers, which stay as they are.

        Args:
            own: the headers of the response, with names in lower case.
            scope: the request's scope.
            fields: the header fields of the request.
            has_user: whether the request was found to be of a user.
        """
        added = [*self._headers]
        if not self._names.isdisjoint(own):
            added = [field for field in added if field[0] not in own]
        if self._has_hsts and scope["scheme"] == "https":
            added.append(_TRANSPORT)
        is_personal = not self._internal and (has_user or fields.has_any(_CREDENTIALS))
        if is_personal and b"cache-control" not in own:
            added.append(_NO_STORE)
        if self.cors is not None:
            added += self.cors.headers(fields)
        return added
