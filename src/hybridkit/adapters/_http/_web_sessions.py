"""The session of an HTTP request: a cookie, typed data in Redis, and no help for pages of other sites."""

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from fastapi import Request
from pydantic import BaseModel

from hybridkit._asgi_types import Scope
from hybridkit._header_fields import Fields
from hybridkit.adapters._http._asgi import RESPONSE_COOKIES, ResponseCookies
from hybridkit.context import bind, current
from hybridkit.coordination import Redis, Session, Sessions
from hybridkit.errors import CrossSiteError, DeclarationError, MisuseError, UnauthenticatedError
from hybridkit.observability import metrics

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "QUERY", "TRACE"})
"""The methods that change nothing (RFC 9110, section 9.2.1). A link on any page may cause a GET with the cookie."""

_SECURE: Final = "Path=/; Secure; HttpOnly; SameSite=Lax"
_PLAIN: Final = "Path=/; HttpOnly; SameSite=Lax"


class WebSession[T: BaseModel]:
    """The session of one request.

    Attributes:
        current: the session, as it is known to this request; None where the browser has no valid one.
        sessions: all sessions, to list and revoke those of a user.
    """

    def __init__(
        self, sessions: Sessions[T], session: Session[T] | None, cookie: "_Cookie", *, label: str
    ) -> None:
        self.sessions = sessions
        self.current = session
        self._cookie = cookie
        self._label = label

    def __repr__(self) -> str:
        return f"WebSession({self.current!r})"

    @property
    def user_id(self) -> str | None:
        """The user who has signed in; None without one."""
        return None if self.current is None else self.current.user_id

    def required(self) -> Session[T]:
        """Return the session.

        Raises:
            UnauthenticatedError: there is none, which is answered with 401.
        """
        if self.current is None:
            raise UnauthenticatedError("there is no session: sign in first")
        return self.current

    async def start(self, data: T, *, user_id: str | None = None) -> Session[T]:
        """Begin a new session with a new id, as a login does; the request's old session, if any, ends.

        Raises:
            MisuseError: the response has begun already, so it can't carry the cookie.
            UnavailableError: Redis does not answer.
        """
        self._cookie.check_settable()
        before = self.current
        begun = await self.sessions.create(data, user_id=user_id, label=self._label)
        self._become(begun)
        if before is not None:
            await self.sessions.end(before)
        return begun

    async def rotate(self, *, user_id: str | None = None) -> Session[T]:
        """Give the session a new id and keep its data; the old id is dead at once.

        Args:
            user_id: the user who has signed in.

        Raises:
            UnauthenticatedError: there is no session.
            SessionEndedError: the session has ended, or another request has rotated it.
            MisuseError: the session is another user's, or the response has begun already.
            UnavailableError: Redis does not answer.
        """
        self._cookie.check_settable()
        rotated = await self.sessions.rotate(self.required(), user_id=user_id)
        self._become(rotated)
        return rotated

    async def save(self, data: T) -> Session[T]:
        """Replace the session's data; see `Sessions.save`.

        Raises:
            UnauthenticatedError: there is no session.
            StaleVersionError: another request has saved since this one has read it.
            SessionEndedError: the session has ended.
            UnavailableError: Redis does not answer.
        """
        self.current = await self.sessions.save(self.required(), data)
        return self.current

    async def update(self, change: Callable[[T], T]) -> Session[T]:
        """Apply a change to the session's present data; see `Sessions.update`.

        Raises:
            UnauthenticatedError: there is no session.
            SessionEndedError: the session has ended.
            UnavailableError: Redis does not answer.
        """
        self.current = await self.sessions.update(self.required(), change)
        return self.current

    async def end(self) -> None:
        """End the session, as a logout does, and clear the cookie. Without a session, only the latter.

        Raises:
            MisuseError: the response has begun already, so it can't clear the cookie.
            UnavailableError: Redis does not answer.
        """
        self._cookie.check_settable()
        if self.current is not None:
            await self.sessions.end(self.current)
            self.current = None
        self._cookie.set("", max_age_seconds=0)

    def _become(self, session: Session[T]) -> None:
        self.current = session
        left = session.ends_at - session.last_seen_at
        self._cookie.set(session.id, max_age_seconds=int(left.total_seconds()))


