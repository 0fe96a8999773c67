"""The contract's routes, made from the declarations. What is database about them is behind `Store`."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from fastapi import FastAPI, Request, Response

from hybridkit.codec import decode_object, encode_json
from hybridkit.contract import MAX_BODY_BYTES, Transaction
from hybridkit.dataservice import _openapi as openapi
from hybridkit.dataservice._answers import (
    encoded_answer,
    json_answer,
    not_modified,
    replay_headers,
    written,
)
from hybridkit.dataservice._bodies import Bodies, read_transaction
from hybridkit.dataservice._operations import Delete, Operation, Write
from hybridkit.dataservice._pages import read_token, write_token
from hybridkit.dataservice._requests import (
    caller_of,
    condition_of,
    fingerprint,
    key_of,
    known_tag,
    read_body,
    without_times,
)
from hybridkit.dataservice._store import Store
from hybridkit.errors import InvalidRequestError, NotFoundError, NotSupportedError
from hybridkit.ids import derived_id
from hybridkit.queries import Query

__all__ = ["add_routes"]

type Endpoint = Callable[[Request], Awaitable[Response]]

TRANSACT_PATH: Final = "/v1:transact"


def add_routes(app: FastAPI, bodies: Mapping[str, Bodies]) -> None:
    """Add everything under `/v1`; the running application's `state` has the `store`, and whether it `can_emit`."""
    schemas = openapi.Schemas(bodies.values())
    for body in bodies.values():
        _add_resource(app, _ResourceRoutes(body), openapi.Describe(body, schemas))
    transact = _TransactRoute(bodies)
    app.add_api_route(TRANSACT_PATH, transact.post, methods=["POST"], **openapi.transact(schemas))
    openapi.add_schemas(app, schemas)


def _add_resource(app: FastAPI, routes: "_ResourceRoutes", describe: openapi.Describe) -> None:
    collection = routes.resource.path
    # A natural key may have a slash in it, sent as %2F, which a server hands on decoded.
    record = collection + "/{id:path}"

    def add(path: str, method: str, endpoint: Endpoint, description: dict[str, Any]) -> None:
        app.add_api_route(path, endpoint, methods=[method], **description)

    add(collection, "GET", routes.find, describe.find())
    add(f"{collection}:query", "POST", routes.query, describe.query())
    add(collection, "POST", routes.create, describe.create())
    add(record, "GET", routes.get, describe.get())
    add(record, "PUT", routes.put, describe.put())
    add(record, "PATCH", routes.patch, describe.patch())
    add(record, "DELETE", routes.delete, describe.delete())


class _ResourceRoutes:
    """The routes of one resource."""

    def __init__(self, bodies: Bodies) -> None:
        self.resource = bodies.resource
        self._bodies = bodies

    async def get(self, request: Request) -> Response:
        record = await _store(request).get(self.resource, self._id(request))
        if record is None:
            raise NotFoundError(f"{self.resource.name} has no such record")
        if known_tag(request, record.etag):
            return not_modified(record.etag)
        return encoded_answer(record.body, etag=record.etag)

    async def find(self, request: Request) -> Response:
        return await self._page(request, Query.from_params(self.resource, request.query_params.multi_items()))

    async def query(self, request: Request) -> Response:
        wanted = decode_object(await read_body(request), limit_bytes=MAX_BODY_BYTES)
        return await self._page(request, Query.from_json(self.resource, wanted))

    async def create(self, request: Request) -> Response:
        body = await read_body(request)
        # A retry has to mean the same record, also on a database where only that record can tell of the first try.
        default_id = derived_id(f"{caller_of(request)} {key_of(request)}", f"create {self.resource.name}")
        return await self._write(request, self._bodies.create(body, default_id=default_id), body)

    async def put(self, request: Request) -> Response:
        body = await read_body(request)
        operation = self._bodies.upsert(self._id(request), body, condition=condition_of(request))
        return await self._write(request, operation, body)

    async def patch(self, request: Request) -> Response:
        body = await read_body(request)
        patch = decode_object(body, limit_bytes=MAX_BODY_BYTES)
        operation = self._bodies.update(self._id(request), patch, if_match=self._if_match(request))
        return await self._write(request, operation, body)

    async def delete(self, request: Request) -> Response:
        operation = Delete(resource=self.resource, id=self._id(request), if_match=self._if_match(request))
        return await self._write(request, operation, None)

    async def _page(self, request: Request, query: Query) -> Response:
        store = _store(request)
        key = await store.signing_key()
        found = await store.find(self.resource, query, after=read_token(self.resource, query, key=key))
        token = None
        if found.position is not None:
            token = write_token(self.resource, query, found.position, key=key)
        page = b'{"items":%b,"next_page_token":%b}' % (found.items, encode_json(token))
        return encoded_answer(page)

    async def _write(self, request: Request, operation: Operation, body: bytes | None) -> Response:
        members = None if body is None else decode_object(body, limit_bytes=MAX_BODY_BYTES)
        write = Write(
            caller=caller_of(request),
            key=key_of(request),
            fingerprint=fingerprint(request, members),
            operations=(operation,),
        )
        return written(await _store(request).write(write), self.resource)

    def _id(self, request: Request) -> Any:
        text = request.path_params["id"]
        try:
            parsed = self.resource.parse_id(text)
        except ValueError:
            parsed = ""
        if parsed == "":  # no record can have that id, so there is none
            raise NotFoundError(f"{self.resource.name} has no such record")
        return parsed

    def _if_match(self, request: Request) -> str | None:
        condition = condition_of(request)
        if condition.only == "absent":
            raise InvalidRequestError("If-None-Match: * contradicts a change of a record that is there")
        return condition.if_match


class _TransactRoute:
    """`POST /v1:transact`."""

    def __init__(self, bodies: Mapping[str, Bodies]) -> None:
        self._bodies = bodies

    async def post(self, request: Request) -> Response:
        body = await read_body(request)
        transaction, operations = read_transaction(body, self._bodies)
        members = decode_object(body, limit_bytes=MAX_BODY_BYTES)
        self._check_emissions(request, transaction)
        write = Write(
            caller=caller_of(request),
            key=key_of(request),
            fingerprint=fingerprint(request, without_times(members)),
            operations=operations,
            emit=transaction.emit,
            isolation=transaction.isolation,
        )
        outcome = await _store(request).write(write)
        results = [result.record for result in outcome.results]
        return json_answer({"results": results}, headers=replay_headers(outcome))

    def _check_emissions(self, request: Request, transaction: Transaction) -> None:
        if transaction.emit and not request.app.state.can_emit:
            raise NotSupportedError("this data service has no broker, so nothing would publish the events")


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store
