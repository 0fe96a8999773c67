"""The OpenAPI document of an application, completed by what every route of it does: problems and idempotency keys.

https://spec.openapis.org/oas/v3.1.1.html
"""

import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from fastapi.routing import APIRoute

from hybridkit.adapters._http._required_key import KEY_HEADER, KEY_SYNTAX, REPLAYED
from hybridkit.contract import PROBLEM_MEDIA_TYPE, Problem
from hybridkit.contract._titles import TITLES

_WRITES: Final = frozenset({"post", "put", "patch", "delete"})
_CHANGES: Final = frozenset({"put", "patch", "delete"})
_METHODS: Final = frozenset({"get", "query", *_WRITES})
_SECONDS: Final = {
    "description": "The seconds after which to try again.",
    "schema": {"type": "integer", "minimum": 1},
}

_PROBLEMS: Final[dict[str, tuple[str, str]]] = {
    "400": ("BAD_REQUEST", "The request can't be understood, such as a header with two values."),
    "404": ("NOT_FOUND", "There is no such thing."),
    "409": (
        "CONFLICT",
        "It is not possible in the present state, or the first request with this key still runs.",
    ),
    "412": ("PRECONDITION_FAILED", "It has changed since it was read."),
    "413": ("PAYLOAD_TOO_LARGE", "The body is longer than is taken here."),
    "422": ("VALIDATION", "The request does not fit; `errors` has a JSON pointer to each place."),
    "429": ("RATE_LIMITED", "Too many requests; the same one is let through after `Retry-After`."),
    "500": ("INTERNAL", "Something went wrong here; `request_id` helps to find it."),
    "503": ("UNAVAILABLE", "Something that this needs is away or busy; try again after `Retry-After`."),
    "504": ("DEADLINE_EXCEEDED", "The time ran out, and parts of it may have been done."),
}
_RETRIED: Final = frozenset({"429", "503"})


def operation_id(route: APIRoute) -> str:
    """Return an id that stays the same from start to start: the function, the path, and the first method in order."""
    named = re.sub(r"\W", "_", f"{route.name}{route.path_format}")
    return f"{named}_{min(route.methods or {'get'}).lower()}"


def complete_document(document: dict[str, Any], *, has_keys: bool, has_limit: bool) -> None:
    """Add to a document the problems that its operations answer with, and the header for idempotency keys.

    Args:
        document: as FastAPI has made it; what a route declares itself stays.
        has_keys: whether the application keeps idempotency keys.
        has_limit: whether its settings can limit the requests of each caller.
    """
    used: set[str] = set()
    for method, operation in _operations(document):
        if has_keys and method in _WRITES:
            _describe_key(operation)
        answers: dict[str, Any] = operation.setdefault("responses", {})
        for status in _statuses(method, operation, has_limit=has_limit):
            if status not in answers or "HTTPValidationError" in str(answers[status]):
                used.add(status)
                answers[status] = {"$ref": f"#/components/responses/{_component(status)}"}
    if not used:
        return
    components: dict[str, Any] = document.setdefault("components", {})
    components.setdefault("responses", {}).update(
        {_component(each): _response(each) for each in sorted(used)}
    )
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
    components.setdefault("schemas", {}).update({**schema.pop("$defs", {}), "Problem": schema})
    _drop_unused_schemas(document)


def name_apart(document: dict[str, Any]) -> None:
    """Give each operation of a route with several methods its own id, and a place that no hashing of a set decides."""
    paths: dict[str, dict[str, Any]] = document.get("paths", {})
    for path, item in paths.items():
        paths[path] = dict(sorted(item.items()))
    for method, operation in _operations(document):
        named, _, told = str(operation.get("operationId", "")).rpartition("_")
        if named and told in _METHODS and told != method:
            operation["operationId"] = f"{named}_{method}"


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    items: dict[str, dict[str, Any]] = document.get("paths", {})
    for item in items.values():
        for method, operation in item.items():
            if method in _METHODS:
                yield method, operation


def _statuses(method: str, operation: dict[str, Any], *, has_limit: bool) -> Iterator[str]:
    parameters: list[dict[str, Any]] = operation.get("parameters", [])
    yield "400"
    if any(each.get("in") == "path" for each in parameters):
        yield "404"
    if method in _WRITES:
        yield "409"
    if method in _CHANGES:
        yield "412"
    if "requestBody" in operation:
        yield "413"
    if "requestBody" in operation or parameters:
        yield "422"
    if has_limit:
        yield "429"
    yield from ("500", "503", "504")


def _describe_key(operation: dict[str, Any]) -> None:
    parameters: list[dict[str, Any]] = operation.setdefault("parameters", [])
    if not any(each.get("name", "").lower() == KEY_HEADER.lower() for each in parameters):
        parameters.append(
            {
                "name": KEY_HEADER,
                "in": "header",
                "required": False,
                "description": f"Makes a repetition safe: the work runs once. {KEY_SYNTAX}",
                "schema": {"type": "string"},
                "example": '"8e03978e-40d5-43dd"',
            }
        )
    for status, answer in operation.get("responses", {}).items():
        if status.startswith("2"):
            answer.setdefault("headers", {}).setdefault("Idempotency-Replayed", REPLAYED)


def _component(status: str) -> str:
    return "".join(word.capitalize() for word in _PROBLEMS[status][0].split("_"))


def _response(status: str) -> dict[str, Any]:
    code, description = _PROBLEMS[status]
    title = TITLES.get(code, HTTPStatus(int(status)).phrase)
    example = {"type": "about:blank", "title": title, "status": int(status), "code": code}
    example |= {"retryable": status in _RETRIED, "request_id": "1f0a3c5e-7b2d-6e4f-8a91-3c5d7e9f1b2a"}
    answer: dict[str, Any] = {
        "description": description,
        "content": {
            PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}
        },
    }
    return {**answer, "headers": {"Retry-After": _SECONDS}} if status in _RETRIED else answer


def _drop_unused_schemas(document: dict[str, Any]) -> None:
    """Remove FastAPI's schemas of validation errors where problems have replaced them."""
    schemas: dict[str, Any] = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        if f'"#/components/schemas/{name}"' not in json.dumps(document):
            schemas.pop(name, None)
