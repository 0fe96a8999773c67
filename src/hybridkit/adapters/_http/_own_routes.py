"""The routes that every application has: what is alive, ready and measured, and the OpenAPI document with its pages."""

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from starlette.routing import Match, Route

from hybridkit._asgi_types import ASGIApp, Message, Receive, Scope, Send
from hybridkit._header_fields import Fields
from hybridkit.adapters._http._edge import DOCUMENT_POLICY
from hybridkit.codec import encode_json
from hybridkit.errors import NoRouteError
from hybridkit.observability import render_metrics
from hybridkit.settings import EdgeSettings, ServiceSettings

if TYPE_CHECKING:
    from hybridkit.lifespan import ServiceResources


class _PlainRoute(Route):
    """A route without parameters, which is told from others without a regular expression: each request asks all."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["path"] != self.path and not scope.get("root_path"):
            return Match.NONE, {}
        return super().matches(scope)


def add_own_routes(app: FastAPI) -> None:
    """Add `/health`, `/ready` and `/metrics`, which tell nothing about what is inside in production."""

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

    for path, answer in (("/health", health), ("/ready", ready), ("/metrics", metrics)):
        app.router.routes.append(_PlainRoute(path, answer, include_in_schema=False))


def hide_documents(app: FastAPI) -> None:
    """Serve the OpenAPI document and its pages if the settings ask for it, as they tell strangers everything."""
    hidden = {app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url}
    for route in app.router.routes:
        if isinstance(route, Route) and route.path in hidden:
            route.app = _if_asked_for(route.app)
            route.__class__ = _PlainRoute


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
