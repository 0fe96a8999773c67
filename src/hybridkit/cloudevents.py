"""Envelopes as CloudEvents 1.0, both ways, for readers and writers outside the stack.

| envelope | CloudEvents attribute |
|---|---|
| event_type | type |
| event_id | id |
| timestamp | time |
| service | source |
| request_id, user_id, causation_id, version | requestid, userid, causationid, dataversion (extensions) |
| data | data |

Structured mode is one JSON object (`application/cloudevents+json`). Binary mode puts the attributes into AMQP
application properties, which are message headers in AMQP 0-9-1, and leaves the data alone in the body.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/amqp-protocol-binding.md
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from hybridkit.codec import MAX_MESSAGE_BYTES, check_size, decode_json, decode_object, encode_json
from hybridkit.envelope import EventEnvelope, decode_envelope
from hybridkit.errors import FieldError, MalformedPayloadError
from hybridkit.events import EventRegistry
from hybridkit.events import registry as default_registry

__all__ = ["STRUCTURED_MEDIA_TYPE", "decode_cloudevent", "is_cloudevent", "to_binary", "to_structured"]

STRUCTURED_MEDIA_TYPE: Final = "application/cloudevents+json"
HEADER_PREFIX: Final = "cloudEvents_"
_PREFIXES: Final = (HEADER_PREFIX, "cloudEvents:")

_NAMES: Final = {
    "type": "event_type",
    "id": "event_id",
    "time": "timestamp",
    "source": "service",
    "requestid": "request_id",
    "userid": "user_id",
    "causationid": "causation_id",
    "dataversion": "version",
}
_REQUIRED: Final = ("id", "source", "type")


def to_structured(envelope: EventEnvelope[Any]) -> bytes:
    """The envelope as one CloudEvents JSON object."""
    wire = orjson.loads(envelope.encode())
    data = wire.pop("data")
    return encode_json({**_attributes(wire), "datacontenttype": "application/json", "data": data})


def to_binary(envelope: EventEnvelope[Any]) -> tuple[dict[str, str], bytes]:
    """The envelope as message headers (`cloudEvents_type`, …) and a body that holds the data alone."""
    wire = orjson.loads(envelope.encode())
    data = wire.pop("data")
    return {f"{HEADER_PREFIX}{name}": str(value) for name, value in _attributes(wire).items()}, encode_json(
        data
    )


def is_cloudevent(body: bytes, headers: Mapping[str, object], *, content_type: str | None = None) -> bool:
    """Whether this message is a CloudEvent in either mode, by its headers, content type or `specversion`."""
    if content_type is not None and content_type.startswith(STRUCTURED_MEDIA_TYPE):
        return True
    return any(f"{prefix}specversion" in headers for prefix in _PREFIXES) or b'"specversion"' in body[:4096]


def decode_cloudevent(
    body: bytes,
    headers: Mapping[str, object] | None = None,
    *,
    registry: EventRegistry = default_registry,
    limit_bytes: int = MAX_MESSAGE_BYTES,
) -> EventEnvelope[Any]:
    """The envelope in that CloudEvent: binary mode where the headers carry its attributes, else structured.

    A `requestid` is optional in a CloudEvent from outside; without one the event's own id stands in.

    Raises:
        PayloadError: as `hybridkit.envelope.decode_envelope`.
    """
    check_size(body, limit_bytes=limit_bytes)
    attributes = _from_headers(headers or {})
    if attributes:
        data = decode_json(body, limit_bytes=limit_bytes)
    else:
        attributes = decode_object(body, limit_bytes=limit_bytes)
        data = attributes.pop("data", None)
    if attributes.get("specversion") != "1.0":
        raise _not_a_cloudevent("specversion", "1.0 is required")
    for name in _REQUIRED:
        if name not in attributes:
            raise _not_a_cloudevent(name, "required")
    return decode_envelope(
        encode_json({**_members(attributes), "data": data}), registry=registry, limit_bytes=limit_bytes
    )


def _attributes(wire: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: wire[member] for name, member in _NAMES.items() if wire.get(member) is not None}
    return {"specversion": "1.0", **named}


def _members(attributes: Mapping[str, Any]) -> dict[str, Any]:
    members = {member: attributes[name] for name, member in _NAMES.items() if name in attributes}
    members.setdefault("request_id", attributes["id"])
    version = members.get("version")
    if isinstance(version, str) and version.isascii() and version.isdecimal():
        members["version"] = int(version[:9])  # a header carries text
    return members


def _from_headers(headers: Mapping[str, object]) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): value
        for name, value in headers.items()
        for prefix in _PREFIXES
        if name.startswith(prefix)
    }


def _not_a_cloudevent(attribute: str, message: str) -> MalformedPayloadError:
    return MalformedPayloadError(
        "the message is not a CloudEvent 1.0", errors=[FieldError(f"/{attribute}", "cloudevent", message)]
    )
