"""The router of the contract: one route of the application for all paths that the declarations make.

A FastAPI route costs a regular expression for each route before it, the solving of dependencies and two exit stacks;
the contract's routes need none of that. A path is split and looked up, and the checks of every request stand here
once: the length of its URL, its caller and the caller's permissions, the media types that it accepts.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from hybridkit._asgi_types import ASGIApp, Receive, Scope, Send
from hybridkit._header_fields import MediaType, best_offer, read_accept, read_media_type
from hybridkit._syntax import escape_token
from hybridkit.dataservice._http._callers import Access, Callers
from hybridkit.dataservice._http._requests import (
    JSON_MEDIA_TYPE,
    MERGE_PATCH_MEDIA_TYPE,
    ContractRequest,
    check_url,
)
from hybridkit.dataservice._http._responses import BytesResponse, Header, Response
from hybridkit.dataservice._store._waiting_time import WaitingTime, start_waiting_time
from hybridkit.errors import DeclarationError, InvalidQueryError, NotAcceptableError
from hybridkit.resources._resource import AnyCall, AnyResource
from hybridkit.streams._stream import AnyStream

JSON: Final = read_media_type("application/json; charset=utf-8")
NDJSON: Final = read_media_type("application/x-ndjson; charset=utf-8")
PREFIX: Final = "/v1/"
UNDELETE: Final = "undelete"
APPEND: Final = "append"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path.

    Attributes:
        handler: answers a request that has passed the checks.
        resource: the resource or stream that it reaches; None where the body names them.
        accesses: the permissions on the resource that the caller needs, all of them.
        call: the call of the service's own that it answers, whose permission the caller needs.
        offers: the media types of the response, the default first; empty for a response without a body.
        prefers: whether `Prefer` changes the response.
        takes_query: whether the URL may have a query.
    """

    handler: Callable[[ContractRequest], Awaitable[Response]]
    resource: AnyResource | AnyStream | None = None
    accesses: tuple[Access, ...] = ()
    call: AnyCall | None = None
    offers: tuple[MediaType, ...] = (JSON,)
    prefers: bool = False
    takes_query: bool = False

    @property
    def vary(self) -> str:
        """The value of `Vary`: the request headers that the response depends on."""
        names = [name for name, decides in (("Accept", self.offers), ("Prefer", self.prefers)) if decides]
        return ", ".join(names)

    def check_caller(self, callers: Callers, caller: str) -> None:
        """Refuse a caller that may not use the endpoint.

        Raises:
            AccessDeniedError: the caller has no permission.
        """
        if self.call is not None:
            callers.check_call(caller, self.call)
        elif self.resource is not None:
            for access in self.accesses:
                callers.check(caller, self.resource, access)

    def check(self, request: ContractRequest) -> None:
        """Refuse a request that the endpoint can't answer, and choose the media type of the response.

        Raises:
            InvalidQueryError: the URL has a query, and the endpoint reads none.
            NotAcceptableError: `Accept` allows none of the offers.
            InvalidHeaderError: `Accept` can't be read.
        """
        if not self.takes_query and request.scope["query_string"]:
            for name, _ in request.query_params.multi_items():
                raise InvalidQueryError(
                    f"this route takes no parameter {name[:100]!r}", pointer=f"/{escape_token(name[:100])}"
                )
        if not self.offers:
            return
        if request.fields.listed("accept") is None:
            request.media_type = self.offers[0]
            return
        request.media_type = request.fields.read("accept", partial(_most_welcome, offers=self.offers))
        if request.media_type is None:
            raise NotAcceptableError(f"the answer is {' or '.join(offer.name for offer in self.offers)}")


@lru_cache(maxsize=256)
def _most_welcome(accept: str, offers: tuple[MediaType, ...]) -> MediaType | None:
    """Return `best_offer` of an `Accept` field, cached because a client sends the same one with each request."""
    return best_offer(read_accept(accept), offers)


@dataclass(slots=True)
class PathItem:
    """One path of the contract.

    Attributes:
        path: the template as in the OpenAPI document, which also labels metrics and spans.
        endpoints: the endpoints by method.
    """

    path: str
    endpoints: dict[str, Endpoint] = field(default_factory=dict[str, Endpoint])

    def endpoint(self, method: str) -> Endpoint | None:
        """Return the endpoint of a method, or None; `HEAD` is `GET` without the body."""
        return self.endpoints.get("GET" if method == "HEAD" else method)

    @property
    def allow(self) -> str:
        """The value of `Allow`."""
        of_get = ["HEAD"] if "GET" in self.endpoints else []
        return ", ".join([*self.endpoints, *of_get, "OPTIONS"])

    @property
    def options(self) -> list[Header]:
        """The headers of the response to `OPTIONS`; `Accept-Patch` is from RFC 5789, section 3.1."""
        headers = [(b"allow", self.allow.encode())]
        if "PATCH" in self.endpoints:
            headers.append((b"accept-patch", f"{MERGE_PATCH_MEDIA_TYPE}, {JSON_MEDIA_TYPE}".encode()))
        return headers


