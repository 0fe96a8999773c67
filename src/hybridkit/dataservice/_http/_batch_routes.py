"""The routes that read or write many records by their ids; a write happens for all of them or for none."""

from collections.abc import Awaitable, Callable
from typing import Final

from hybridkit.codec import encode_json
from hybridkit.dataservice._http._batch_bodies import BATCH_KINDS, BatchKind, read_batch, read_ids
from hybridkit.dataservice._http._bodies import RequestBodies
from hybridkit.dataservice._http._callers import Access
from hybridkit.dataservice._http._perform import perform
from hybridkit.dataservice._http._requests import ContractRequest, key_of, read_body, read_object
from hybridkit.dataservice._http._responses import BytesResponse, items_response, replay_headers
from hybridkit.dataservice._http._router import ContractRouter, Endpoint

_ACCESSES: Final[dict[BatchKind, tuple[Access, ...]]] = {
    "create": ("create",),
    "update": ("update",),
    "upsert": ("create", "update"),
    "delete": ("delete",),
}


class BatchRoutes:
    """The `:batch_…` routes of one resource.

    Args:
        bodies: the request bodies of the resource.
    """

    def __init__(self, bodies: RequestBodies) -> None:
        self._bodies = bodies
        self._resource = bodies.resource

    def __repr__(self) -> str:
        return f"BatchRoutes({self._resource!r})"

    def add_to(self, router: ContractRouter) -> None:
        """Add the routes."""
        path, resource = self._resource.path, self._resource
        router.add(f"{path}:batch_get", "POST", Endpoint(self.get, resource, ("read",)))
        for kind in BATCH_KINDS:
            endpoint = Endpoint(self.writing(kind), resource, _ACCESSES[kind], prefers=True)
            router.add(f"{path}:batch_{kind}", "POST", endpoint)

    async def get(self, request: ContractRequest) -> BytesResponse:
        """Answer `:batch_get` with the records in the order of the ids, null for a missing one."""
        ids = read_ids(self._bodies, await read_body(request))
        return items_response(await request.store.get_many(self._resource, ids) if ids else b"[]")

    def writing(self, kind: BatchKind) -> Callable[[ContractRequest], Awaitable[BytesResponse]]:
        """Return the handler of the batch writes of one kind."""

        async def write(request: ContractRequest) -> BytesResponse:
            body, members = await read_object(request)
            call = f"{request.caller} {key_of(request)} {self._resource.name}"
            outcome = await perform(request, read_batch(self._bodies, kind, body, call=call), members=members)
            headers = replay_headers(outcome)
            if request.preferences.minimal():
                return BytesResponse(204, b"", headers)
            return items_response(encode_json([result.record for result in outcome.results]), headers=headers)

        return write
