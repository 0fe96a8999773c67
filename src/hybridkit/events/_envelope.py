"""The envelope around an event or command: written, read, and brought to the newest version of its class."""

from collections.abc import Mapping
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, cast
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hybridkit.codec import (
    MAX_MESSAGE_BYTES,
    Timestamp,
    check_readable,
    decode_object,
    encode_json,
    field_errors,
    format_timestamp,
    peek_object,
    validate_json,
    validate_object,
)
from hybridkit.context import ContextId, RequestContext, current
from hybridkit.errors import FieldProblem, MalformedPayloadError, PayloadError
from hybridkit.events._declaration import (
    MAX_TYPE_LENGTH,
    QUEUE_PATTERN,
    EventRegistry,
    Message,
    Upcaster,
    write_data,
)
from hybridkit.events._declaration import registry as default_registry
from hybridkit.ids import uuid_octets

__all__ = ["EventEnvelope", "ReplyTo", "decode_envelope", "encode_message"]


class ReplyTo(BaseModel):
    """The saga that sent a command, and wants to know if it becomes a dead letter.

    A consumer that gives such a command up publishes `command.failed` to the queue first. Nothing else goes there.

    Attributes:
        queue: the queue of the saga.
        saga_id: the saga's id.
    """

    model_config = ConfigDict(frozen=True)

    queue: str = Field(max_length=MAX_TYPE_LENGTH, pattern=f"^{QUEUE_PATTERN}$")
    saga_id: UUID


class EventEnvelope[DataT: Message](BaseModel):
    """A message as it travels: its sender, its time, its user, and the data itself.

    Attributes:
        event_type: the type, such as `user.created`.
        event_id: the event's identity; consumers count it once.
        timestamp: when it happened; written in UTC with milliseconds.
        service: the name of the service that sent it.
        request_id: the request that caused it.
        user_id: the user on whose behalf it happened; always written, read as null where absent.
        data: the event or command itself.
        version: the schema version of `data`; left out on the wire when it is 1.
        causation_id: the id of the event or command whose handler sent this one, if any.
        stream_version: the event's number in its stream; None for an event that was not appended to one.
        reply_to: of a command, the saga that is told if it becomes a dead letter, if any.
    """

    model_config = ConfigDict(frozen=True)

    __slots__ = ("_original_id",)  # as in `Message`: it costs nothing where it is not needed

    event_type: str
    event_id: UUID
    timestamp: Timestamp
    service: str = Field(min_length=1)
    request_id: str
    user_id: ContextId | None = None
    data: DataT
    version: int = Field(default=1, ge=1, strict=True)
    causation_id: UUID | None = None
    stream_version: int | None = None
    reply_to: ReplyTo | None = None

    @classmethod
    def wrap[MessageT: Message](
        cls, message: MessageT, *, service: str, causation_id: UUID | None = None
    ) -> "EventEnvelope[MessageT]":
        """Put a message into its envelope, with the request and user of the current context.

        Args:
            message: the event or command.
            service: the name of the sending service.
            causation_id: the id of the event that this one answers; by default that of the one being handled.
        """
        context = current()
        return _envelope_class(type(message)).model_construct(
            event_type=message.message_type,
            event_id=message.event_id,
            timestamp=message.timestamp,
            service=service,
            request_id=context.request_id,
            user_id=context.user_id,
            data=message,
            version=message.message_version,
            causation_id=causation_id or context.causation_id,
        )

    @property
    def original_id(self) -> str:
        """The id that its source gave it: of a CloudEvent any text, of everything else the event id."""
        try:
            return cast("str", _read_original_id(self))
        except AttributeError:
            return str(self.event_id)

    def keep_original_id(self, original_id: str) -> None:
        """Remember the id of the CloudEvent that this was read from."""
        _fill_original_id(self, original_id)

    def encode(self) -> bytes:
        """Write the envelope as JSON in UTF-8.

        Raises:
            MalformedPayloadError: the data holds something that has no JSON form.
        """
        return _encode(
            self.data,
            event_id=self.event_id,
            timestamp=self.timestamp,
            service=self.service,
            request_id=self.request_id,
            user_id=self.user_id,
            causation_id=self.causation_id,
            version=self.version,
            reply_to=self.reply_to,
        )


