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
        base_url: where it listens, such as `http://127.0.0.1:8001`.
        service: the name of the calling service, in snake_case.
        transport: what to send with, instead of an own HTTP client: an `httpx.AsyncClient` (which stays the caller's
            to close), or an `httpx.AsyncBaseTransport` or `Transport`, closed with the client.
        policy: other limits than the default ones, such as `ClientPolicy.bulk()`.
        authorization: gives the value of the `Authorization` header for each attempt, such as
            `ServiceTokenIssuer.header`; without it the service is only told who calls.
        coalesce: calls of `get` that one request makes at the same time become one request to the service.

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
        """Several operations and events, in one request at the end of the `async with` block.

        Args:
            isolation: how much of other transactions it may see; stricter ones conflict more often.
            dry_run: do all of it, tell its results or its error, and take it back: nothing is kept or published.
            step: what this write is called inside a claim, where the order of its writes can change between two runs.
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
        """Groups of records, and functions over them.

        Args:
            resource: of which records.
            aggregation: what to compute.
            row_type: what a row is: a model, a dataclass or a `TypedDict` with a field for each group field and
                function; without it a `dict` of JSON values, in which decimals and timestamps are strings.

        Raises:
            InvalidQueryError: a field or function that the resource doesn't allow.
            ResponseError: a row doesn't fit the type.
        """
        return await self._aggregate(resource, aggregation.to_json(), row_type)


class MongoDataClient(DataClient):
    """Reads and writes the records of a MongoDB data service; arguments as for `PostgresDataClient`."""

    def transaction(self, *, dry_run: bool = False, step: str | None = None) -> DataTransaction:
        """Several operations and events, in one request at the end of the `async with` block.

        One operation with its events works on every server, several where the server has transactions.

        Args:
            dry_run: as for `PostgresDataClient.transaction`, where the server has transactions.
            step: as there.

        Raises:
            TransactionsUnavailableError: at the end of the block: the server can't do that; nothing was done.
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
        """Groups of records and functions over them, or what MongoDB's aggregation pipeline comes to.

        Args:
            resource: of which records.
            aggregation: what to compute, for both databases; or the stages of a pipeline, of which the service allows
                those that only read this resource: `[{"$match": …}, {"$group": …}]`.
            row_type: as for `PostgresDataClient.aggregate`.

        Raises:
            InvalidQueryError: a field, function, stage or operator that is not allowed.
            ResponseError: a row doesn't fit the type.
        """
        if isinstance(aggregation, Aggregation):
            return await self._aggregate(resource, aggregation.to_json(), row_type)
        return await self._aggregate(resource, {"pipeline": list(aggregation)}, row_type)
