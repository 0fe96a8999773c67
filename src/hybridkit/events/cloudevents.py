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
application properties, which are message headers in AMQP 0-9-1, and leaves the data alone in the body. Its headers are
`cloudEvents_id` or `cloudEvents:id` by the binding for AMQP, or `ce-id` or `ce_id` as the bindings for HTTP and Kafka
have it, which some SDKs use for RabbitMQ too, in any case. Batches are refused: each event is a message of its own.

Of what the specification leaves open: an event without `time` has happened when it is read, and a consumer's copies of
it (retries, dead letters) keep the time of the first reading in the header `hk_first_read_at`; without `data` it has no
fields; `data_base64` holds JSON. An `id` that is no lower-case UUID, which any text may be, stands behind an event id
that is derived from `source` and `id`, the same at each delivery (`EventEnvelope.original_id` has the text). A
`causationid` that is no UUID, a `requestid` that is no line of text, and unknown extensions are left out.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/amqp-protocol-binding.md
"""

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

from pydantic_core import to_json

from hybridkit.codec import (
    MAX_MESSAGE_BYTES,
    check_size,
    decode_json,
    decode_object,
    encode_json,
    format_timestamp,
    now,
    peek_object,
    truncate_timestamp,
)
from hybridkit.context import is_context_id
from hybridkit.errors import FieldProblem, MalformedPayloadError, PayloadError
from hybridkit.events._declaration import EventRegistry
from hybridkit.events._declaration import registry as default_registry
from hybridkit.events._envelope import EventEnvelope, read_envelope
from hybridkit.ids import derived_id

__all__ = [
    "STRUCTURED_MEDIA_TYPE",
    "decode_cloudevent",
    "decode_message",
    "is_cloudevent",
    "to_binary",
    "to_structured",
]

STRUCTURED_MEDIA_TYPE: Final = "application/cloudevents+json"
HEADER_PREFIX: Final = "cloudEvents_"
_MEDIA_TYPES: Final = "application/cloudevents"
_PREFIXES: Final = ("cloudevents_", "cloudevents:", "ce-", "ce_")
"""Header names match in any case: a bridge from HTTP, where names have none, may write `Ce-Id`."""

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

FIRST_READ_AT: Final = "hk_first_read_at"
"""The header of a copy that says when an event without `time` was read for the first time."""

type _Mode = Literal["structured", "binary"]


class Wire(NamedTuple):
    """A message that was looked at, in the form of an envelope.

    Attributes:
        members: the members of the envelope.
        body: the same as JSON.
        original_id: the `id` that the source of a CloudEvent gave it; None for an envelope.
        is_timed: whether the message itself has the time at which it happened.
    """

    members: dict[str, Any]
    body: bytes
    original_id: str | None = None
    is_timed: bool = True


def to_structured(envelope: EventEnvelope[Any]) -> bytes:
    """Write an envelope as one CloudEvents JSON object."""
    attributes, data = _taken_apart(envelope)
    return to_json({**attributes, "datacontenttype": "application/json", "data": data})


def to_binary(envelope: EventEnvelope[Any]) -> tuple[dict[str, str], bytes]:
    """Write an envelope as message headers (`cloudEvents_type`, …) and a body that has the data alone."""
    attributes, data = _taken_apart(envelope)
    return {f"{HEADER_PREFIX}{name}": str(value) for name, value in attributes.items()}, encode_json(data)


def is_cloudevent(body: bytes, headers: Mapping[str, object], *, content_type: str | None = None) -> bool:
    """Return whether a message is a CloudEvent in either mode: by its content type or headers, else by its members."""
    if _mode(headers, content_type) is not None:
        return True
    try:
        return _is_structured(peek_object(body))
    except PayloadError:
        return False


def decode_message(
    body: bytes,
    headers: Mapping[str, object],
    *,
    content_type: str | None = None,
    registry: EventRegistry = default_registry,
    limit_bytes: int = MAX_MESSAGE_BYTES,
) -> EventEnvelope[Any]:
    """Read a message: an envelope, or a CloudEvent as an envelope.

    Raises:
        PayloadError: the message can't be read, as for `hybridkit.events.decode_envelope`; whatever the bytes are,
            nothing else is raised.
    """
    mode = _mode(headers, content_type)
    if mode is None:
        return decode_body(body, headers, registry=registry, limit_bytes=limit_bytes)[0]
    return _envelope(_read(mode, body, headers, limit_bytes), registry)


def decode_body(
    body: bytes,
    headers: Mapping[str, object],
    *,
    registry: EventRegistry = default_registry,
    limit_bytes: int = MAX_MESSAGE_BYTES,
) -> tuple[EventEnvelope[Any], Mapping[str, Any] | None]:
    """Read a message whose properties name no form of CloudEvents, as `decode_message` does.

    Returns:
        The envelope, and its members as `peek_object` reads them; None for the members of a CloudEvent.
    """
    members = peek_object(body, limit_bytes=limit_bytes)
    if _is_structured(members):
        return _envelope(_read("structured", body, headers, limit_bytes), registry), None
    return read_envelope(members, body, registry=registry), members


def decode_cloudevent(
    body: bytes,
    headers: Mapping[str, object] | None = None,
    *,
    content_type: str | None = None,
    registry: EventRegistry = default_registry,
    limit_bytes: int = MAX_MESSAGE_BYTES,
) -> EventEnvelope[Any]:
    """Read a CloudEvent as an envelope: in binary mode where the headers carry its attributes, else in structured mode.

    A `requestid` is optional in a CloudEvent from outside; without one the event's own id stands in.

    Raises:
        PayloadError: the message can't be read, as for `hybridkit.events.decode_envelope`.
    """
    mode = _mode(headers or {}, content_type) or "structured"
    return _envelope(_read(mode, body, headers or {}, limit_bytes), registry)


def read_wire(
    body: bytes,
    headers: Mapping[str, object],
    *,
    content_type: str | None = None,
    limit_bytes: int = MAX_MESSAGE_BYTES,
) -> Wire:
    """Look at a message, and leave it open whether its type is known here.

    The properties are asked first: the data of an event may have members of any name.

    Raises:
        PayloadError: the body is no JSON object, or a CloudEvent that can't be read.
    """
    mode = _mode(headers, content_type)
    if mode is not None:
        return _read(mode, body, headers, limit_bytes)
    members = decode_object(body, limit_bytes=limit_bytes)
    return _of_structured(members, headers) if _is_structured(members) else Wire(members, body)


def _envelope(wire: Wire, registry: EventRegistry) -> EventEnvelope[Any]:
    envelope = read_envelope(wire.members, wire.body, registry=registry)
    envelope.keep_original_id(wire.original_id or str(envelope.event_id))
    return envelope


def _mode(headers: Mapping[str, object], content_type: str | None) -> _Mode | None:
    """Return the mode that a message's properties name, or None.

    Raises:
        MalformedPayloadError: they name a form of CloudEvents that is not read here.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type == STRUCTURED_MEDIA_TYPE:
        return "structured"
    if media_type.startswith(_MEDIA_TYPES):
        raise MalformedPayloadError(
            f"CloudEvents come one by one as {STRUCTURED_MEDIA_TYPE} or in headers, not in a batch or another format"
        )
    return "binary" if _prefix(headers) else None


