"""The clients of the two data services: typed calls on resources, over HTTP."""

from collections.abc import Mapping, Sequence
from typing import Any, overload

from hybridkit.clients._data_client import DataClient
from hybridkit.clients._transaction import DataTransaction, Isolation
from hybridkit.resources import Aggregation
from hybridkit.resources._resource import AnyResource


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
        step: str | None = None,
    ) -> DataTransaction:
        """Begin a transaction: operations and events that are sent as one request at the end of the `async with` block.

        Args:
            isolation: how much it sees of other transactions; stricter levels conflict more often.
            dry_run: do all of it, return its results or raise its error, and take it back: nothing is kept or
                published.
            step: the name of this write inside a claim, where the order of the writes can change between two runs.
        """
        return self._begin_transaction(isolation, dry_run=dry_run, step=step)

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


class MongoDataClient(DataClient):
    """Reads and writes the records of a MongoDB data service; arguments as for `PostgresDataClient`."""

    def transaction(self, *, dry_run: bool = False, step: str | None = None) -> DataTransaction:
        """Begin a transaction: operations and events that are sent as one request at the end of the `async with` block.

        One operation with its events works on every server, several where the server has transactions.

        Args:
            dry_run: as for `PostgresDataClient.transaction`; only where the server has transactions.
            step: as for `PostgresDataClient.transaction`.

        Raises:
            TransactionsUnavailableError: the server has no transactions, so nothing was done; raised at the end of the
                block.
        """
        return self._begin_transaction("read_committed", dry_run=dry_run, step=step)

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
