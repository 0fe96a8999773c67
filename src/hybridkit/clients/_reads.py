"""What clients read: records by id, by query and by export, and what is computed of them."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from itertools import batched
from typing import Any, Final

from pydantic import BaseModel

from hybridkit.clients._base import JSON, BaseClient
from hybridkit.clients._coalescer import Coalescer
from hybridkit.clients._export import read_export
from hybridkit.clients._find import Counting, Find, Page
from hybridkit.clients._pipeline._pipeline import Intent
from hybridkit.clients._pipeline._texts import encode_query, query_string
from hybridkit.clients._records import (
    RecordId,
    adapter_of,
    found_in,
    page_from,
    parse_id,
    record_from,
    record_path,
    rows_from,
)
from hybridkit.codec import encode_json
from hybridkit.contract import MAX_BATCH, NDJSON_MEDIA_TYPE
from hybridkit.errors import AnswerTooLargeError, NotFoundError
from hybridkit.resources import Query, Record, Resource
from hybridkit.resources._resource import AnyResource

__all__ = ["Reads"]

MAX_URL_LENGTH: Final = 2000


class Reads(BaseClient):
    """The reading half of a data client."""

    _coalescer: Coalescer | None = None

    async def get[RecordT: Record[Any]](self, resource: Resource[RecordT, Any, Any], id: RecordId) -> RecordT:
        """The record with that id.

        Raises:
            NotFoundError: there is none.
        """
        parsed = parse_id(resource, id)
        if self._coalescer is not None:
            return await self._coalescer.get(resource, parsed)
        return await self._get_one(resource, parsed)

    async def get_or_none[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], id: RecordId
    ) -> RecordT | None:
        """The record with that id, None where there is none."""
        try:
            return await self.get(resource, id)
        except NotFoundError:
            return None

    async def get_many[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], ids: Sequence[RecordId]
    ) -> list[RecordT | None]:
        """The records with those ids, in their order, None for what is not there.

        One request for each 1,000, and more where they are too large for one answer.
        """
        parsed = [parse_id(resource, record_id) for record_id in ids]
        found: list[RecordT | None] = []
        for some in batched(parsed, MAX_BATCH):
            found += await self._get_batch(resource, some)
        return found

    def find[RecordT: Record[Any]](self, resource: Resource[RecordT, Any, Any]) -> Find[RecordT]:
        """A query: all records, until `where`, `order_by`, `page_size` and `select` say otherwise."""
        return Find(self, resource, resource.record)

    async def _get_one[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], id: object
    ) -> RecordT:
        return record_from(resource, await self._read(record_path(resource, id)))

    async def _get_batch[RecordT: Record[Any]](
        self, resource: Resource[RecordT, Any, Any], ids: Sequence[object]
    ) -> list[RecordT | None]:
        body = encode_json({"ids": [str(record_id) for record_id in ids]})
        try:
            response = await self._read(f"{resource.path}:batch_get", body=body)
        except AnswerTooLargeError:
            if len(ids) == 1:
                raise
            middle = len(ids) // 2
            first = await self._get_batch(resource, ids[:middle])
            return first + await self._get_batch(resource, ids[middle:])
        return found_in(resource, response, count=len(ids))

    async def _fetch_page[ItemT: BaseModel](
        self, resource: AnyResource, model: type[ItemT], query: Query, *, count: Counting | None
    ) -> Page[ItemT]:
        path, body = _query_request(resource.path, query)
        headers = {} if count is None else {"prefer": f"count={count}"}
        return page_from(resource, model, await self._read(path, body=body, headers=headers))

    async def _export[ItemT: BaseModel](
        self, resource: AnyResource, model: type[ItemT], query: Query
    ) -> AsyncGenerator[ItemT]:
        path, body = _query_request(resource.path, query)
        intent = Intent(
            method="POST" if body else "GET",
            path=path,
            headers={**(JSON if body else {}), "accept": NDJSON_MEDIA_TYPE},
            body=body,
            safe=True,
        )
        async with self._open_pipeline().stream(intent) as answer:
            records = read_export(
                answer.chunks,
                adapter_of(model),
                what=resource.name,
                max_line_bytes=self._policy.max_response_bytes,
            )
            async with aclosing(records):
                async for record in records:
                    yield record

    async def _aggregate[RowT](
        self, resource: AnyResource, body: Mapping[str, Any], row_type: type[RowT]
    ) -> list[RowT]:
        response = await self._read(f"{resource.path}:aggregate", body=encode_query(body))
        return rows_from(f"rows of {resource.name}", row_type, response)


def _query_request(path: str, query: Query) -> tuple[str, bytes]:
    """The GET form, which logs and caches understand, while it fits into a URL; beyond that the JSON form."""
    params = query.to_params()
    url = f"{path}?{query_string(params)}" if params else path
    if len(url) <= MAX_URL_LENGTH:
        return url, b""
    return f"{path}:query", encode_query(query.to_json())
