"""The answers to a client's queries: page by page, or as an export."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing

from pydantic import BaseModel

from hybridkit.clients import _requests
from hybridkit.clients._answers import Counting, Page, adapter_of, page_from
from hybridkit.clients._export import read_export
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._transports._base import Response, StreamedResponse
from hybridkit.resources import Query
from hybridkit.resources._resource import AnyResource


class QuerySource:
    """Answers the queries that a client's `find` builds.

    Args:
        send: sends a request and returns the answer.
        stream: sends a request and opens the stream of its answer.
        max_line_bytes: the longest record that an export may have.
    """

    def __init__(
        self,
        send: Callable[[Intent], Awaitable[Response]],
        stream: Callable[[Intent], AbstractAsyncContextManager[StreamedResponse]],
        *,
        max_line_bytes: int,
    ) -> None:
        self._send = send
        self._stream = stream
        self._max_line_bytes = max_line_bytes

    async def fetch_page[ItemT: BaseModel](
        self,
        resource: AnyResource,
        model: type[ItemT],
        query: Query,
        *,
        count: Counting | None,
        path: str | None = None,
    ) -> Page[ItemT]:
        """Return the page that the query asks for, of the collection or of another path."""
        return page_from(resource, model, await self._send(_requests.page(resource, query, count, path)))

    async def export[ItemT: BaseModel](
        self, resource: AnyResource, model: type[ItemT], query: Query, *, path: str | None = None
    ) -> AsyncGenerator[ItemT]:
        """Yield every record of the query."""
        async with self._stream(_requests.export(resource, query, path)) as answer:
            records = read_export(
                answer.chunks, adapter_of(model), what=resource.name, max_line_bytes=self._max_line_bytes
            )
            async with aclosing(records):
                async for record in records:
                    yield record