class ContractRouter(BaseRoute):
    """The route of all paths under `/v1` that the declarations make; others are left to the application's routes.

    Attributes:
        path_items: the path items by their template.
    """

    path = path_format = "/v1"

    def __init__(self) -> None:
        self.path_items: dict[str, PathItem] = {}
        self._records: dict[str, PathItem] = {}
        self._record_calls: dict[tuple[str, str], PathItem] = {}
        self._natural: set[str] = set()

    def __repr__(self) -> str:
        return f"ContractRouter({len(self.path_items)} paths)"

    def add(self, path: str, method: str, endpoint: Endpoint) -> PathItem:
        """Add an endpoint for a method of a path, and return the path item.

        Raises:
            DeclarationError: the method of the path has an endpoint already.
        """
        item = self.path_items.setdefault(path, PathItem(path))
        if method in item.endpoints:
            raise DeclarationError(f"{method} {path} is declared twice")
        item.endpoints[method] = endpoint
        return item

    def add_record(self, resource: AnyResource, method: str, endpoint: Endpoint) -> None:
        """Add an endpoint for a method of the resource's records."""
        self._records[resource.name] = self.add(f"{resource.path}/{{id}}", method, endpoint)
        if resource.record.model_fields["id"].annotation is str:
            self._natural.add(resource.name)

    def add_record_call(
        self, resource: AnyResource | AnyStream, name: str, method: str, endpoint: Endpoint
    ) -> None:
        """Add the endpoint of `{id}:{name}`, such as the one that undoes a soft delete."""
        self._record_calls[resource.name, name] = self.add(f"{resource.path}/{{id}}:{name}", method, endpoint)

    def add_stream(self, stream: AnyStream, *, read: Endpoint, append: Endpoint) -> None:
        """Add the endpoints of one stream of a kind, whose ids are natural keys."""
        self._records[stream.name] = self.add(f"{stream.path}/{{id}}", "GET", read)
        self.add_record_call(stream, APPEND, "POST", append)
        self._natural.add(stream.name)

    def matches(self, scope: Any) -> tuple[Match, Any]:
        """Return whether the contract has the path, and whether the path has the method."""
        if scope["type"] != "http":
            return Match.NONE, {}
        path: str = scope["path"]
        root: str = scope.get("root_path", "")
        item, record_id = self._find(path.removeprefix(root) if root else path, scope)
        if item is None:
            return Match.NONE, {}
        known = item.endpoint(scope["method"]) is not None
        child = {"route": item, "path_params": {"id": record_id}}
        return (Match.FULL if known else Match.PARTIAL), child

    async def handle(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a request that matches; `OPTIONS` with the methods of the path.

        Raises:
            HTTPException: the path doesn't have the method (405).
        """
        item: PathItem = scope["route"]
        endpoint = item.endpoint(scope["method"])
        if endpoint is None:
            if scope["method"] == "OPTIONS":
                await BytesResponse(204, b"", item.options).send(receive, send, ())
                return
            raise HTTPException(405, headers={"allow": item.allow})
        request = ContractRequest(scope, receive)
        request.record_id = scope["path_params"]["id"]
        check_url(request)
        callers: Callers = request.app.state.callers
        request.caller = callers.name(request)
        endpoint.check_caller(callers, request.caller)
        endpoint.check(request)
        waited = start_waiting_time()
        response = await endpoint.handler(request)
        await response.send(receive, send, _common_headers(request, endpoint, waited))

    def _find(self, path: str, scope: Any) -> tuple[PathItem | None, str]:
        name, slash, record_id = path[len(PREFIX) :].partition("/")
        if not slash or not path.startswith(PREFIX):
            return self.path_items.get(path), ""
        # A natural key may have a slash in it, sent as %2F, which servers decode before the application; and a colon.
        natural = name in self._natural
        called, colon, call = record_id.rpartition(":")
        item = self._record_calls.get((name, call)) if colon else None
        if item is not None and (not natural or self._names_call(name, call, scope)):
            return item, called
        if "/" in record_id and not natural:
            return None, ""
        return self._records.get(name), record_id

    def _names_call(self, name: str, call: str, scope: Any) -> bool:
        """Return whether the end of a path is a call, and not of a natural key, in which a client encodes the colon."""
        method, raw = scope["method"], scope.get("raw_path")
        if self._records[name].endpoint(method) is None:
            return True
        if self._record_calls[name, call].endpoint(method) is None:
            return False
        return raw is None or raw.endswith(f":{call}".encode())


class ContractMiddleware:
    """Gives the contract's requests to their router, past FastAPI's routing and its two stacks of handlers.

    It is the innermost middleware, so that an application's own works as for other routes.

    Args:
        app: serves everything else, also a method that a path of the contract doesn't have.
        router: the contract's router.
    """

    def __init__(self, app: ASGIApp, *, router: ContractRouter) -> None:
        self.app = app
        self.router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        match, child = self.router.matches(scope)
        if match is Match.FULL:
            scope.update(child)
            await self.router.handle(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _common_headers(request: ContractRequest, endpoint: Endpoint, waited: WaitingTime) -> list[Header]:
    headers: list[Header] = [(b"vary", endpoint.vary.encode())] if endpoint.vary else []
    if applied := request.applied:
        headers.append((b"preference-applied", applied.encode()))
    if waited.seconds:
        headers.append((b"server-timing", waited.header.encode()))
    return headers
