"""The check of every request before its route: who calls, and whether that caller may.

It stands outside of the handling of idempotency keys, so that a stored answer is given to its verified owner only, and
before anything reads the body.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from hybridkit._asgi_types import ASGIApp, Receive, Scope, Send
from hybridkit.adapters._http._keyed_routes import matched_route
from hybridkit.adapters._security._routes import policies_of
from hybridkit.context import bind, current
from hybridkit.errors import (
    AccessDeniedError,
    DeclarationError,
    RejectedError,
    TemporaryError,
    UnauthenticatedError,
)
from hybridkit.observability import get_logger
from hybridkit.security import Principal, Security
from hybridkit.security._policies import PRINCIPAL

_log = get_logger("hybridkit.security")


class SecurityMiddleware:
    """Authenticates each caller, and refuses those whom the policies of the route do not let in.

    Args:
        app: the application.
        security: the security of the application.
        own: the routes that the SDK has added, which are open.
    """

    def __init__(self, app: ASGIApp, *, security: Security, own: Collection[Any] = ()) -> None:
        self.app = app
        self.security = security
        self.own = own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        try:
            principal = await self._admitted(scope)
        except (RejectedError, TemporaryError) as error:
            if scope["type"] == "http":
                raise
            _log.warning("websocket refused", reason=str(error))
            await receive()
            await send(
                {"type": "websocket.close", "code": 1008, "reason": ""}
            )  # before it is accepted: HTTP 403
            return
        scope[PRINCIPAL] = principal
        if principal is None:
            await self.app(scope, receive, send)
            return
        with bind(replace(current(), user_id=principal.id)):
            await self.app(scope, receive, send)

    async def _admitted(self, scope: Scope) -> Principal | None:
        """Return the caller, or None for one without an identity at a route that is open.

        Raises:
            UnauthenticatedError: the route needs an identity, and the request proves none.
            AccessDeniedError: the caller may not call this route.
        """
        security = self.security
        route = _route_of(scope)
        policies = () if route is None else policies_of(route)
        if route is not None and not policies and not self._is_open(route, scope, security):
            raise DeclarationError(f"{scope['path']} has no policy, so nobody may call it")
        if not any(not policy.is_public for policy in policies):
            try:
                return await security.authenticate(scope)
            except (
                UnauthenticatedError,
                TemporaryError,
            ):  # it is open to somebody whose token has expired too
                return None
        principal = await security.authenticate(scope)
        if principal is None:
            raise UnauthenticatedError("this needs credentials")
        try:
            for policy in policies:
                policy.check(principal)
        except AccessDeniedError as error:
            with bind(replace(current(), user_id=principal.id)):
                _log.info("access denied", reason=str(error))
            raise
        return principal

    def _is_open(self, route: Any, scope: Scope, security: Security) -> bool:
        return any(route is each for each in self.own) or security.is_public_path(scope["path"])


def _route_of(scope: Scope) -> Any:
    """Return the route that answers a request, also a `HEAD` that is answered as a `GET`; None without one."""
    routes = scope["app"].router.routes
    found = matched_route(routes, scope)
    if found is None and scope.get("method") == "HEAD":
        return matched_route(routes, {**scope, "method": "GET"})
    return found