def _prefix(headers: Mapping[str, object]) -> str | None:
    names = {name.lower() for name in headers}
    return next((prefix for prefix in _PREFIXES if f"{prefix}specversion" in names), None)


def _is_structured(members: Mapping[str, Any]) -> bool:
    # No attribute has such a name, which only letters and digits are in.
    return "specversion" in members and "event_type" not in members


def _read(mode: _Mode, body: bytes, headers: Mapping[str, object], limit_bytes: int) -> Wire:
    if mode == "structured":
        return _of_structured(decode_object(body, limit_bytes=limit_bytes), headers)
    check_size(body, limit_bytes=limit_bytes)
    prefix = _prefix(headers) or _PREFIXES[0]
    attributes: dict[str, str] = {}
    for header, value in headers.items():
        name = header.lower().removeprefix(prefix)
        if not header.lower().startswith(prefix) or name not in {*_NAMES, "specversion"} or value is None:
            continue
        if attributes.setdefault(name, text := _text(name, value)) != text:
            raise _not_a_cloudevent(name, "it is there twice, with different values")
    return _with_fragment(attributes, body, headers, limit_bytes)


def _of_structured(members: Mapping[str, Any], headers: Mapping[str, object]) -> Wire:
    attributes = {name: value for name, value in members.items() if value is not None}
    data = attributes.pop("data", None)
    encoded = attributes.pop("data_base64", None)
    if encoded is None:
        members = {**_members(attributes, headers), "data": {} if data is None else data}
        return Wire(members, to_json(members), attributes["id"], is_timed="time" in attributes)
    if data is not None:
        raise _not_a_cloudevent("data_base64", "there is data already")
    try:
        octets = base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError):
        raise _not_a_cloudevent("data_base64", "is not Base64") from None
    return _with_fragment(attributes, octets, headers, MAX_MESSAGE_BYTES)


