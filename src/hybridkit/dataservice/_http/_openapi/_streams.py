"""The descriptions of the routes of streams."""

from typing import Any, Final

from hybridkit.contract import MAX_STREAM_PAGE
from hybridkit.dataservice._http._openapi._operations import (
    READS,
    WRITES,
    WRITTEN,
    body_part,
    operation_part,
    reference,
    response_part,
)
from hybridkit.dataservice._http._openapi._parts import Part
from hybridkit.streams._stream import MAX_STREAM_ID_LENGTH, AnyStream

_VERSION: Final[Part] = {"type": "integer", "minimum": 0}
_NULLABLE: Final = ["string", "null"]

STREAM_SCHEMAS: Final[dict[str, Part]] = {
    "StreamPage": {
        "type": "object",
        "required": ["version", "done", "snapshot", "events"],
        "properties": {
            "version": {**_VERSION, "description": "The version of the whole stream."},
            "done": {
                "type": ["integer", "null"],
                "description": "The version that an append with the Idempotency-Key of this read has reached.",
            },
            "snapshot": {
                "type": ["object", "null"],
                "description": "The state that stands for earlier events.",
            },
            "events": {"type": "array", "items": reference("RecordedEvent"), "maxItems": MAX_STREAM_PAGE},
        },
    },
    "StreamLog": {
        "type": "object",
        "required": ["events", "position", "has_more"],
        "properties": {
            "events": {"type": "array", "items": reference("RecordedEvent"), "maxItems": MAX_STREAM_PAGE},
            "position": {"type": _NULLABLE, "description": "Where the next page begins; opaque."},
            "has_more": {"type": "boolean"},
        },
    },
}


def describe_stream(stream: AnyStream, append: Part, result: Part) -> dict[str, dict[str, Part]]:
    """Return the operations of a kind of stream, by path and method.

    Args:
        stream: the declaration.
        append: the schema of the body of an append.
        result: the schema of its response.
    """
    tag = stream.name
    stream_id = _parameter(
        "id", {"type": "string", "minLength": 1, "maxLength": MAX_STREAM_ID_LENGTH}, place="path"
    )
    read = operation_part(
        f"read_{tag}",
        "Read a stream, or a part of it",
        READS,
        {200: response_part("A page of the stream; one without events is empty.", reference("StreamPage"))},
        (501,),
        tag=tag,
        more=[
            stream_id,
            _parameter("after", _VERSION, "The version behind which to begin."),
            _parameter("up_to", _VERSION, "The version at which to end."),
            _parameter(
                "state_version",
                {"type": "integer", "minimum": 1},
                "Begin with a snapshot of this version of the state, where there is one.",
            ),
        ],
    )
    log = operation_part(
        f"log_{tag}",
        "Read the events of all streams",
        READS,
        {
            200: response_part(
                "A page of the log, behind which nothing earlier can appear.", reference("StreamLog")
            )
        },
        (501,),
        tag=tag,
        more=[
            _parameter("after", {"type": "string"}, "The position of the page before."),
            _parameter("types", {"type": "string"}, "Types of events, with commas between them."),
            _parameter("page_size", {"type": "integer", "minimum": 1, "maximum": MAX_STREAM_PAGE}),
        ],
    )
    appending = operation_part(
        f"append_{tag}",
        "Append events to a stream",
        WRITES,
        {200: response_part("Appended.", result, WRITTEN)},
        (409, 412, 413, 415, 501),
        tag=tag,
        more=[stream_id],
        body=body_part(append),
    )
    return {
        stream.path: {"get": log},
        f"{stream.path}/{{id}}": {"get": read},
        f"{stream.path}/{{id}}:append": {"post": appending},
    }


def _parameter(name: str, schema: Part, description: str = "", *, place: str = "query") -> Part:
    described: dict[str, Any] = {"name": name, "in": place, "required": place == "path", "schema": schema}
    return {**described, "description": description} if description else described
