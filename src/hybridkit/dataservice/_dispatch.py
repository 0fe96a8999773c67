"""From a path to what answers it: one route of the application for the whole contract.

A route of FastAPI's costs a regular expression for each one before it, the solving of dependencies and two exit stacks;
the contract's routes need none of that. A path is split and looked up, and what every request has to pass stands here
once: its deadline, the length of its URL, who calls and what they may do.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry import trace
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from hybridkit.context import current
from hybridkit.dataservice._answers import Answering, Header, Receive, Send
from hybridkit.dataservice._callers import Access, Callers
from hybridkit.dataservice._operations import AnyResource
from hybridkit.dataservice._requests import ContractRequest, check_head
from hybridkit.dataservice._timing import DatabaseTime, watch_database
from hybridkit.errors import DeclarationError

__all__ = ["ContractRoute", "Endpoint", "Place"]

PREFIX: Final = "/v1/"
UNDELETE: Final = ":undelete"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers one method of one path.

    Attributes:
        answer: given a request that has been let in.
        resource: what it reaches; None for what only its body tells.
        accesses: what it does there; the caller needs all of them.
    """

    answer: Callable[[ContractRequest], Awaitable[Answering]]
    resource: AnyResource | None = None
    accesses: tuple[Access, ...] = ()


@dataclass(slots=True)
class Place:
    """One path of the contract.

    Attributes:
        path: as the OpenAPI document has it, and as metrics and spans are labelled.
        endpoints: by method.
    """

    path: str
    endpoints: dict[str, Endpoint] = field(default_factory=dict[str, Endpoint])


class ContractRoute(BaseRoute):
    """Everything under `/v1` that the declarations make. What it doesn't know is left to the application's own routes.

    Attributes:
        places: by path.
    """

    path = path_format = "/v1"

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._records: dict[str, Place] = {}
        self._undeletes: dict[str, Place] = {}
        self._natural: set[str] = set()

    def __repr__(self) -> str:
        return f"ContractRoute({len(self.places)} paths)"

    def add(self, path: str, method: str, endpoint: Endpoint) -> Place:
        """Answer that method of that path.

        Raises:
            DeclarationError: something does already.
        """
        place = self.places.setdefault(path, Place(path))
        if method in place.endpoints:
            raise DeclarationError(f"{method} {path} is declared twice")
        place.endpoints[method] = endpoint
        return place

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
        place, record_id = self._find(path.removeprefix(root) if root else path, scope["method"])
        if place is None:
            return Match.NONE, {}
        known = scope["method"] in place.endpoints
        child = {"route": place, "path_params": {"id": record_id}}
        return (Match.FULL if known else Match.PARTIAL), child

    async def handle(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a request that matches.

        Raises:
            HTTPException: 405, with the methods that the path has.
        """
        place: Place = scope["route"]
        endpoint = place.endpoints.get(scope["method"])
        if endpoint is None:
            raise HTTPException(405, headers={"allow": ", ".join(place.endpoints)})
        current().check_deadline()
        _name_span(scope["method"], place.path)
        request = ContractRequest(scope, receive)
        request.record_id = scope["path_params"]["id"]
        check_head(request)
        callers: Callers = request.app.state.callers
        request.caller = callers.name(request)
        for access in endpoint.accesses:
            callers.check(request.caller, endpoint.resource, access)
        waited = watch_database()
        answer = await endpoint.answer(request)
        await answer.send(receive, send, _common_headers(request, waited))

    def _find(self, path: str, method: str) -> tuple[Place | None, str]:
        name, slash, record_id = path[len(PREFIX) :].partition("/")
        if not slash or not path.startswith(PREFIX):
            return self.places.get(path), ""
        # A natural key may have a slash in it, sent as %2F, which a server hands on decoded; and a colon.
        natural = name in self._natural
        if record_id.endswith(UNDELETE) and name in self._undeletes and (method == "POST" or not natural):
            return self._undeletes[name], record_id.removesuffix(UNDELETE)
        if "/" in record_id and not natural:
            return None, ""
        return self._records.get(name), record_id


def _common_headers(request: ContractRequest, waited: DatabaseTime) -> list[Header]:
    headers: list[Header] = []
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
