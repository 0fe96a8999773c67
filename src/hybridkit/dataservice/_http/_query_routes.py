"""The routes that read many records: pages by URL and by body, exports, aggregations."""

from typing import Any, Final

from hybridkit.codec import encode_json
from hybridkit.dataservice._http._bodies import RequestBodies
from hybridkit.dataservice._http._export import begin_export
from hybridkit.dataservice._http._page_tokens import read_token, write_token
from hybridkit.dataservice._http._requests import ContractRequest, read_object
from hybridkit.dataservice._http._responses import Response, items_response, json_response
from hybridkit.dataservice._http._router import JSON, NDJSON, ContractRouter, Endpoint
from hybridkit.errors import InvalidQueryError
from hybridkit.resources import Aggregation, Query


class QueryRoutes:
    """The routes that read many records of one resource.

    Args:
        bodies: the request bodies of the resource.
    """

    def __init__(self, bodies: RequestBodies) -> None:
        self._resource = bodies.resource

    def __repr__(self) -> str:
        return f"QueryRoutes({self._resource!r})"

    def add_to(self, router: ContractRouter) -> None:
        """Add the routes."""
        path, resource = self._resource.path, self._resource
        offers = (JSON, NDJSON)
        found = Endpoint(self.find, resource, ("read",), offers=offers, prefers=True, takes_query=True)
        query = Endpoint(self.query, resource, ("read",), offers=offers, prefers=True)
        router.add(path, "GET", found)
        router.add(path, "QUERY", query)  # https://www.rfc-editor.org/rfc/rfc10008
        router.add(f"{path}:query", "POST", query)
        router.add(f"{path}:aggregate", "POST", Endpoint(self.aggregate, resource, ("read",)))

    async def find(self, request: ContractRequest) -> Response:
        """Answer `GET` of the collection with a page or, as NDJSON, with an export."""
        return await self.read(request, Query.from_params(self._resource, request.query_params.multi_items()))

    async def query(self, request: ContractRequest) -> Response:
        """Answer a query in the body, as `find` does one in the URL."""
        _, members = await read_object(request)
        return await self.read(request, Query.from_json(self._resource, members))

    async def aggregate(self, request: ContractRequest) -> Response:
        """Answer with the rows of an aggregation or, on MongoDB, of a pipeline."""
        _, members = await read_object(request)
        if _PIPELINE in members:
            rows = await request.store.run_pipeline(self._resource, _pipeline(members))
        else:
            rows = await request.store.aggregate(
                self._resource, Aggregation.from_json(self._resource, members)
            )
        return items_response(rows)

    async def read(self, request: ContractRequest, query: Query) -> Response:
        """Answer with one page of a query, or with all of it where the caller accepts lines."""
        if request.media_type == NDJSON:
            return await begin_export(request, self._resource, query)
        store = request.store
        key = await store.signing_key()
        found = await store.find(self._resource, query, after=read_token(self._resource, query, key=key))
        token = None
        if found.position is not None:
            token = write_token(self._resource, query, found.position, key=key)
        page = b'{"items":%b,"next_page_token":%b' % (found.items, encode_json(token))
        counting = request.preferences.count()
        if counting is not None:
            size = await store.count(self._resource, query.where, exact=counting == "exact")
            page += b',"total_size":%d' % size
        return json_response(page + b"}")


_PIPELINE: Final = "pipeline"


def _pipeline(members: dict[str, Any]) -> list[Any]:
    stages = members[_PIPELINE]
    if len(members) > 1:
        raise InvalidQueryError("a pipeline stands alone", pointer=f"/{_PIPELINE}")
    if not isinstance(stages, list):
        raise InvalidQueryError("a pipeline is a list of stages", pointer=f"/{_PIPELINE}")
    return stages  # pyright: ignore[reportUnknownVariableType] # what is in it, the store checks
