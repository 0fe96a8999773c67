"""Exports: all records that fit a query, streamed from a cursor as lines of JSON.

The last line has their number: a response without it was cut. An error before the first line becomes an ordinary
problem; a later one cuts the connection, as the status is sent by then.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final

from hybridkit._asgi_types import Receive, Send
from hybridkit.contract import NDJSON_MEDIA_TYPE
from hybridkit.dataservice._http._requests import ContractRequest
from hybridkit.dataservice._http._responses import Header, Response
from hybridkit.dataservice._store._protocol import ExportChunk
from hybridkit.errors import DeadlinePassedError, InvalidQueryError
from hybridkit.observability import get_logger
from hybridkit.resources import Query
from hybridkit.resources._resource import AnyResource

SLOW_READER_SECONDS: Final = 30.0
"""The longest time in which a reader may take nothing before it loses its cursor."""

_log = get_logger("hybridkit.dataservice")


async def begin_export(request: ContractRequest, resource: AnyResource, query: Query) -> Response:
    """Return the export's response, once the first lines are there.

    Raises:
        InvalidQueryError: the query has a page token, or the database can't compare a value with its field.
        HybridkitError: the database doesn't answer.
    """
    if query.page_token is not None:
        raise InvalidQueryError("an export has no pages; leave the page token out", pointer="/page_token")
    pieces = request.store.export(resource, query)
    try:
        first = await anext(pieces)
    except StopAsyncIteration:
        first = ExportChunk(b"", 0)
    except BaseException:  # also a reader that leaves: the cursor holds a connection
        await pieces.aclose()
        raise
    return _Export(first, pieces, resource, is_head=request.method == "HEAD")


class _Export:
    def __init__(
        self, first: ExportChunk, pieces: AsyncGenerator[ExportChunk], resource: AnyResource, *, is_head: bool
    ) -> None:
        self._first = first
        self._pieces = pieces
        self._resource = resource
        self._is_head = is_head

    async def send(self, receive: Receive, send: Send, headers: Sequence[Header]) -> None:
        """Send the lines as the cursor returns them, until the reader leaves."""
        async with aclosing(self._pieces):
            staying = asyncio.timeout(None)
            try:
                async with staying, _watch(receive, staying):
                    await self._send(send, headers)
            except TimeoutError:
                if not staying.expired():
                    raise
                _log.info("the reader of an export has left", resource=self._resource.name)

    async def _send(self, send: Send, headers: Sequence[Header]) -> None:
        start = [(b"content-type", NDJSON_MEDIA_TYPE.encode()), *headers]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        if self._is_head:
            await send({"type": "http.response.body", "body": b""})
            return
        count = self._first.records
        await _send_piece(send, self._first.body)
        async for lines in self._pieces:
            await _send_piece(send, lines.body)
            count += lines.records
        await _send_piece(send, b'{"$end":true,"count":%d}\n' % count, more=False)


async def _send_piece(send: Send, body: bytes, *, more: bool = True) -> None:
    try:
        async with asyncio.timeout(SLOW_READER_SECONDS):
            await send({"type": "http.response.body", "body": body, "more_body": more})
    except TimeoutError:
        raise DeadlinePassedError(
            f"the reader of an export took nothing for {SLOW_READER_SECONDS:.0f} s"
        ) from None


@asynccontextmanager
async def _watch(receive: Receive, staying: asyncio.Timeout) -> AsyncGenerator[None]:
    """End the scope when the reader leaves; the server accepts lines for a closed connection without an error."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        staying.reschedule(asyncio.get_running_loop().time())

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
