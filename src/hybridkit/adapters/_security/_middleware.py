"""The check of every request before its route: who calls, and whether that caller may.

It stands outside of the handling of idempotency keys, so that a stored answer is given to its verified owner only, and
before anything reads the body.
"""

from collections.abc import Collection
from typing import Any, Final

from hybridkit._asgi_types import ASGIApp, Receive, Scope, Send
from hybridkit.adapters._http._keyed_routes import matched_route
from hybridkit.adapters._security._routes import RoutePolicy, policy_of
from hybridkit.context import RequestContext, bind, current
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
_OPEN: Final = RoutePolicy(is_public=True)


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
        policy = self._policy(scope)
        try:
            principal = await self._admitted(scope, policy)
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
        with bind(_context_of(principal)):
            for guard in policy.guards:
                await guard(scope)
            await self.app(scope, receive, send)

    def _policy(self, scope: Scope) -> RoutePolicy:
        """Return what the route of a request needs; nothing where no route answers it, as there is nothing to protect.

        Raises:
            DeclarationError: the route has no policy, which `check_policies` would have found at the start.
        """
        route = _route_of(scope)
        if route is None:
            return _OPEN
        policy = policy_of(route)
        if not policy.is_missing:
            return policy
        if any(route is each for each in self.own) or self.security.is_public_path(scope["path"]):
            return _OPEN
        raise DeclarationError(f"{scope['path']} has no policy, so nobody may call it")

    async def _admitted(self, scope: Scope, policy: RoutePolicy) -> Principal | None:
        """Return the caller, or None for one without an identity at a route that is open.

        Raises:
            UnauthenticatedError: the route needs an identity, and the request proves none.
            AccessDeniedError: the caller may not call this route.
        """
        try:
            principal = await self.security.authenticate(scope)
        except (UnauthenticatedError, TemporaryError):  # it is open to somebody whose token has expired too
            if policy.required:
                raise
            return None
        if policy.required and principal is None:
            raise UnauthenticatedError("this needs credentials")
        if principal is not None:
            self._check(principal, policy)
        return principal

    def _check(self, principal: Principal, policy: RoutePolicy) -> None:
        try:
            for each in policy.required:
                each.check(principal)
        except AccessDeniedError as error:
            with bind(_context_of(principal)):
                _log.info("access denied", reason=str(error))
            raise


def _context_of(principal: Principal) -> RequestContext:
    """Return the context of the request with its user; `dataclasses.replace` takes twice as long."""
    now = current()
    return RequestContext(
        request_id=now.request_id, user_id=principal.id, deadline=now.deadline, claim=now.claim
    )


def _route_of(scope: Scope) -> Any:
    """Return the route that answers a request, also a `HEAD` that is answered as a `GET`; None without one."""
    routes = scope["app"].router.routes
    found = matched_route(routes, scope)
    if found is None and scope.get("method") == "HEAD":
        return matched_route(routes, {**scope, "method": "GET"})
    return found
