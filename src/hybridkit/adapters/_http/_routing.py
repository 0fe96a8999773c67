"""The last steps to a route, and the routes that every application has.

Those tell what is alive, ready and measured, and serve the OpenAPI document with its pages.
"""

from collections.abc import Iterable
from contextlib import AsyncExitStack
from copy import copy
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.datastructures import URLPath
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import BaseRoute, Match, NoMatchFound, Route

from hybridkit._asgi_types import ASGIApp, Message, Receive, Scope, Send
from hybridkit._header_fields import Fields
from hybridkit.adapters._http._asgi import RESPONSE_COOKIES, ProblemMiddleware, RequestContextMiddleware
from hybridkit.adapters._http._edge import DOCUMENT_POLICY
from hybridkit.adapters._http._keyed import KEYED
from hybridkit.codec import encode_json
from hybridkit.errors import NoRouteError
from hybridkit.observability import render_metrics
from hybridkit.settings import EdgeSettings, ServiceSettings

if TYPE_CHECKING:
    from hybridkit.lifespan import ServiceResources


class _OwnRoutes(BaseRoute):
    """The routes that the SDK adds, found by one look into a dict, as each request asks all routes in turn.

    Args:
        routes: routes without parameters in their paths.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = list(routes)
        self._by_path = {route.path: route for route in self.routes}

    def __repr__(self) -> str:
        return f"_OwnRoutes({sorted(self._by_path)})"

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path, root_path = scope["path"], scope.get("root_path", "")
        route = self._by_path.get(path)
        if root_path and path.startswith(
            f"{root_path}/"
        ):  # as Starlette does, where a proxy has left it in the path
            route = self._by_path.get(path.removeprefix(root_path))
        if route is None:
            return Match.NONE, {}
        match, child = route.matches(scope)
        return match, {**child, _OWN: route}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope[_OWN].handle(scope, receive, send)

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        for route in self.routes:
            if route.name == name:
                return route.url_path_for(name, **path_params)
        raise NoMatchFound(name, path_params)


_OWN: Final = "hybridkit.own_route"


class RouteDispatch:
    """Calls the router as Starlette's `ExceptionMiddleware` and FastAPI's stack for files around it do.

    They spend a coroutine on each message of a response to see whether it has begun, which only an error asks for.

    Args:
        handlers: the application's handlers of errors, as Starlette's routes look for them in the scope.
        handling: the middleware with these handlers.
        stack_name: the key in a scope of the stack of files.
        router: the application's router.
    """

    def __init__(
        self, handlers: object, handling: ExceptionMiddleware, stack_name: str, router: APIRouter
    ) -> None:
        self._handlers = handlers
        self._handling = handling
        self._stack_name = stack_name
        self._router = router.middleware_stack

    def __repr__(self) -> str:
        return f"RouteDispatch({self._stack_name!r})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or connection."""
        if scope["type"] != "http" or KEYED in scope:
            await self._handling(scope, receive, send)
            return
        scope["starlette.exception_handlers"] = self._handlers
        try:
            async with AsyncExitStack() as stack:
                scope[self._stack_name] = stack
                await self._router(scope, receive, send)
        except Exception as error:
            if scope[RESPONSE_COOKIES].are_sent:
                raise
            failing = copy(self._handling)
            failing.app = _raising(error)
            await failing(scope, receive, send)


def _raising(error: Exception) -> ASGIApp:
    async def fail(_: Scope, __: Receive, ___: Send) -> None:
        raise error

    return fail


def shorten(outermost: RequestContextMiddleware) -> None:
    """Leave out of an application's middleware what repeats the outermost one, if nothing stands in between.

    What another version of FastAPI or Starlette has built in another way stays as it is.

    Args:
        outermost: the outermost middleware of an application that has not been called.
    """
    inner: Any = outermost.app
    if not isinstance(inner, ProblemMiddleware):
        return
    outermost.app, outermost.handle_failure = inner.app, inner.handle_failure
    inner = outermost
    while (handling := getattr(inner, "app", None)) is not None:
        if type(handling) is ExceptionMiddleware:
            handlers = tuple(vars(handling).get(name) for name in ("_exception_handlers", "_status_handlers"))
            stacking: Any = handling.app
            router = getattr(stacking, "app", None)
            if (
                None not in handlers
                and type(stacking) is AsyncExitStackMiddleware
                and isinstance(router, APIRouter)
            ):
                inner.app = RouteDispatch(handlers, handling, stacking.context_name, router)
            return
        inner = handling


def add_own_routes(app: FastAPI) -> None:
    """Add `/health`, `/ready` and `/metrics`, which tell nothing about what is inside in production.

    The OpenAPI document and its pages, which tell strangers everything, are served if the settings ask for it.
    """

    async def health(request: Request) -> Response:
        resources: ServiceResources = request.app.state.resources
        return _json(*resources.health.liveness())

    async def ready(request: Request) -> Response:
        resources: ServiceResources = request.app.state.resources
        readiness = await resources.health.readiness()
        is_public = _is_production(request.app)
        return _json(
            readiness.status_code, {"status": readiness.status} if is_public else readiness.to_dict()
        )

    async def metrics(request: Request) -> Response:
        if _is_production(request.app):
            raise NoRouteError("there is no such route")
        body, content_type = render_metrics(Fields(request.scope["headers"]).listed("accept") or "")
        return Response(body, headers={"content-type": content_type})

    probes = (("/health", health), ("/ready", ready), ("/metrics", metrics))
    found = [Route(path, answer, include_in_schema=False) for path, answer in probes]
    for route in app.router.routes:  # FastAPI's own: the OpenAPI document and its pages
        if isinstance(route, Route):
            route.app = _if_asked_for(route.app)
            found.append(route)
    app.router.routes[:] = [_OwnRoutes(found)]


def _if_asked_for(app: ASGIApp) -> ASGIApp:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        settings: ServiceSettings | None = getattr(scope["app"].state, "settings", None)
        asked = settings.serve_docs if isinstance(settings, EdgeSettings) else None
        if asked is False or (asked is None and _is_production(scope["app"])):
            raise NoRouteError("there is no such route")

        async def send_page(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", DOCUMENT_POLICY)
                message = {**message, "headers": [*message.get("headers", ()), policy]}
            await send(message)

        await app(scope, receive, send_page)

    return serve


def _is_production(app: FastAPI) -> bool:
    settings: ServiceSettings | None = getattr(app.state, "settings", None)
    return settings is not None and settings.environment == "production"


def _json(status: int, body: object) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(encode_json(body), status, headers=headers, media_type="application/json")