class SessionCookies[T: BaseModel]:
    """The dependency that gives a route its request's session.

    ```python
    web = SessionCookies("web", Account)

    @app.get("/me")
    async def me(session: Annotated[WebSession[Account], Depends(web)]) -> Account:
        return session.required().data
    ```

    The id is in the cookie `__Host-NAME_session` (`Secure`, `HttpOnly`, `Path=/`, `SameSite=Lax`). Outside of
    production, over plain HTTP on this machine, it is `NAME_session`, without `Secure`. A response that sets the
    cookie has `Cache-Control: no-store`. While the route runs, the context has the session's user.

    A request that may change something (not GET, HEAD, OPTIONS, QUERY or TRACE) is refused with 403 when a page of
    another origin has sent it, by the browser's `Sec-Fetch-Site`, or else by `Origin`. So no token is needed against
    cross-site request forgery; but a GET must change nothing.

    Args:
        name: the name of the sessions, in snake_case.
        data: the model of the data.
        idle_seconds: the time after which an unused session ends.
        lifetime_seconds: the time after which a session ends in any case.
        max_data_bytes: the most bytes of the data as JSON.
        max_per_user: the most sessions of one user.
        trusted_origins: other origins whose pages may send such requests, as in `https://app.example.com`.

    Raises:
        DeclarationError: a trusted origin is not a scheme and a host.
    """

    def __init__(
        self,
        name: str,
        data: type[T],
        *,
        idle_seconds: float = 1800.0,
        lifetime_seconds: float = 43_200.0,
        max_data_bytes: int = 4096,
        max_per_user: int = 20,
        trusted_origins: Collection[str] = (),
    ) -> None:
        for origin in trusted_origins:
            parts = urlsplit(origin)
            if origin != f"{parts.scheme}://{parts.netloc}" or not parts.hostname:
                raise DeclarationError(f"an origin is https://host or https://host:port, not {origin!r}")
        self.name = name
        self._data = data
        self._options: dict[str, Any] = {
            "idle_seconds": idle_seconds,
            "lifetime_seconds": lifetime_seconds,
            "max_data_bytes": max_data_bytes,
            "max_per_user": max_per_user,
        }
        self._trusted_origins = frozenset(trusted_origins)
        self._sessions: WeakKeyDictionary[Redis, Sessions[T]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"SessionCookies({self.name!r}, {self._data.__name__})"

    async def __call__(self, request: Request) -> AsyncGenerator[WebSession[T]]:
        """Give the session of a request.

        Raises:
            CrossSiteError: a page of another origin has sent a request that may change something.
            DeclarationError: the application has no Redis, or no `RequestContextMiddleware`.
            UnavailableError: Redis does not answer.
        """
        fields = Fields(request.scope["headers"])
        if request.method not in _SAFE and not self._is_from_trusted_page(request.scope, fields):
            metrics.sessions.labels(self.name, "cross_site").inc()
            raise CrossSiteError("a page of another site has sent this request")
        sessions = self.of(request)
        cookie = _Cookie(f"{self.name}_session", request)
        session_id = cookie.read()
        session = None if session_id is None else await sessions.load(session_id)
        label = fields.listed("user-agent") or ""
        user_id = None if session is None else session.user_id
        with nullcontext() if user_id is None else bind(replace(current(), user_id=user_id)):
            yield WebSession(sessions, session, cookie, label=label)

    def of(self, request: Request) -> Sessions[T]:
        """Return the sessions of the application that a request has come to.

        Raises:
            DeclarationError: the application has no Redis.
        """
        redis: Redis | None = getattr(request.app.state, "redis", None)
        if redis is None:
            raise DeclarationError(
                "sessions need Redis: the settings class of the application has no redis_url"
            )
        if redis not in self._sessions:
            self._sessions[redis] = Sessions(self.name, self._data, redis=redis, **self._options)
        return self._sessions[redis]

    def _is_from_trusted_page(self, scope: Scope, fields: Fields) -> bool:
        """Return whether a request comes from a page of ours, or from no browser.

        All browsers since 2023 send `Sec-Fetch-Site` over HTTPS; all since 2020 send `Origin` with a POST.
        https://www.w3.org/TR/fetch-metadata/
        """
        origin = fields.single("origin")
        if origin in self._trusted_origins:
            return True
        site = fields.single("sec-fetch-site")
        if site is not None:
            return site in {"same-origin", "none"}  # none: the user has caused it, as by sending a form again
        if origin is None:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        is_downgraded = scope["scheme"] == "https" and parts.scheme != "https"
        return not is_downgraded and parts.netloc.lower() == (fields.single("host") or "").lower() != ""


class _Cookie:
    """The cookie of one request and its response."""

    def __init__(self, name: str, request: Request) -> None:
        self._request = request
        is_plain = _is_development(request)
        self._name = name if is_plain else f"__Host-{name}"
        self._attributes = _PLAIN if is_plain else _SECURE
        cookies: ResponseCookies | None = request.scope.get(RESPONSE_COOKIES)
        if cookies is None:
            raise DeclarationError("sessions need RequestContextMiddleware, which create_app adds")
        self._cookies = cookies

    def __repr__(self) -> str:
        return f"_Cookie({self._name!r})"

    def read(self) -> str | None:
        """Return what the browser has sent, or None for nothing, or for several values."""
        pairs = (
            pair.partition("=")
            for line in self._request.headers.getlist("cookie")
            for pair in line.split(";")
        )
        values = [value.strip() for name, _, value in pairs if name.strip() == self._name]
        return values[0] if len(values) == 1 else None

    def check_settable(self) -> None:
        """Refuse to change a session whose browser can't be told any more.

        Raises:
            MisuseError: the response has begun.
        """
        if self._cookies.are_sent:
            raise MisuseError(
                "the response has begun, so it can't set the session's cookie: do that before it"
            )

    def set(self, value: str, *, max_age_seconds: int) -> None:
        """Add the cookie to the response."""
        self._cookies.set(self._name, f"{value}; Max-Age={max_age_seconds}; {self._attributes}")


def _is_development(request: Request) -> bool:
    """Return whether the cookie may travel without TLS: on this machine only, and never in production."""
    settings = getattr(request.app.state, "settings", None)
    if settings is None or settings.environment == "production" or request.scope["scheme"] != "http":
        return False
    host = request.url.hostname or ""
    return host in {"localhost", "127.0.0.1", "::1"} or host.endswith(".localhost")
