"""The routes that read the audit trail, which no route writes: the history of one record, and all entries."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hybridkit.dataservice._http._bodies import RequestBodies
from hybridkit.dataservice._http._query_routes import QueryRoutes
from hybridkit.dataservice._http._requests import ContractRequest, read_object
from hybridkit.dataservice._http._responses import Response
from hybridkit.dataservice._http._router import JSON, NDJSON, ContractRouter, Endpoint
from hybridkit.errors import DeclarationError, NotFoundError
from hybridkit.resources import AUDIT, Compare, Filter, Query
from hybridkit.resources._resource import AnyResource

if TYPE_CHECKING:
    from hybridkit.dataservice._http._callers import Callers

HISTORY = "history"
"""The name of the route of one record's history, after the record's path and a colon."""


class AuditRoutes:
    """The routes of the trail: `GET /v1/{resource}/{id}:history`, `GET /v1/audit` and `POST /v1/audit:query`.

    Args:
        resources: all resources of the service.

    Raises:
        DeclarationError: a resource has the name of the trail.
    """

    def __init__(self, resources: Sequence[AnyResource]) -> None:
        self._audited = [resource for resource in resources if resource.audited]
        self._entries = QueryRoutes(RequestBodies(AUDIT))
        if self._audited and any(resource.name == AUDIT.name for resource in resources):
            raise DeclarationError(f"a service with audited resources can't have one called {AUDIT.name!r}")

    def __repr__(self) -> str:
        return f"AuditRoutes({[resource.name for resource in self._audited]})"

    def add_to(self, router: ContractRouter) -> None:
        """Add the routes; none where no resource is audited."""
        if not self._audited:
            return
        offers = (JSON, NDJSON)
        for resource in self._audited:
            history = _History(resource, self._entries)
            router.add_record_call(
                resource,
                HISTORY,
                "GET",
                Endpoint(history.find, resource, ("audit",), offers=offers, prefers=True, takes_query=True),
            )
        query = Endpoint(self.query, offers=offers, prefers=True)
        router.add(AUDIT.path, "GET", Endpoint(self.find, offers=offers, prefers=True, takes_query=True))
        router.add(AUDIT.path, "QUERY", query)
        router.add(f"{AUDIT.path}:query", "POST", query)

    async def find(self, request: ContractRequest) -> Response:
        """Answer `GET /v1/audit` with entries of the resources whose history the caller may read."""
        scope = self._scope(request)
        query = Query.from_params(AUDIT, request.query_params.multi_items())
        return await self._entries.read(request, _limited(query, scope))

    async def query(self, request: ContractRequest) -> Response:
        """Answer a query in the body, as `find` does one in the URL."""
        scope = self._scope(request)
        _, members = await read_object(request)
        return await self._entries.read(request, _limited(Query.from_json(AUDIT, members), scope))

    def _scope(self, request: ContractRequest) -> Filter | None:
        """Return the filter for what the caller may read; None for everything.

        Raises:
            AccessDeniedError: the caller may read no history at all.
        """
        callers: Callers = request.app.state.callers
        readable = callers.audit_scope(request.caller)
        if readable is None:
            return None
        return Compare("resource", "in", tuple(resource.name for resource in readable))


class _History:
    """The route of the histories of one resource's records."""

    def __init__(self, resource: AnyResource, entries: QueryRoutes) -> None:
        self._resource = resource
        self._entries = entries

    async def find(self, request: ContractRequest) -> Response:
        """Answer `GET` of `{id}:history` with entries in the order of the changes, also of a record that is gone."""
        try:
            record_id = self._resource.parse_id(request.record_id)
        except ValueError:
            raise NotFoundError(f"{self._resource.name} has no such record") from None
        query = Query.from_params(AUDIT, request.query_params.multi_items())
        mine = Compare("resource", "eq", self._resource.name) & Compare("record_id", "eq", str(record_id))
        return await self._entries.read(request, _limited(query, mine))


def _limited(query: Query, scope: Filter | None) -> Query:
    if scope is None:
        return query
    return replace(query, where=scope if query.where is None else scope & query.where)
