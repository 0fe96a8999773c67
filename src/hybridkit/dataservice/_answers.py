"""From what a store answers to HTTP."""

from collections.abc import Mapping
from urllib.parse import quote

from fastapi import Response

from hybridkit.codec import encode_json
from hybridkit.contract import IDEMPOTENCY_REPLAYED_HEADER
from hybridkit.dataservice._operations import AnyResource, Document, Outcome

__all__ = ["encoded_answer", "json_answer", "not_modified", "record_answer", "written"]


def json_answer(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """That value as canonical JSON."""
    return Response(encode_json(value), status, headers=headers, media_type="application/json")


def record_answer(
    record: Document, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A whole record with its ETag."""
    return json_answer(record, status=status, headers={"etag": record["etag"], **(headers or {})})


def encoded_answer(body: bytes, *, etag: str | None = None) -> Response:
    """What a store has read, as it comes."""
    headers = {} if etag is None else {"etag": etag}
    return Response(body, headers=headers, media_type="application/json")


def not_modified(etag: str) -> Response:
    """The reader has this state already."""
    return Response(status_code=304, headers={"etag": etag})


def written(outcome: Outcome, resource: AnyResource) -> Response:
    """The answer to a write of one record."""
    headers = replay_headers(outcome)
    [result] = outcome.results
    if result.record is None:
        return Response(status_code=204, headers=headers)
    if result.created:
        headers["location"] = f"{resource.path}/{quote(str(result.record['id']), safe='')}"
    return record_answer(result.record, status=201 if result.created else 200, headers=headers)


def replay_headers(outcome: Outcome) -> dict[str, str]:
    """Says so where the answer is that of an earlier call."""
    return {IDEMPOTENCY_REPLAYED_HEADER: "true"} if outcome.replayed else {}
