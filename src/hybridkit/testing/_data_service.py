"""A data service for tests: the contract's real routes on records in memory, and faults on demand.

```python
async with FakeDataService({USERS, ORDERS}, unique={USERS: ["email"]}).postgres_client(service="api_service") as client:
    user = await client.create(USERS, NewUser(email="a@example.com"))
```
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel

from hybridkit._asgi_types import ASGIApp
from hybridkit._http_server import HttpLimits, HttpRequest, HttpResponse, HttpServer
from hybridkit.adapters.fastapi import create_app
from hybridkit.clients import ClientPolicy, MongoDataClient, PostgresDataClient, Request, Response
from hybridkit.clients._transports._base import StreamedResponse, read_body
from hybridkit.codec import encode_json
from hybridkit.contract import Emission, Problem
from hybridkit.dataservice._http._bodies import RequestBodies
from hybridkit.dataservice._http._callers import Callers, Grant, check_grants
from hybridkit.dataservice._http._own_calls import CallHandler
from hybridkit.dataservice._http._routes import add_routes
from hybridkit.dataservice._memory._store import MemoryStore
from hybridkit.dataservice._memory._table import Unique
from hybridkit.errors import HeadTooLargeError, OutcomeUnknownError, RejectedError
from hybridkit.lifespan import ServiceResources
from hybridkit.resources import Record, Resource
from hybridkit.resources._resource import AnyCall, AnyResource
from hybridkit.settings import ServiceSettings
from hybridkit.streams._stream import AnyStream
from hybridkit.testing._asgi_calls import call
from hybridkit.testing._data_faults import DataFaults, Reply, reply_of

BASE_URL: Final = "http://data.test"
_LOOPBACK: Final = "127.0.0.1"


class FakeDataService:
    """A data service on records in memory, which a service's tests use instead of one on a database.

    It needs no server and no start: clients reach it inside the process. `serve` also opens a port on loopback, for
    another process, or for faults that only a real connection has.

    Args:
        resources: the resources that it serves.
        unique: by resource, the fields, or tuples of fields, whose values only one record may have, like a unique
            index of a table; `UniqueWhere` is such an index over some of the records.
        references: by resource, the fields that are foreign keys, each with the resource that it refers to:
            `{ORDERS: {"user_id": USERS}}`. A record that is referred to can't be deleted.
        calls: the service's own calls with their handlers; `work.database` is the store in memory.
        streams: the kinds of streams that it serves.
        saga_data: the data models of sagas, by their names, as for `create_data_service`.
        grants: what each caller may do, by the name of its service, as for `create_data_service`; None lets every
            caller do everything. A caller is believed without a token.
        has_transactions: False answers as a data service on a MongoDB without transactions.

    Raises:
        DeclarationError: a grant names what the service doesn't have.

    Attributes:
        faults: the faults of the next requests.
        requests: method and path of every request, repeated attempts included, such as `POST /v1/orders`.
    """

    def __init__(
        self,
        resources: Iterable[AnyResource],
        *,
        unique: Mapping[AnyResource, Iterable[Unique]] | None = None,
        references: Mapping[AnyResource, Mapping[str, AnyResource]] | None = None,
        calls: Mapping[AnyCall, CallHandler] | None = None,
        streams: Iterable[AnyStream] = (),
        saga_data: Mapping[str, type[BaseModel]] | None = None,
        grants: Mapping[str, Grant] | None = None,
        has_transactions: bool = True,
    ) -> None:
        kinds = list(streams)
        kept = list(resources)
        self.faults = DataFaults()
        self.requests: list[str] = []
        self._make_store = partial(
            MemoryStore,
            kept,
            unique=unique,
            references=references,
            streams=kinds,
            has_transactions=has_transactions,
        )
        self._store = self._make_store()
        check_grants(grants or {}, kept, calls or {}, kinds)
        self._app = _application(
            kept, self._store, calls or {}, kinds, saga_data=saga_data or {}, grants=grants
        )

    def __repr__(self) -> str:
        return f"FakeDataService({self._store!r})"

    @property
    def emitted(self) -> Sequence[Emission]:
        """The events and commands of all transactions, in commit order, without those that were cancelled in time."""
        return self._store.emitted

    def clear(self) -> None:
        """Forget all records, events and keys, as a new fake would be; faults and requests too."""
        self._store = self._app.state.store = self._make_store()  # type: ignore[attr-defined] # a FastAPI application
        self.faults = DataFaults()
        self.requests.clear()

    def record[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], id: object
    ) -> RecordT | None:
        """Return a record as it is now, without a request; None where there is no such record."""
        row = self._store._table(resource).find(id)  # noqa: SLF001 - the fake's own store
        return None if row is None else resource.record.model_validate_json(encode_json(row.document()))

    def records[RecordT: Record[Any]](self, resource: Resource[RecordT, Any, Any]) -> list[RecordT]:
        """Return all records of a resource as they are now, without a request."""
        rows = self._store._table(resource).live  # noqa: SLF001 - the fake's own store
        return [resource.record.model_validate_json(encode_json(row.document())) for row in rows]

    @property
    def transport(self) -> "FakeTransport":
        """A transport for clients in this process: `PostgresDataClient(…, transport=fake.transport)`."""
        return FakeTransport(self)

    def postgres_client(self, *, service: str, policy: ClientPolicy | None = None) -> PostgresDataClient:
        """Return a PostgreSQL client of the fake.

        Args:
            service: the name of the calling service.
            policy: deadlines, retries and limits; None for the default policy.
        """
        return PostgresDataClient(BASE_URL, service=service, transport=self.transport, policy=policy)

    def mongo_client(self, *, service: str, policy: ClientPolicy | None = None) -> MongoDataClient:
        """Return a MongoDB client of the fake, with the arguments of `postgres_client`."""
        return MongoDataClient(BASE_URL, service=service, transport=self.transport, policy=policy)

    def serve(self) -> AbstractAsyncContextManager[str]:
        """Listen on 127.0.0.1 inside an `async with` block, and return the URL."""
        return self._serve()

    async def answer(self, request: HttpRequest) -> Reply | None:
        """Return the response to a request; None where its connection ends instead."""
        line = f"{request.method} {request.target.partition('?')[0]}"
        self.requests.append(line)
        faults = self.faults.take(line, reused=request.is_reusing)
        if faults.drops_connection:
            return None
        await asyncio.sleep(faults.delay_seconds)
        reply = faults.apply_to(faults.refusal or await call(self._app, request))
        return None if reply.is_lost else reply

    @asynccontextmanager
    async def _serve(self) -> AsyncGenerator[str]:
        server = HttpServer(
            self._respond, refuse=_refuse, name="fake data service connection", limits=HttpLimits()
        )
        port = await server.listen(_LOOPBACK, 0)
        try:
            yield f"http://{_LOOPBACK}:{port}"
        finally:
            await server.close()

    async def _respond(self, request: HttpRequest) -> HttpResponse | None:
        reply = await self.answer(request)
        return None if reply is None else _http_response(reply)


class FakeTransport:
    """A transport of the clients that reaches a fake data service inside the process.

    Args:
        fake: the fake data service.
    """

    def __init__(self, fake: FakeDataService) -> None:
        self._fake = fake
        self._used = False

    def __repr__(self) -> str:
        return f"FakeTransport({self._fake!r})"

    async def send(self, request: Request) -> Response:
        """Return the complete response."""
        async with self.stream(request) as answer:
            body = await read_body(
                answer.chunks, request=request, status=answer.status, headers=answer.headers
            )
        return Response(status=answer.status, headers=answer.headers, body=body)

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncGenerator[StreamedResponse]:
        """Return the response inside an `async with` block, with its body in chunks."""
        fields = {"host": urlsplit(request.url).netloc, **request.headers}  # as any real transport adds it
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()
        ]
        received = HttpRequest(
            request.method, "/" + request.url.split("/", 3)[3], headers, request.body, is_reusing=self._used
        )
        self._used = True
        reply = await self._fake.answer(received)
        if reply is None:
            raise OutcomeUnknownError(f"{request}: no whole answer: the fake ended the connection")
        yield StreamedResponse(status=reply.status, headers=reply.headers, chunks=_chunks(reply))

    async def aclose(self) -> None:
        """Do nothing: the transport holds no connection."""


async def _chunks(reply: Reply) -> AsyncGenerator[bytes]:
    if not reply.drip_seconds:
        yield reply.body
        return
    for byte in reply.body:
        await asyncio.sleep(reply.drip_seconds)
        yield bytes([byte])


def _refuse(status: int, reason: str) -> HttpResponse:
    """Refuse bytes that are no HTTP request with the problem that a data service answers."""
    error = HeadTooLargeError(reason) if status == HeadTooLargeError.status else RejectedError(reason)
    return _http_response(reply_of(Problem.from_error(error, instance="", request_id="fake")))


def _http_response(reply: Reply) -> HttpResponse:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers.items()]
    return HttpResponse(reply.status, headers, reply.body, reply.drip_seconds)


def _application(
    resources: Collection[AnyResource],
    store: MemoryStore,
    calls: Mapping[AnyCall, CallHandler],
    streams: Collection[AnyStream],
    *,
    saga_data: Mapping[str, type[BaseModel]],
    grants: Mapping[str, Grant] | None,
) -> ASGIApp:
    """Make the application. Its lifespan never runs, as it would read settings and open connections."""
    app = create_app(ServiceSettings, title="Fake data service", internal=True)
    bodies = {resource.name: RequestBodies(resource) for resource in resources}
    add_routes(app, bodies, calls, streams=streams, saga_data=saga_data)
    app.state.resources = ServiceResources()
    app.state.resources.health.started()
    app.state.callers = Callers(None, grants)
    app.state.store = store
    app.state.can_emit = True
    return app