_read_original_id = vars(EventEnvelope)["_original_id"].__get__
_fill_original_id = vars(EventEnvelope)["_original_id"].__set__


def encode_message(message: Message, *, service: str, context: RequestContext) -> bytes:
    """Write a message in its envelope as JSON in UTF-8 without making the envelope, as a publisher needs it.

    Args:
        message: the event or command.
        service: the name of the sending service.
        context: gives the request id, the user id and the causation id.

    Raises:
        MalformedPayloadError: the data holds something that has no JSON form.
    """
    event_id, timestamp = message.identify()
    return _encode(
        message,
        event_id=event_id,
        timestamp=timestamp,
        service=service,
        request_id=context.request_id,
        user_id=context.user_id,
        causation_id=context.causation_id,
        version=message.message_version,
    )


def _encode(
    data: Message,
    *,
    event_id: UUID,
    timestamp: datetime,
    service: str,
    request_id: str,
    user_id: str | None,
    causation_id: UUID | None,
    version: int,
    reply_to: ReplyTo | None = None,
) -> bytes:
    written, is_doubtful = write_data(data)
    # Put together from parts, of which most are the same for many messages; the data is JSON already.
    try:
        parts = [
            _type_member(data.message_type),
            uuid_octets(event_id),
            b'","timestamp":"',
            format_timestamp(timestamp).encode(),
            _sender_members(service, request_id, user_id),
            written,
        ]
        if version != 1:
            parts += b',"version":', orjson.dumps(version)
        if causation_id is not None:
            parts += b',"causation_id":', orjson.dumps(causation_id)
        if reply_to is not None:
            parts += b',"reply_to":', encode_json(reply_to)
    except orjson.JSONEncodeError as error:
        raise MalformedPayloadError(f"{data.message_type!r} has no JSON form: {error}") from None
    parts.append(b"}")
    body = b"".join(parts)
    if is_doubtful:
        check_readable(body)
    return body


@lru_cache(4096)
def _type_member(message_type: str) -> bytes:
    """Return the beginning of an envelope, up to the event id."""
    return b'{"event_type":' + orjson.dumps(message_type) + b',"event_id":"'


@lru_cache(1024)
def _sender_members(service: str, request_id: str, user_id: str | None) -> bytes:
    """Return what is between the timestamp and the data."""
    members = {"service": service, "request_id": request_id, "user_id": user_id}
    return b'",' + orjson.dumps(members)[1:-1] + b',"data":'


def decode_envelope(
    body: bytes, *, registry: EventRegistry = default_registry, limit_bytes: int = MAX_MESSAGE_BYTES
) -> EventEnvelope[Any]:
    """Read an envelope, and bring its data to the newest version that this process can reach.

    Whatever the bytes are, nothing but `PayloadError` comes out.

    Args:
        body: UTF-8 JSON.
        registry: the types to choose from.
        limit_bytes: the largest body; more is refused before parsing.

    Raises:
        PayloadTooLargeError: the body is over the limit.
        MalformedPayloadError: the body is not JSON, not an envelope, or has data of another shape.
        UnknownEventTypeError: this process has no such type.
        UnknownEventVersionError: this process has no such version.
    """
    return read_envelope(peek_object(body, limit_bytes=limit_bytes), body, registry=registry)


