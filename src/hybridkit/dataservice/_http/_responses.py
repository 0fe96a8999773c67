"""Responses of the contract's routes, made from what a store returns: bytes that are sent as they are."""

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
    """A response that can be sent."""

    async def send(self, receive: Receive, send: Send, headers: Sequence[Header]) -> None:
        """Send the response, with the given headers besides its own."""
        ...


class BytesResponse(NamedTuple):
    """A response whose body is complete.

    Attributes:
        status: the HTTP status.
        body: the whole body; empty for none.
        headers: names and values; the length is added.
    """

    status: int
    body: bytes = b""
    headers: Sequence[Header] = ()

    async def send(self, receive: Receive, send: Send, headers: Sequence[Header]) -> None:  # noqa: ARG002 - of a stream
        """Send head and body at once."""
        all_headers = [*self.headers, *headers]
        if self.status not in (204, 304):
            all_headers.append((b"content-length", b"%d" % len(self.body)))
        await send({"type": "http.response.start", "status": self.status, "headers": all_headers})
        await send({"type": "http.response.body", "body": self.body})


def json_response(body: bytes, *, status: int = 200, headers: Sequence[Header] = ()) -> BytesResponse:
    """Return a response with a JSON body."""
    return BytesResponse(status, body, (_JSON, *headers))


def items_response(items: bytes, *, headers: Sequence[Header] = ()) -> BytesResponse:
    """Return the response `{"items": […]}` around a JSON array."""
    return json_response(b'{"items":%b}' % items, headers=headers)


def not_modified(etag: str) -> BytesResponse:
    """Return 304, for a reader that has the record's current state already."""
    return BytesResponse(304, b"", (etag_header(etag),))


def write_response(outcome: Outcome, resource: AnyResource, *, minimal: bool = False) -> BytesResponse:
    """Return the response to a write of one record.

    Args:
        outcome: what the store did; it has one result.
        resource: the resource of the record.
        minimal: leave the body out; status, ETag and location say what happened.
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
    """Return the header `ETag`."""
    return (b"etag", etag.encode())


def replay_headers(outcome: Outcome) -> list[Header]:
    """Return the headers that mark the repetition of an earlier response, and one whose records were read again."""
    headers: list[Header] = []
    if outcome.replayed:
        headers.append((IDEMPOTENCY_REPLAYED_HEADER.encode(), _TRUE))
    if outcome.reread:
        headers.append((IDEMPOTENCY_REREAD_HEADER.encode(), _TRUE))
    return headers
