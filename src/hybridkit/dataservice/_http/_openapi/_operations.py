"""Builders for the parts of an OpenAPI operation.

https://spec.openapis.org/oas/v3.1.0#operation-object
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from hybridkit.dataservice._http._openapi._parts import Part
from hybridkit.dataservice._http._requests import JSON_MEDIA_TYPE

SCHEMAS: Final = "#/components/schemas/"
ALWAYS: Final = (400, 401, 403, 414, 422, 500, 503, 504)
WRITES: Final = ("key", "caller", "timeout", "request_id", "prefer_write")
READS: Final = ("caller", "timeout", "request_id")
WRITTEN: Final = ("Idempotency-Replayed", "Idempotency-Reread", "Preference-Applied")


def operation_part(
    operation_id: str,
    summary: str,
    parameters: Iterable[str],
    responses: Mapping[int, Part],
    problems: Iterable[int],
    *,
    tag: str,
    more: Iterable[Part] = (),
    body: Part | None = None,
) -> Part:
    """Return an operation, with the problems that every one can answer with."""
    refusals = {*problems, *ALWAYS}
    if any("content" in answer for answer in responses.values()):
        refusals.add(406)
    described: dict[str, Any] = {
        "operationId": operation_id,
        "summary": summary,
        "tags": [tag],
        "parameters": [
            *more,
            *({"$ref": f"#/components/parameters/{name}"} for name in parameters),
        ],
        "responses": {
            **{str(status): answer for status, answer in sorted(responses.items())},
            **{
                str(status): {"$ref": f"#/components/responses/{problem_name(status)}"}
                for status in sorted(refusals)
            },
        },
    }
    if body is not None:
        described["requestBody"] = body
    return described


def body_part(schema: Part, *media_types: str, example: Any = None) -> Part:
    """Return a required body of a schema, in JSON unless other media types are named."""
    content = {"schema": schema} | ({} if example is None else {"example": example})
    return {"required": True, "content": dict.fromkeys(media_types or (JSON_MEDIA_TYPE,), content)}


def response_part(description: str, schema: Part | None, headers: Sequence[str] = ()) -> Part:
    """Return a response with headers; without a schema it has no body."""
    response: dict[str, Any] = {
        "description": description,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"} for name in (*headers, "Vary", "X-Request-ID")
        },
    }
    if schema is not None:
        response["content"] = {JSON_MEDIA_TYPE: {"schema": schema}}
    return response


def items_schema(item: Part) -> Part:
    """Return the schema of `{"items": […]}`."""
    return {
        "type": "object",
        "required": ["items"],
        "properties": {"items": {"type": "array", "items": item}},
    }


def page_schema(item: Part) -> Part:
    """Return the schema of a page of items."""
    return {
        "type": "object",
        "required": ["items", "next_page_token"],
        "properties": {
            "items": {"type": "array", "items": item},
            "next_page_token": {"type": ["string", "null"], "description": "None means the end."},
            "total_size": {
                "type": "integer",
                "minimum": 0,
                "description": "Where the caller prefers a count.",
            },
        },
    }


def reference(name: str) -> Part:
    """Return a reference to the schema of that name."""
    return {"$ref": SCHEMAS + name}


def problem_name(status: int) -> str:
    """Return the name of the component that describes the problems of a status."""
    return f"Problem{status}"