def _with_fragment(
    attributes: Mapping[str, Any], data: bytes, headers: Mapping[str, object], limit_bytes: int
) -> Wire:
    """Make an envelope around data that is JSON already and goes on byte by byte; null is no data, in this form too."""
    members = _members(attributes, headers)
    parsed = decode_json(data or b"{}", limit_bytes=limit_bytes)
    if not data or parsed is None:
        parsed, data = {}, b"{}"
    body = to_json(members)[:-1] + b',"data":' + data + b"}"
    return Wire({**members, "data": parsed}, body, attributes["id"], is_timed="time" in attributes)


def _members(attributes: Mapping[str, Any], headers: Mapping[str, object]) -> dict[str, Any]:
    """Return the envelope's members except the data.

    Raises:
        MalformedPayloadError: an attribute that a CloudEvent must have is missing.
    """
    if attributes.get("specversion") != "1.0":
        raise _not_a_cloudevent("specversion", "1.0 is required")
    for name in _REQUIRED:
        if not isinstance(attributes.get(name), str) or not attributes[name]:
            raise _not_a_cloudevent(name, "a text is required, which is not empty")
    event_id = _event_id(attributes["source"], attributes["id"])
    members = {member: attributes[name] for name, member in _NAMES.items() if name in attributes}
    members |= {"event_id": event_id}
    members.setdefault("timestamp", format_timestamp(_first_read_at(headers) or now()))
    for name in ("request_id", "user_id"):  # extensions, which may be integers
        if type(members.get(name)) is int:
            members[name] = str(members[name])
    members["request_id"] = next(
        (
            text
            for text in (members.get("request_id"), attributes["id"])
            if isinstance(text, str) and is_context_id(text)
        ),
        event_id,
    )
    if not _is_uuid(members.get("causation_id")):
        members.pop("causation_id", None)
    version = members.get("version")
    if isinstance(version, str) and version.isascii() and version.isdecimal() and len(version) <= 9:
        members["version"] = int(version)  # a header carries text
    return members


def _first_read_at(headers: Mapping[str, object]) -> datetime | None:
    """Return when an earlier reader has read the message, where its copy says so."""
    try:
        return truncate_timestamp(datetime.fromisoformat(str(headers.get(FIRST_READ_AT))))
    except ValueError:
        return None


def _event_id(source: str, original_id: str) -> str:
    """Derive one event id for each source and id; a UUID in its canonical text is its own."""
    if _is_uuid(original_id) and str(UUID(original_id)) == original_id:
        return original_id
    return str(derived_id(f"cloudevent {source}", original_id))


def _is_uuid(value: object) -> bool:
    try:
        UUID(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def _text(name: str, value: object) -> str:
    """Read an attribute of a header, which has the AMQP type that its writer chose."""
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case datetime():
            return format_timestamp(value)
        case bytes() | bytearray():
            return value.decode(errors="replace")
        case _:
            raise _not_a_cloudevent(name, "its header is no text")


def _taken_apart(envelope: EventEnvelope[Any]) -> tuple[dict[str, Any], Any]:
    """Split an envelope into its attributes and its data."""
    wire = decode_object(envelope.encode())
    data = wire.pop("data")
    named = {name: wire[member] for name, member in _NAMES.items() if wire.get(member) is not None}
    return {"specversion": "1.0", **named, "id": envelope.original_id}, data


def _not_a_cloudevent(attribute: str, message: str) -> MalformedPayloadError:
    return MalformedPayloadError(
        "the message is not a CloudEvent 1.0", errors=[FieldProblem(f"/{attribute}", "cloudevent", message)]
    )
