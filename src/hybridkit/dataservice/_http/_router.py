"""From a path to what answers it: one route of the application for the whole contract.

A route of FastAPI's costs a regular expression for each one before it, the solving of dependencies and two exit stacks;
the contract's routes need none of that. A path is split and looked up, and what every request has to pass stands here
once: the length of its URL, who calls and what they may do, which answer they take.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Final

from opentelemetry import trace
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from hybridkit._asgi_types import Receive, Send
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
from hybridkit.resources._resource import AnyResource

JSON: Final = read_media_type("application/json; charset=utf-8")
NDJSON: Final = read_media_type("application/x-ndjson; charset=utf-8")
PREFIX: Final = "/v1/"
UNDELETE: Final = ":undelete"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers one method of one path.

    Attributes:
        handler: answers a request that has been let in.
        resource: what it reaches; None for what only its body tells.
        accesses: what it does there; the caller needs all of them.
        offers: the media types that its answer can have, the usual one first; none for an answer without a body.
        prefers: whether `Prefer` changes the answer.
        takes_query: whether the URL may have a query.
    """

    handler: Callable[[ContractRequest], Awaitable[Response]]
    resource: AnyResource | None = None
    accesses: tuple[Access, ...] = ()
    offers: tuple[MediaType, ...] = (JSON,)
    prefers: bool = False
    takes_query: bool = False

    @property
    def vary(self) -> str:
        """The fields of a request that decide on the answer beside its URL, for caches."""
        names = [name for name, decides in (("Accept", self.offers), ("Prefer", self.prefers)) if decides]
        return ", ".join(names)

    def check(self, request: ContractRequest) -> None:
        """Refuse a request that asks for more than it can answer, and settle the answer's media type.

        Raises:
            InvalidQueryError: a query, where none is read.
            NotAcceptableError: an answer of other media types only.
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
    """As `best_offer`; a client sends the same field with each request."""
    return best_offer(read_accept(accept), offers)


@dataclass(slots=True)
class PathItem:
    """One path of the contract.

    Attributes:
        path: as the OpenAPI document has it, and as metrics and spans are labelled.
        endpoints: by method.
    """

    path: str
    endpoints: dict[str, Endpoint] = field(default_factory=dict[str, Endpoint])

    def endpoint(self, method: str) -> Endpoint | None:
        """What answers that method; `HEAD` is `GET` without the body."""
        return self.endpoints.get("GET" if method == "HEAD" else method)

    @property
    def allow(self) -> str:
        """Its methods, for `Allow`."""
        of_get = ["HEAD"] if "GET" in self.endpoints else []
        return ", ".join([*self.endpoints, *of_get, "OPTIONS"])

    @property
    def options(self) -> list[Header]:
        """What `OPTIONS` tells of it; `Accept-Patch` is from RFC 5789, section 3.1."""
        headers = [(b"allow", self.allow.encode())]
        if "PATCH" in self.endpoints:
            headers.append((b"accept-patch", f"{MERGE_PATCH_MEDIA_TYPE}, {JSON_MEDIA_TYPE}".encode()))
        return headers


class ContractRouter(BaseRoute):
    """Everything under `/v1` that the declarations make. What it doesn't know is left to the application's own routes.

    Attributes:
        path_items: by path.
    """

    path = path_format = "/v1"

    def __init__(self) -> None:
        self.path_items: dict[str, PathItem] = {}
        self._records: dict[str, PathItem] = {}
        self._undeletes: dict[str, PathItem] = {}
        self._natural: set[str] = set()

    def __repr__(self) -> str:
        return f"ContractRouter({len(self.path_items)} paths)"

    def add(self, path: str, method: str, endpoint: Endpoint) -> PathItem:
        """Answer that method of that path.

        Raises:
            DeclarationError: something does already.
        """
        item = self.path_items.setdefault(path, PathItem(path))
        if method in item.endpoints:
            raise DeclarationError(f"{method} {path} is declared twice")
        item.endpoints[method] = endpoint
        return item

    def add_record(self, resource: AnyResource, method: str, endpoint: Endpoint) -> None:
        """Answer that method of the resource's records."""
        self._records[resource.name] = self.add(f"{resource.path}/{{id}}", method, endpoint)
        if resource.record.model_fields["id"].annotation is str:
            self._natural.add(resource.name)

    def add_undelete(self, resource: AnyResource, endpoint: Endpoint) -> None:
        """Answer the way back from a soft delete."""
        self._undeletes[resource.name] = self.add(f"{resource.path}/{{id}}{UNDELETE}", "POST", endpoint)

    def matches(self, scope: Any) -> tuple[Match, Any]:
        """Whether that path is one of the contract's, and its method one of the path's."""
        if scope["type"] != "http":
            return Match.NONE, {}
        path: str = scope["path"]
        root: str = scope.get("root_path", "")
        item, record_id = self._find(path.removeprefix(root) if root else path, scope["method"])
        if item is None:
            return Match.NONE, {}
        known = item.endpoint(scope["method"]) is not None
        child = {"route": item, "path_params": {"id": record_id}}
        return (Match.FULL if known else Match.PARTIAL), child

    async def handle(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a request that matches; `OPTIONS` with the methods that the path has.

        Raises:
            HTTPException: 405, with the same.
        """
        item: PathItem = scope["route"]
        endpoint = item.endpoint(scope["method"])
        if endpoint is None:
            if scope["method"] == "OPTIONS":
                await BytesResponse(204, b"", item.options).send(receive, send, ())
                return
            raise HTTPException(405, headers={"allow": item.allow})
        _name_span(scope["method"], item.path)
        request = ContractRequest(scope, receive)
        request.record_id = scope["path_params"]["id"]
        check_url(request)
        callers: Callers = request.app.state.callers
        request.caller = callers.name(request)
        for access in endpoint.accesses:
            callers.check(request.caller, endpoint.resource, access)
        endpoint.check(request)
        waited = start_waiting_time()
        response = await endpoint.handler(request)
        await response.send(receive, send, _common_headers(request, endpoint, waited))

    def _find(self, path: str, method: str) -> tuple[PathItem | None, str]:
        name, slash, record_id = path[len(PREFIX) :].partition("/")
        if not slash or not path.startswith(PREFIX):
            return self.path_items.get(path), ""
        # A natural key may have a slash in it, sent as %2F, which a server hands on decoded; and a colon.
        natural = name in self._natural
        if record_id.endswith(UNDELETE) and name in self._undeletes and (method == "POST" or not natural):
            return self._undeletes[name], record_id.removesuffix(UNDELETE)
        if "/" in record_id and not natural:
            return None, ""
        return self._records.get(name), record_id


def _common_headers(request: ContractRequest, endpoint: Endpoint, waited: WaitingTime) -> list[Header]:
    headers: list[Header] = [(b"vary", endpoint.vary.encode())] if endpoint.vary else []
    if applied := request.applied:
        headers.append((b"preference-applied", applied.encode()))
    if waited.seconds:
        headers.append((b"server-timing", waited.header.encode()))
    return headers


def _name_span(method: str, path: str) -> None:
    """As OpenTelemetry names it where it knows the route, which this one keeps to itself."""
    span = trace.get_current_span()
    if span.is_recording():
        span.update_name(f"{method} {path}")
        span.set_attribute("http.route", path)
