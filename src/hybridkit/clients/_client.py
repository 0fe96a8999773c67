"""The clients of the two data services: typed calls on resources, over HTTP."""

from typing import Any, Final
from urllib.parse import urlencode

from pydantic import BaseModel, TypeAdapter

from hybridkit.clients._base import BaseClient
from hybridkit.clients._find import Find, Page
from hybridkit.clients._keys import identify
from hybridkit.clients._records import (
    RecordId,
    changed_fields,
    fields_of,
    new_id_for,
    page_from,
    parse_id,
    read_answer,
    record_from,
    record_path,
    target_of,
)
from hybridkit.clients._transaction import DataTransaction, Isolation
from hybridkit.codec import encode_json
from hybridkit.contract import Transaction, TransactionResult
from hybridkit.errors import NotFoundError
from hybridkit.queries import Query
from hybridkit.resources import Record, Resource

__all__ = ["MongoDataClient", "PostgresDataClient"]

MERGE_PATCH: Final = {"content-type": "application/merge-patch+json"}
MAX_URL_LENGTH: Final = 2000
_TRANSACTION_RESULT = TypeAdapter(TransactionResult)


class _DataClient(BaseClient):
    """What both clients can do."""

    async def get[RecordT: Record[Any]](self, resource: Resource[RecordT, Any, Any], id: RecordId) -> RecordT:
        """The record with that id.

        Raises:
            NotFoundError: there is none.
        """
        path = record_path(resource, parse_id(resource, id))
        return record_from(resource, await self._read(path))

    async def find_one[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], id: RecordId
    ) -> RecordT | None:
        """The record with that id, None where there is none."""
        try:
            return await self.get(resource, id)
        except NotFoundError:
            return None

    def find[RecordT: Record[Any]](self, resource: Resource[RecordT, Any, Any]) -> Find[RecordT]:
        """A query: all records, until `where`, `order_by` and `page_size` say otherwise."""
        return Find(self._fetch_page, resource)

    async def create[RecordT: Record[Any], CreateT: BaseModel](
        self, resource: Resource[RecordT, CreateT, Any], data: CreateT, *, id: RecordId | None = None
    ) -> RecordT:
        """Create a record.

        Args:
            resource: of which kind.
            data: its fields.
            id: for records with natural keys; otherwise it is made here, in a claim always the same.

        Raises:
            UniqueViolationError: another record has the id, or a value that only one may have.
            InvalidRequestError: the data doesn't fit.
        """
        identity = identify(f"create {resource.name}")
        new_id = new_id_for(resource, data, id, identity.id)
        body = encode_json({**fields_of(data), "id": new_id})
        return record_from(resource, await self._write("POST", resource.path, body, key=identity.key))

    async def update[RecordT: Record[Any], UpdateT: BaseModel](
        self,
        resource: Resource[RecordT, Any, UpdateT],
        record_or_id: RecordT | RecordId,
        changes: UpdateT,
    ) -> RecordT:
        """Set the fields that are set in `changes` (None included); the others stay as they are.

        Args:
            resource: of which kind.
            record_or_id: a record that was read is only changed if it is still in that state; an id alone means
                whatever state it is in.
            changes: what to set.

        Raises:
            NotFoundError: there is no such record.
            StaleVersionError: the record has changed since it was read.
            InvalidRequestError: the changes don't fit.
        """
        target = target_of(resource, record_or_id)
        response = await self._write(
            "PATCH",
            record_path(resource, target.id),
            encode_json(changed_fields(changes)),
            key=identify(f"update {resource.name} {target.id}").key,
            headers=MERGE_PATCH | _if_match(target.etag),
        )
        return record_from(resource, response)

    async def upsert[RecordT: Record[Any], CreateT: BaseModel](
        self, resource: Resource[RecordT, CreateT, Any], id: RecordId, data: CreateT
    ) -> RecordT:
        """Create the record with that id, or replace its fields where it is there already.

        Raises:
            UniqueViolationError: another record has a value that only one may have.
            InvalidRequestError: the data doesn't fit.
        """
        parsed = parse_id(resource, id)
        response = await self._write(
            "PUT",
            record_path(resource, parsed),
            encode_json(fields_of(data)),
            key=identify(f"upsert {resource.name} {parsed}").key,
        )
        return record_from(resource, response)

    async def delete[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], record_or_id: RecordT | RecordId
    ) -> None:
        """Remove a record; one that was read only if it is still in that state.

        Raises:
            NotFoundError: there is no such record.
            StaleVersionError: the record has changed since it was read.
        """
        target = target_of(resource, record_or_id)
        await self._write(
            "DELETE",
            record_path(resource, target.id),
            b"",
            key=identify(f"delete {resource.name} {target.id}").key,
            headers=_if_match(target.etag),
        )

    async def _fetch_page[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], query: Query
    ) -> Page[RecordT]:
        path, body = _query_request(resource.path, query)
        return page_from(resource, await self._read(path, body=body))


class PostgresDataClient(_DataClient):
    """Reads and writes the records of a PostgreSQL data service.

    Args:
        base_url: where it listens, such as `http://127.0.0.1:8001`.
        service: the name of the calling service, in snake_case.
        transport: what to send with, instead of an own HTTP client: an `httpx.AsyncClient` (which stays the caller's
            to close), or an `httpx.AsyncBaseTransport` or `Transport`, closed with the client.
        policy: other limits than the default ones.
        authorization: gives the value of the `Authorization` header; asked for each attempt, so that it may change.

    Raises:
        DeclarationError: the URL or the name can't be used.
    """

    def transaction(self, *, isolation: Isolation = "read_committed") -> DataTransaction:
        """Several operations and events, in one request at the end of the `async with` block.

        Args:
            isolation: how much of other transactions it may see; stricter ones conflict more often.
        """
        return DataTransaction(self._transact, isolation=isolation)

    async def _transact(self, transaction: Transaction) -> TransactionResult:
        response = await self._write(
            "POST", "/v1:transact", encode_json(transaction), key=identify("transact").key
        )
        return read_answer(_TRANSACTION_RESULT, response, what="a transaction's results")


class MongoDataClient(_DataClient):
    """Reads and writes the records of a MongoDB data service; arguments as for `PostgresDataClient`."""


def _if_match(etag: str | None) -> dict[str, str]:
    return {} if etag is None else {"if-match": etag}


def _query_request(path: str, query: Query) -> tuple[str, bytes]:
    """The GET form, which logs and caches understand, while it fits into a URL; beyond that the JSON form."""
    params = query.to_params()
    url = f"{path}?{urlencode(params)}" if params else path
    if len(url) <= MAX_URL_LENGTH:
        return url, b""
    return f"{path}:query", encode_json(query.to_json())
