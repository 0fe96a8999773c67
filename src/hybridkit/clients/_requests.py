"""The requests of a data client: from typed arguments to the method, path, headers and body that HTTP carries."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel

from hybridkit.clients._answers import Counting
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.clients._pipeline._texts import encode_query, query_string
from hybridkit.clients._records import Target, minted_id, record_path
from hybridkit.clients._write_identity import WriteStep
from hybridkit.codec import encode_json
from hybridkit.contract import NDJSON_MEDIA_TYPE, Transaction
from hybridkit.contract._fields import changed_fields, fields_of
from hybridkit.resources import Call, Query, Resource
from hybridkit.resources._resource import AnyResource

JSON: Final = {"content-type": "application/json"}
MERGE_PATCH: Final = {"content-type": "application/merge-patch+json"}
DRY_RUN: Final = "tx=rollback"
MINIMAL: Final = "return=minimal"
MAX_URL_LENGTH: Final = 2000
"""In characters: a longer query is sent as a body, which no server or proxy cuts."""


# ── reads ────────────────────────────────────────────────────────────────────────────────────────


def get(resource: AnyResource, id: object) -> Intent:
    return Intent(method="GET", path=record_path(resource, id), safe=True)


def get_changed(resource: AnyResource, target: Target) -> Intent:
    headers = {} if target.etag is None else {"if-none-match": target.etag}
    return Intent(method="GET", path=record_path(resource, target.id), headers=headers, safe=True)


def get_batch(resource: AnyResource, ids: Sequence[object]) -> Intent:
    body = encode_json({"ids": [str(record_id) for record_id in ids]})
    return _read(f"{resource.path}:batch_get", body)


def page(resource: AnyResource, query: Query, count: Counting | None, path: str | None = None) -> Intent:
    path, body = _query(resource, query, path)
    return _read(path, body) if count is None else _read(path, body, {"prefer": f"count={count}"})


def export(resource: AnyResource, query: Query, path: str | None = None) -> Intent:
    path, body = _query(resource, query, path)
    return _read(path, body, {"accept": NDJSON_MEDIA_TYPE})


def aggregate(resource: AnyResource, aggregation: Mapping[str, Any]) -> Intent:
    return _read(f"{resource.path}:aggregate", encode_query(aggregation))


def _query(resource: AnyResource, query: Query, path: str | None) -> tuple[str, bytes]:
    """Return path and body: the GET form, which logs and caches understand, while it fits into a URL.

    A path that isn't the collection's own has no other form.
    """
    params = query.to_params()
    url = f"{path or resource.path}?{query_string(params)}" if params else path or resource.path
    if path is not None or len(url) <= MAX_URL_LENGTH:
        return url, b""
    return f"{resource.path}:query", encode_query(query.to_json())


def _read(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Intent:
    """Return a `GET`, or with a body a `POST` that changes nothing."""
    method, content = ("POST", JSON) if body else ("GET", {})
    return Intent(method=method, path=path, headers={**content, **(headers or {})}, body=body, safe=True)


# ── writes ───────────────────────────────────────────────────────────────────────────────────────


def create[CreateT: BaseModel](
    resource: Resource[Any, CreateT, Any], data: CreateT, given: object, write: WriteStep
) -> Intent:
    new_id = minted_id(resource, write.id_of()) if given is None else given
    body = encode_json({**fields_of(data), "id": new_id})
    return Intent(method="POST", path=resource.path, headers=JSON, body=body, key=write.key)


def replace[CreateT: BaseModel](
    resource: Resource[Any, CreateT, Any], target: Target, data: CreateT, key: str
) -> Intent:
    return Intent(
        method="PUT",
        path=record_path(resource, target.id),
        headers=JSON | {"if-match": target.etag or "*"},
        body=encode_json(fields_of(data)),
        key=key,
    )


def update[UpdateT: BaseModel](
    resource: Resource[Any, Any, UpdateT], target: Target, changes: UpdateT, key: str
) -> Intent:
    return Intent(
        method="PATCH",
        path=record_path(resource, target.id),
        headers=MERGE_PATCH | _if_match(target),
        body=encode_json(changed_fields(changes)),
        key=key,
    )


def upsert[CreateT: BaseModel](
    resource: Resource[Any, CreateT, Any], id: object, data: CreateT, key: str
) -> Intent:
    return Intent(
        method="PUT",
        path=record_path(resource, id),
        headers=JSON,
        body=encode_json(fields_of(data)),
        key=key,
    )


def delete(resource: AnyResource, target: Target, key: str) -> Intent:
    path = record_path(resource, target.id)
    return Intent(method="DELETE", path=path, headers=_if_match(target), key=key)


def undelete(resource: AnyResource, id: object, key: str) -> Intent:
    return Intent(method="POST", path=f"{record_path(resource, id)}:undelete", key=key)


def safe_call[RequestT: BaseModel](call: Call[RequestT, Any], body: RequestT) -> Intent:
    return _read(call.path, encode_json(fields_of(body)))


def call[RequestT: BaseModel](call: Call[RequestT, Any], body: RequestT, key: str) -> Intent:
    content = encode_json(fields_of(body))
    return Intent(method="POST", path=call.path, headers=JSON, body=content, key=key)


def transact(transaction: Transaction, key: str, *, dry_run: bool, minimal: bool = False) -> Intent:
    wishes = [wish for wish, wanted in ((DRY_RUN, dry_run), (MINIMAL, minimal)) if wanted]
    headers = JSON | {"prefer": ", ".join(wishes)} if wishes else JSON
    # An empty list is left out, so that a data service of the release before takes what it knows.
    body = encode_json(transaction, without=() if transaction.cancel else ("cancel",))
    return Intent(method="POST", path="/v1:transact", headers=headers, body=body, key=key)


def _if_match(target: Target) -> dict[str, str]:
    return {} if target.etag is None else {"if-match": target.etag}
