"""The contract's routes, made from the declared resources and calls. They reach the database through `Store` only."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.middleware import Middleware
from starlette.routing import Route

from hybridkit._asgi_types import ASGIApp, Receive, Scope, Send
from hybridkit.contract import CALLER_HEADER
from hybridkit.dataservice._http._audit._routes import AuditRoutes
from hybridkit.dataservice._http._batch_routes import BatchRoutes
from hybridkit.dataservice._http._bodies import RequestBodies
from hybridkit.dataservice._http._call_routes import CallRoute
from hybridkit.dataservice._http._openapi._document import ContractDocument, add_document
from hybridkit.dataservice._http._own_calls import CallHandler, check_calls
from hybridkit.dataservice._http._query_routes import QueryRoutes
from hybridkit.dataservice._http._record_routes import RecordRoutes
from hybridkit.dataservice._http._requests import ContractRequest
from hybridkit.dataservice._http._router import ContractMiddleware, ContractRouter
from hybridkit.dataservice._http._streams._erasure_route import ErasureRoute
from hybridkit.dataservice._http._streams._routes import StreamRoutes
from hybridkit.dataservice._http._transact_route import TransactRoute

if TYPE_CHECKING:
    from hybridkit.dataservice._http._callers import Callers
from hybridkit.resources._resource import AnyCall
from hybridkit.streams._stream import AnyStream


def add_routes(
    app: FastAPI,
    bodies: Mapping[str, RequestBodies],
    calls: Mapping[AnyCall, CallHandler] | None = None,
    *,
    streams: Collection[AnyStream] = (),
    saga_data: Mapping[str, type[BaseModel]] | None = None,
) -> None:
    """Add all routes under `/v1` and their OpenAPI document, and let `/ready` refuse the callers that they refuse.

    The routes expect `store`, `callers` and `can_emit` in the `state` of the running application.

    Args:
        app: the application, which may have other routes, also under `/v1`.
        bodies: the request bodies of each resource, by its name.
        calls: the service's own calls with their handlers.
        streams: the kinds of streams.
        saga_data: the data models of sagas, by their names, whose personal fields are erased with a person.

    Raises:
        DeclarationError: a call doesn't fit the resources or its handler, a stream has the name of another stream or
            a resource, or a resource has the audit trail's name.
    """
    calls = calls or {}
    check_calls(calls, bodies)
    router = ContractRouter()
    for resource_bodies in bodies.values():
        RecordRoutes(resource_bodies).add_to(router)
        QueryRoutes(resource_bodies).add_to(router)
        BatchRoutes(resource_bodies).add_to(router)
    AuditRoutes([each.resource for each in bodies.values()]).add_to(router)
    own = [CallRoute(call, handler) for call, handler in calls.items()]
    for call in own:
        call.add_to(router)
    named = {stream.name: stream for stream in streams}
    for stream in streams:
        StreamRoutes(stream).add_to(router)
    TransactRoute(bodies, named).add_to(router)
    ErasureRoute([each.resource for each in bodies.values()], streams, saga_data or {}).add_to(router)
    app.router.routes.insert(0, router)
    app.user_middleware.append(Middleware(ContractMiddleware, router=router))  # the innermost one
    for other in [each for route in app.router.routes for each in getattr(route, "routes", [route])]:
        if isinstance(other, Route) and other.path == "/ready":
            other.app = _refusing_bad_tokens(other.app)
    add_document(app, ContractDocument(bodies.values(), own, streams))


def _refusing_bad_tokens(app: ASGIApp) -> ASGIApp:
    """Wrap `/ready` so that it refuses the bad token of a service; an orchestrator's probe, which has none, passes."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        request = ContractRequest(scope)
        callers: Callers = scope["app"].state.callers
        comes_from_service = not {CALLER_HEADER, "authorization"}.isdisjoint(request.headers)
        if comes_from_service and callers.prove_who_they_are:
            callers.name(request)
        await app(scope, receive, send)

    return serve