def read_envelope(wire: Mapping[str, Any], body: bytes, *, registry: EventRegistry) -> EventEnvelope[Any]:
    """Make an envelope of its members.

    Args:
        wire: the members from `peek_object`; type and version decide which class the data becomes.
        body: the same as JSON, from which the data is read, with numbers to their last digit.
        registry: the types to choose from.

    Raises:
        PayloadError: the members can't be read, as for `decode_envelope`.
    """
    message_type, version = _head(wire)
    message, steps = registry.resolve(message_type, version)
    what = f"the envelope of {message_type!r}"
    try:
        if steps:
            exact = decode_object(body)
            exact["data"] = _upcasted(exact.get("data"), steps, message_type, version)
            exact["version"] = message.message_version
            envelope = validate_object(_adapter(message), exact, what=what)
        else:
            envelope = validate_json(_adapter(message), body, what=what)
        envelope.data.identify_as(envelope.event_id, envelope.timestamp)
    except PayloadError:
        raise
    except Exception as error:  # the validators of a declaration meet data that their author did not expect
        raise MalformedPayloadError(f"{what} can't be read: {type(error).__name__}") from error
    return envelope


def read_data(
    message_type: str, version: int, data: Mapping[str, Any], *, registry: EventRegistry = default_registry
) -> Message:
    """Make a message of its data without an envelope, as a stream keeps it; its identity is left to the caller.

    Args:
        message_type: the type.
        version: the version of the data.
        data: the message's fields, as JSON values.
        registry: the types to choose from.

    Raises:
        MalformedPayloadError: the data has another shape.
        UnknownEventTypeError: this process has no such type.
        UnknownEventVersionError: this process has no such version.
    """
    message, steps = registry.resolve(message_type, version)
    try:
        if steps:
            data = _upcasted(dict(data), steps, message_type, version)
        return cast("Message", message.__pydantic_validator__.validate_json(encode_json(data)))
    except ValidationError as error:
        raise MalformedPayloadError(
            f"the data of {message_type!r} does not fit", errors=field_errors(error)
        ) from None
    except PayloadError:
        raise
    except Exception as error:  # the validators of a declaration meet data that their author did not expect
        raise MalformedPayloadError(
            f"the data of {message_type!r} can't be read: {type(error).__name__}"
        ) from error


@cache
def _envelope_class(message: type[Message]) -> type[EventEnvelope[Any]]:
    """Return `EventEnvelope[message]`, without asking pydantic each time."""
    return EventEnvelope[message]  # type: ignore[valid-type]


@cache
def _adapter(message: type[Message]) -> TypeAdapter[EventEnvelope[Any]]:
    return TypeAdapter(_envelope_class(message))


def _head(wire: Mapping[str, Any]) -> tuple[str, int]:
    message_type = wire.get("event_type")
    if not isinstance(message_type, str):
        raise _not_an_envelope("/event_type", "string_type", "a string is required")
    version = wire.get("version", 1)
    if type(version) is not int or version < 1:
        raise _not_an_envelope("/version", "int_type", "a whole number from 1 is required")
    timestamp = wire.get("timestamp", "0000-")
    # Seconds or milliseconds since 1970: pydantic would guess which by the size, also of a text.
    if not isinstance(timestamp, str) or timestamp[4:5] != "-":
        raise _not_an_envelope("/timestamp", "datetime_type", "a time by RFC 3339 is required")
    return message_type, version


def _not_an_envelope(pointer: str, code: str, message: str) -> MalformedPayloadError:
    return MalformedPayloadError(
        "the body is not an event envelope", errors=[FieldProblem(pointer, code, message)]
    )


def _upcasted(data: Any, steps: tuple[Upcaster, ...], message_type: str, version: int) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise MalformedPayloadError(f"the data of {message_type!r} is not a JSON object")
    upcasted = cast("dict[str, Any]", data)
    for number, step in enumerate(steps, start=version):
        try:
            upcasted = step(upcasted)
        except Exception as error:  # an upcaster meets data that its author did not expect
            raise MalformedPayloadError(
                f"the upcaster of {message_type!r} from version {number} failed: {type(error).__name__}"
            ) from error
    return upcasted
