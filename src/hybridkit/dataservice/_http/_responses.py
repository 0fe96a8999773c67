"""From what a store answers to HTTP: bytes, that go out as they are."""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote

from hybridkit._asgi_types import Receive, Send
from hybridkit.codec import encode_json
from hybridkit.contract import IDEMPOTENCY_REPLAYED_HEADER, IDEMPOTENCY_REREAD_HEADER
from hybridkit.dataservice._store._operations import Outcome
from hybridkit.resources._resource import AnyResource

type Header = tuple[bytes, bytes]

_JSON: Final = (b"content-type", b"application/json")
_TRUE: Final = b"true"


class Response(Protocol):
    """An answer that can be sent."""

    async def send(self, receive: Receive, send: Send, headers: Sequence[Header]) -> None:
        """Send it, with those headers besides its own."""
        ...


class BytesResponse(NamedTuple):
    """An answer in one piece.

    Attributes:
        status: of HTTP.
        body: empty for none.
        headers: its own; the length is added.
    """

    status: int
    body: bytes = b""
    headers: Sequence[Header] = ()

    async def send(self, receive: Receive, send: Send, headers: Sequence[Header]) -> None:  # noqa: ARG002 - of a stream
        """Send it at once."""
        all_headers = [*self.headers, *headers]
        if self.status not in (204, 304):
            all_headers.append((b"content-length", b"%d" % len(self.body)))
        await send({"type": "http.response.start", "status": self.status, "headers": all_headers})
        await send({"type": "http.response.body", "body": self.body})


def json_response(body: bytes, *, status: int = 200, headers: Sequence[Header] = ()) -> BytesResponse:
    """That JSON."""
    return BytesResponse(status, body, (_JSON, *headers))


def items_response(items: bytes, *, headers: Sequence[Header] = ()) -> BytesResponse:
    """`{"items": […]}` around that JSON array."""
    return json_response(b'{"items":%b}' % items, headers=headers)


def not_modified(etag: str) -> BytesResponse:
    """The reader has this state already."""
    return BytesResponse(304, b"", (etag_header(etag),))


def write_response(outcome: Outcome, resource: AnyResource, *, minimal: bool = False) -> BytesResponse:
    """The answer to a write of one record.

    Args:
        outcome: of that one operation.
        resource: where it was done.
        minimal: without a body; status, ETag and location say what happened.
    """
    headers = replay_headers(outcome)
    [result] = outcome.results
    if result.record is None:
        return BytesResponse(204, b"", headers)
    if result.created:
        location = f"{resource.path}/{quote(str(result.record['id']), safe='')}"
        headers.append((b"location", location.encode()))
    headers.append(etag_header(result.record["etag"]))
    if minimal:
        return BytesResponse(201 if result.created else 204, b"", headers)
    return json_response(encode_json(result.record), status=201 if result.created else 200, headers=headers)


def etag_header(etag: str) -> Header:
    """The record's state."""
    return (b"etag", etag.encode())


def replay_headers(outcome: Outcome) -> list[Header]:
    """Says so where the answer is that of an earlier call, or where its records had to be read again."""
    headers: list[Header] = []
    if outcome.replayed:
        headers.append((IDEMPOTENCY_REPLAYED_HEADER.encode(), _TRUE))
    if outcome.reread:
        headers.append((IDEMPOTENCY_REREAD_HEADER.encode(), _TRUE))
    return headers
