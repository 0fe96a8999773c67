"""Routes that take no write without an `Idempotency-Key`: the dependency, and what their clients read about it."""

from collections.abc import Iterator
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Request

from hybridkit.adapters._http._keyed import KEYED
from hybridkit.contract import PROBLEM_MEDIA_TYPE, Problem, parse_key
from hybridkit.contract._headers import MAX_KEY_LENGTH
from hybridkit.errors import DeclarationError

KEY_HEADER: Final = "Idempotency-Key"
KEY_SYNTAX: Final = (
    f"1 to {MAX_KEY_LENGTH} printable ASCII characters in quotation marks (a string of RFC 9651), or bare. Made once"
    " per operation, such as a UUID, and sent again with each repetition of the same request."
)
_ANSWERS: Final = {
    "400": "the header is missing (`IDEMPOTENCY_KEY_REQUIRED`)",
    "409": "the first request with this key still runs (`IDEMPOTENCY_IN_PROGRESS`, with `Retry-After`), or its answer"
    " was too large to be kept (`IDEMPOTENCY_ANSWER_NOT_KEPT`)",
    "422": "the request does not fit (`VALIDATION`), or the key came with another request before (`KEY_REUSED`)",
}
_SCHEMA: Final = {"$ref": "#/components/schemas/Problem"}
REPLAYED: Final = {
    "description": "`true` where this is the answer of an earlier request with the same key",
    "schema": {"type": "string", "enum": ["true"]},
}


async def require_idempotency_key(
    request: Request,
    key: Annotated[str, Header(alias=KEY_HEADER, description=KEY_SYNTAX, examples=['"8e03978e-40d5-43dd"'])],
) -> str:
    """Refuse a write without an `Idempotency-Key` with 400, and return the key, unquoted.

    It is a dependency of FastAPI's, for a route or a router whose requests all have effects:
    `@app.post("/payments", dependencies=[Depends(require_idempotency_key)])`. A route that wants the value has a
    parameter of the type `IdempotencyKey`.

    Raises:
        DeclarationError: nothing would keep the key: the route is no write, or the application has no guard.
    """
    if KEYED not in request.scope:
        raise DeclarationError(
            f"{request.method} {request.url.path} requires an Idempotency-Key, and nothing keeps it: that takes a POST,"
            " PUT, PATCH or DELETE, and an application whose settings have redis_url"
        )
    return parse_key(key)


IdempotencyKey = Annotated[str, Depends(require_idempotency_key)]
"""The key of a request that has to have one: `async def pay(key: IdempotencyKey, body: Payment) -> Receipt`."""


def is_missing_key(detail: dict[str, Any]) -> bool:
    """Return whether one of FastAPI's validation errors says that a required key is missing."""
    return detail["type"] == "missing" and tuple(detail["loc"]) == ("header", KEY_HEADER)


def describe_required_keys(document: dict[str, Any]) -> None:
    """Add to an OpenAPI document the answers of the routes that require a key.

    Args:
        document: as FastAPI has made it; what a route declares itself stays.
    """
    operations = list(_keyed_operations(document))
    for operation in operations:
        answers: dict[str, Any] = operation.setdefault("responses", {})
        for status, description in _ANSWERS.items():
            told = {"description": description, "content": {PROBLEM_MEDIA_TYPE: {"schema": _SCHEMA}}}
            if status not in answers or "HTTPValidationError" in str(answers[status]):
                answers[status] = told
        for status, answer in answers.items():
            if status.startswith("2"):
                answer.setdefault("headers", {}).setdefault("Idempotency-Replayed", REPLAYED)
    if operations:
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        named = {**schema.pop("$defs", {}), "Problem": schema}
        document.setdefault("components", {}).setdefault("schemas", {}).update(named)


def _keyed_operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    items: dict[str, dict[str, dict[str, Any]]] = document.get("paths", {})
    for operation in (each for item in items.values() for each in item.values()):
        parameters: list[dict[str, Any]] = operation.get("parameters", [])
        if any(each.get("name") == KEY_HEADER and each.get("required") for each in parameters):
            yield operation
