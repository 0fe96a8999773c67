"""The clients of the two data services: typed calls on resources, over HTTP."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

from pydantic import BaseModel

from hybridkit.clients._data_client import DataClient
from hybridkit.clients._streams._appends import StreamId
from hybridkit.clients._streams._calls import Decide, StreamCalls
from hybridkit.clients._transaction import DataTransaction, Isolation
from hybridkit.contract import MAX_STREAM_PAGE
from hybridkit.events import Event
from hybridkit.resources import Aggregation
from hybridkit.resources._resource import AnyResource
from hybridkit.streams import Loaded, LogPage, RecordedEvent, Stream
from hybridkit.streams._stream import AnyStream


class PostgresDataClient(DataClient):
    """Reads and writes the records of a PostgreSQL data service.

    Args:
        base_url: the URL of the data service, such as `http://127.0.0.1:8001`.
        service: the name of the calling service, in snake_case.
        transport: sends the requests; by default an HTTP client that the data client opens and closes. An
            `httpx.AsyncClient` stays the caller's to close; an `httpx.AsyncBaseTransport` or a `Transport` is closed
            with the data client.
        policy: the limits, such as `ClientPolicy.bulk()`; by default `ClientPolicy.interactive()`.
        authorization: gives the value of the `Authorization` header, such as `ServiceTokenIssuer.header`; called for
            each attempt. Without it the service is only told who calls.
        coalesce: whether calls of `get` that one request makes at the same time become one request to the service.

    Raises:
        DeclarationError: the URL or the name can't be used.
    """

    def transaction(
        self,
        *,
        isolation: Isolation = "read_committed",
        dry_run: bool = False,
        minimal: bool = False,
        step: str | None = None,
    ) -> DataTransaction:
        """Begin a transaction: operations and events that are sent as one request at the end of the `async with` block.

        Args:
            isolation: how much it sees of other transactions; stricter levels conflict more often.
            dry_run: do all of it, return its results or raise its error, and take it back: nothing is kept or
                published.
            minimal: ask for no records back, where nobody reads them: the handles have ids only, and the service keeps
                no records for a repetition.
            step: the name of this write inside a claim, where the order of the writes can change between two runs.
        """
        return self._begin_transaction(isolation, dry_run=dry_run, minimal=minimal, step=step)

    @overload
    async def aggregate(self, resource: AnyResource, aggregation: Aggregation) -> list[dict[str, Any]]: ...

    @overload
    async def aggregate[RowT](
        self, resource: AnyResource, aggregation: Aggregation, *, row_type: type[RowT]
    ) -> list[RowT]: ...

    async def aggregate(
        self, resource: AnyResource, aggregation: Aggregation, *, row_type: type[Any] = dict[str, Any]
    ) -> list[Any]:
        """Group records, and compute functions over each group.

        Args:
            resource: the kind of record.
            aggregation: the groups and functions.
            row_type: the type of a row: a model, a dataclass or a `TypedDict` with a field for each group field and
                function; by default a `dict` of JSON values, in which decimals and timestamps are strings.

        Raises:
            InvalidQueryError: the resource doesn't allow a field or function.
            ResponseError: a row doesn't fit the type.
        """
        return await self._aggregate(resource, aggregation.to_json(), row_type)

    # ── streams ──────────────────────────────────────────────────────────────────────────────────

    async def load[StateT: BaseModel](
        self, stream: Stream[StateT], id: StreamId, *, at_version: int | None = None
    ) -> Loaded[StateT]:
        """Return the state of a stream, computed from its events or from its last snapshot and those behind it.

        A stream without events has the state model's defaults and the version 0.

        Args:
            stream: the kind of stream.
            id: the id of the stream.
            at_version: the version whose state to return; None for the last one.

        Raises:
            NotFoundError: the stream has fewer events than `at_version`.
            UnknownEventTypeError: an event is of a type that this process doesn't know.
            UnknownEventVersionError: an event was appended by newer code, in a version that this process doesn't know.
            DeclarationError: the stream has no function for an event's class.
        """
        return await self._stream_calls.load(stream, stream.check_id(id), at_version=at_version)

    def events(self, stream: AnyStream, id: StreamId, *, after: int = 0) -> AsyncGenerator[RecordedEvent]:
        """Yield the events of one stream in their order, as they were recorded.

        Args:
            stream: the kind of stream.
            id: the id of the stream.
            after: the version behind which to begin.
        """
        return self._stream_calls.events(stream, stream.check_id(id), after=after)

    async def log(
        self,
        stream: AnyStream,
        *,
        after: str | None = None,
        types: Sequence[type[Event]] = (),
        page_size: int = MAX_STREAM_PAGE,
    ) -> LogPage:
        """Return a page of the log, which has the events of all streams of the kind.

        A reader that goes on at the position of its last page gets every event once: nothing appears behind it, however
        late a transaction commits. The events of each stream come in their order.

        Args:
            stream: the kind of stream.
            after: the position of the page before; None for the beginning.
            types: the types of the events to return; empty for all.
            page_size: the largest number of events, 1 to 1,000.

        Raises:
            InvalidQueryError: the position is none of this log's, or a number is out of range.
        """
        return await self._stream_calls.log(stream, after=after, types=types, page_size=page_size)

    async def append[StateT: BaseModel](
        self,
        stream: Stream[StateT],
        loaded_or_id: Loaded[StateT] | StreamId,
        *events: Event,
        expected: int | None = None,
        step: str | None = None,
    ) -> int:
        """Append events to a stream, all of them or none, and return the version of the last one.

        Args:
            stream: the kind of stream.
            loaded_or_id: a stream that was loaded has to have the version in which it was read; an id alone means any
                version.
            events: 1 to 100 events, with at most 64 KiB each and 1 MiB together.
            expected: the version that the stream of an id has to have, 0 for one without events; None for any.
            step: the name of this write inside a claim, where the order of the writes can change between two runs.

        Raises:
            StaleVersionError: the stream has another version; `current` is the one that it has, as text.
            DeclarationError: the stream has no function for an event's class.
            InvalidRequestError: an event belongs to another stream, or there are too many.
            PayloadTooLargeError: an event is too large, or all of them together are.
        """
        return await self._stream_calls.append(stream, loaded_or_id, events, expected=expected, step=step)

    async def decide[StateT: BaseModel](
        self, stream: Stream[StateT], id: StreamId, decide: Decide[StateT], *, step: str | None = None
    ) -> Loaded[StateT]:
        """Append the events that follow from the state of a stream, and return the stream with them.

        The stream is loaded, the function decides, and its events are appended if no other append came in between;
        otherwise all over again, up to 10 times within the time of one read and one write.

        Args:
            stream: the kind of stream.
            id: the id of the stream.
            decide: a pure function from the state to its events, or to none to leave the stream as it is. It may be
                called several times, so it does nothing else; an error that it raises ends the call.
            step: as for `append`.

        Raises:
            StaleVersionError: other appends came first each time.
            DeadlinePassedError: the time was over between two tries.
            DeadlineExceededError: the time was over during an append.
        """
        return await self._stream_calls.decide(stream, stream.check_id(id), decide, step=step)

    @cached_property
    def _stream_calls(self) -> StreamCalls:
        policy = self._policy
        return StreamCalls(self._send, seconds=policy.read_timeout_seconds + policy.write_timeout_seconds)


class MongoDataClient(DataClient):
    """Reads and writes the records of a MongoDB data service; arguments as for `PostgresDataClient`."""

    def transaction(
        self, *, dry_run: bool = False, minimal: bool = False, step: str | None = None
    ) -> DataTransaction:
        """Begin a transaction: operations and events that are sent as one request at the end of the `async with` block.

        One operation with its events works on every server, several where the server has transactions.

        Args:
            dry_run: as for `PostgresDataClient.transaction`; only where the server has transactions.
            minimal: as for `PostgresDataClient.transaction`.
            step: as for `PostgresDataClient.transaction`.

        Raises:
            TransactionsUnavailableError: the server has no transactions, so nothing was done; raised at the end of the
                block.
        """
        return self._begin_transaction("read_committed", dry_run=dry_run, minimal=minimal, step=step)

    @overload
    async def aggregate(
        self, resource: AnyResource, aggregation: Aggregation | Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]: ...

    @overload
    async def aggregate[RowT](
        self,
        resource: AnyResource,
        aggregation: Aggregation | Sequence[Mapping[str, Any]],
        *,
        row_type: type[RowT],
    ) -> list[RowT]: ...

    async def aggregate(
        self,
        resource: AnyResource,
        aggregation: Aggregation | Sequence[Mapping[str, Any]],
        *,
        row_type: type[Any] = dict[str, Any],
    ) -> list[Any]:
        """Group records and compute functions over each group, or run an aggregation pipeline of MongoDB.

        Args:
            resource: the kind of record.
            aggregation: the groups and functions, as for PostgreSQL; or the stages of a pipeline, of which the service
                allows those that only read this resource: `[{"$match": …}, {"$group": …}]`.
            row_type: as for `PostgresDataClient.aggregate`.

        Raises:
            InvalidQueryError: the service doesn't allow a field, function, stage or operator.
            ResponseError: a row doesn't fit the type.
        """
        if isinstance(aggregation, Aggregation):
            return await self._aggregate(resource, aggregation.to_json(), row_type)
        return await self._aggregate(resource, {"pipeline": list(aggregation)}, row_type)
