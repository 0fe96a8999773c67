"""The routes of one record: reading, creating, replacing, changing, deleting, undeleting."""

from collections.abc import Mapping
from typing import Any

from hybridkit.dataservice._http._bodies import RequestBodies
from hybridkit.dataservice._http._perform import perform
from hybridkit.dataservice._http._requests import (
    ContractRequest,
    key_of,
    read_object,
)
from hybridkit.dataservice._http._responses import (
    BytesResponse,
    etag_header,
    json_response,
    not_modified,
    write_response,
)
from hybridkit.dataservice._http._router import UNDELETE, ContractRouter, Endpoint
from hybridkit.dataservice._store._operations import Operation, Undelete
from hybridkit.errors import InvalidRequestError, NotFoundError, StaleVersionError
from hybridkit.ids import derived_id


class RecordRoutes:
    """The routes of one resource's records.

    Args:
        bodies: the request bodies of the resource.
    """

    def __init__(self, bodies: RequestBodies) -> None:
        self._bodies = bodies
        self._resource = bodies.resource

    def __repr__(self) -> str:
        return f"RecordRoutes({self._resource!r})"

    def add_to(self, router: ContractRouter) -> None:
        """Add the routes; `undelete` only for a resource with soft deletes."""
        resource = self._resource
        router.add(resource.path, "POST", Endpoint(self.create, resource, ("create",), prefers=True))
        router.add_record(resource, "GET", Endpoint(self.get, resource, ("read",)))
        router.add_record(resource, "PUT", Endpoint(self.put, resource, ("create", "update"), prefers=True))
        router.add_record(resource, "PATCH", Endpoint(self.patch, resource, ("update",), prefers=True))
        router.add_record(resource, "DELETE", Endpoint(self.delete, resource, ("delete",), offers=()))
        if resource.soft_delete:
            undelete = Endpoint(self.undelete, resource, ("delete",), prefers=True)
            router.add_record_call(resource, UNDELETE, "POST", undelete)

    async def get(self, request: ContractRequest) -> BytesResponse:
        """Answer `GET` of a record; 304 where the reader has its state already."""
        record = await request.store.get(self._resource, self._id(request))
        if record is None:
            raise self._missing()
        if not request.condition.holds(record.etag):
            raise StaleVersionError("the record is in another state", current=record.etag)
        if request.condition.knows(record.etag):
            return not_modified(record.etag)
        return json_response(record.body, headers=(etag_header(record.etag),))

    async def create(self, request: ContractRequest) -> BytesResponse:
        """Answer `POST` to the collection: create a record."""
        body, members = await read_object(request)
        # A retry has to mean the same record, also on a database where only that record can tell of the first try.
        default_id = derived_id(f"{request.caller} {key_of(request)}", f"create {self._resource.name}")
        return await self._write(request, self._bodies.create(body, default_id=default_id), members)

    async def put(self, request: ContractRequest) -> BytesResponse:
        """Answer `PUT` of a record: create or replace it."""
        record_id, only = self._id(request), request.condition.only
        body, members = await read_object(request)
        if_match = await self._if_match(request)
        operation = self._bodies.upsert(record_id, body, only=only, if_match=if_match)
        return await self._write(request, operation, members)

    async def patch(self, request: ContractRequest) -> BytesResponse:
        """Answer `PATCH` of a record: apply a merge patch."""
        record_id = self._present(request)
        _, members = await read_object(request)
        if_match = await self._if_match(request)
        return await self._write(request, self._bodies.update(record_id, members, if_match=if_match), members)

    async def delete(self, request: ContractRequest) -> BytesResponse:
        """Answer `DELETE` of a record."""
        operation = self._bodies.delete(self._present(request), if_match=await self._if_match(request))
        return await self._write(request, operation, None)

    async def undelete(self, request: ContractRequest) -> BytesResponse:
        """Answer `POST` of `{id}:undelete`, which has no body."""
        record_id, if_match = self._present(request), await self._if_match(request)
        operation = Undelete(resource=self._resource, id=record_id, if_match=if_match)
        return await self._write(request, operation, None)

    async def _write(
        self, request: ContractRequest, operation: Operation, members: Mapping[str, Any] | None
    ) -> BytesResponse:
        outcome = await perform(request, (operation,), members=members)
        return write_response(outcome, self._resource, minimal=request.preferences.minimal())

    def _id(self, request: ContractRequest) -> Any:
        try:
            return self._resource.parse_id(request.record_id)
        except ValueError:  # no record can have that id, so there is none
            raise self._missing() from None

    def _present(self, request: ContractRequest) -> Any:
        """Return the id of a record that has to be there, as it is changed."""
        if request.condition.only == "absent":
            raise InvalidRequestError("If-None-Match: * contradicts a change of a record that is there")
        return self._id(request)

    async def _if_match(self, request: ContractRequest) -> str | None:
        """Return the ETag that the record must have; of several in the header, the one that it has."""
        named = request.condition.if_match
        if named is None or named.any:
            return None
        if len(named.tags) > 1:
            record = await request.store.get(self._resource, self._id(request))
            if record is not None and record.etag in named.opaque:
                return record.etag
        return named.opaque[0]

    def _missing(self) -> NotFoundError:
        return NotFoundError(f"{self._resource.name} has no such record")
