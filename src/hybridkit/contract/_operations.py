"""Bodies that write several records: operations and events of `POST /v1:transact`, and batches of a resource."""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hybridkit.codec import Timestamp, check_readable, decode_object, field_errors
from hybridkit.context import ContextId
from hybridkit.contract._streams import Append
from hybridkit.errors import InvalidRequestError
from hybridkit.events import Command, Event, Message, ReplyTo, encode_data
from hybridkit.events._declaration import MAX_TYPE_LENGTH

MAX_OPERATIONS: Final = 100
MAX_TRACE_STATE_LENGTH: Final = 512
MAX_ORDERING_KEY_LENGTH: Final = 1024
MAX_VERSION: Final = 2**31 - 1
_VISIBLE: Final = "^[!-~]+$"
MAX_BATCH: Final = 1000
"""The largest number of records in one `:batch_…` call."""


_DECIMAL: Final = re.compile(
    r"[+-]?([0-9]{1,400}(\.[0-9]{0,400})?|\.[0-9]{1,400})([eE][+-]?[0-9]{1,3})?", re.ASCII
)


def _amount(value: Any) -> int | float | Decimal:
    """Return a finite number, also of a decimal's text."""
    found = Decimal(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else value
    if isinstance(found, bool) or not isinstance(found, int | float | Decimal):
        raise PydanticCustomError("not_a_number", "it is a number, or the text of a decimal")
    if not (
        found.is_finite() if isinstance(found, Decimal) else isinstance(found, int) or math.isfinite(found)
    ):
        raise PydanticCustomError("finite_number", "it is a finite number")
    return found


def _sent_amount(amount: float | Decimal) -> int | float | str:
    return str(amount) if isinstance(amount, Decimal) else amount


type Amount = Annotated[
    int | float | Decimal,
    PlainValidator(_amount),
    PlainSerializer(_sent_amount),  # pydantic warns of a decimal in a union of numbers
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": _DECIMAL.pattern}]}),
]
"""A number to add to a field. A `Decimal` is text on the wire, as the values of such fields are."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AssertOperation(_Strict):
    """Require that a record exists, in the state that `if_match` names, until the commit."""

    op: Literal["assert"] = "assert"
    resource: str
    id: str
    if_match: str | None = None


class CreateOperation(_Strict):
    """Create a record under an id that the client has made."""

    op: Literal["create"] = "create"
    resource: str
    id: str
    data: dict[str, Any]


class UpdateOperation(_Strict):
    """Change fields of a record (RFC 7396 merge patch), add to numbers, or both, if `require` holds."""

    op: Literal["update"] = "update"
    resource: str
    id: str
    data: dict[str, Any] = Field(default_factory=dict)
    increment: dict[str, Amount] = Field(default_factory=dict)
    require: dict[str, Any] | None = None
    if_match: str | None = None


class UpsertOperation(_Strict):
    """Create a record, or replace it where it exists; with `increment`, only add to the numbers of one that exists."""

    op: Literal["upsert"] = "upsert"
    resource: str
    id: str
    data: dict[str, Any]
    increment: dict[str, Amount] = Field(default_factory=dict)


class ReplaceOperation(_Strict):
    """Give a record that is there new values for all of its fields; 412 where it is in another state, or not there."""

    op: Literal["replace"] = "replace"
    resource: str
    id: str
    data: dict[str, Any]
    if_match: str | None = None


class DeleteOperation(_Strict):
    """Delete a record."""

    op: Literal["delete"] = "delete"
    resource: str
    id: str
    if_match: str | None = None


class AppendOperation(Append):
    """Append events to a stream; its result is the version of the last one, `{"version": 9}`."""

    op: Literal["append"] = "append"
    resource: str
    id: str


type Operation = Annotated[
    AssertOperation
    | CreateOperation
    | UpdateOperation
    | UpsertOperation
    | ReplaceOperation
    | DeleteOperation
    | AppendOperation,
    Field(discriminator="op"),
]


class Emission(_Strict):
    """An event or command for the outbox, written in the same transaction as the operations.

    The limits are those of message headers and routing keys, so that whatever is stored can be sent.

    Attributes:
        event_type: the type of the event or command, in visible ASCII.
        version: the version of the type.
        event_id: the message's id.
        timestamp: when the message was made.
        key: the ordering key; events with one key are published in commit order.
        queue: the queue of a command, in visible ASCII; None for an event.
        not_before: the earliest time to publish it; None for at once.
        request_id: the id of the request that causes it.
        user_id: the user on whose behalf the request is made.
        traceparent: the trace of that request, https://www.w3.org/TR/trace-context/.
        tracestate: the vendors' data of that trace.
        causation_id: the id of the event or command whose handler emits this one; None for no such cause.
        reply_to: of a command, the saga that is told if it becomes a dead letter; None for none.
        data: the message's own fields.
    """

    event_type: str = Field(min_length=1, max_length=MAX_TYPE_LENGTH, pattern=_VISIBLE)
    version: int = Field(default=1, ge=1, le=MAX_VERSION)
    event_id: UUID
    timestamp: Timestamp
    key: str | None = Field(default=None, max_length=MAX_ORDERING_KEY_LENGTH, pattern=r"^[^\x00]*$")
    queue: str | None = Field(default=None, min_length=1, max_length=MAX_TYPE_LENGTH, pattern=_VISIBLE)
    not_before: Timestamp | None = None
    request_id: ContextId
    user_id: ContextId | None = None
    traceparent: str | None = Field(default=None, max_length=128, pattern=_VISIBLE)
    tracestate: str | None = Field(default=None, max_length=MAX_TRACE_STATE_LENGTH, pattern=r"^[\t -~]*$")
    causation_id: UUID | None = None
    reply_to: ReplyTo | None = None
    data: dict[str, Any]

    @model_validator(mode="after")
    def _check_reply(self) -> Self:
        if self.reply_to is not None and self.queue is None:
            raise PydanticCustomError("reply_to_event", "only a command has a saga to reply to")
        return self

    @classmethod
    def of(
        cls,
        message: Message,
        *,
        request_id: str,
        user_id: str | None,
        not_before: datetime | None = None,
        trace: Mapping[str, str] | None = None,
        identity: tuple[UUID, datetime] | None = None,
        causation_id: UUID | None = None,
        reply_to: ReplyTo | None = None,
    ) -> Self:
        """Make the emission of a message.

        Args:
            message: the event or command.
            request_id: the id of the request that causes it.
            user_id: the user on whose behalf the request is made.
            not_before: the earliest time to publish it; None for at once.
            trace: `traceparent` and `tracestate`; a state that is too long is left out, as W3C allows.
            identity: the id and timestamp; by default the message's.
            causation_id: the id of the event or command that is being handled.
            reply_to: the saga that is told if the command fails.

        Raises:
            InvalidRequestError: a value is outside the limits, such as a key of 10,000 characters.
            MalformedPayloadError: the message's data has no JSON form, or one that no consumer could read.
        """
        trace = trace or {}
        state = trace.get("tracestate", "")
        data = encode_data(message)
        check_message_data(data)
        event_id, timestamp = identity or message.identify()
        members: dict[str, Any] = {
            "event_type": message.message_type,
            "version": message.message_version,
            "event_id": event_id,
            "timestamp": timestamp,
            "key": message.ordering_key if isinstance(message, Event) else None,
            "queue": message.queue if isinstance(message, Command) else None,
            "not_before": not_before,
            "request_id": request_id,
            "user_id": user_id,
            "traceparent": trace.get("traceparent"),
            "causation_id": causation_id,
            "reply_to": reply_to,
            "tracestate": state if 0 < len(state) <= MAX_TRACE_STATE_LENGTH else None,
            "data": decode_object(data),
        }
        try:
            return cls(**members)
        except ValidationError as error:
            raise InvalidRequestError(
                f"{message.message_type!r} can't be sent", errors=field_errors(error)
            ) from None


class StreamEmission(Emission):
    """The emission of an event that is appended to a stream in the same transaction; the data service makes it.

    Attributes:
        stream_version: the number of the event in its stream.
    """

    stream_version: int


def check_message_data(data: bytes) -> None:
    """Check that consumers can read a message's data once it is in its envelope.

    Args:
        data: the data as JSON.

    Raises:
        MalformedPayloadError: the data is nested too deeply, or has a number beyond the range of a double.
    """
    check_readable(b'{"data":' + data + b"}")


class Transaction(_Strict):
    """The body of `POST /v1:transact`: at most 100 operations, done in order, all of them or none.

    Attributes:
        operations: the writes and assertions.
        emit: events and commands for the outbox, 100 at most.
        cancel: ids of events and commands that the same service emitted earlier with a `not_before`, 100 at most: those
            whose time has not come are not published. An id that names no such message is passed over.
        isolation: the isolation level of the database transaction.
    """

    operations: tuple[Operation, ...] = Field(default=(), max_length=MAX_OPERATIONS)
    emit: tuple[Emission, ...] = Field(default=(), max_length=MAX_OPERATIONS)
    cancel: tuple[UUID, ...] = Field(default=(), max_length=MAX_OPERATIONS)
    isolation: Literal["read_committed", "repeatable_read", "serializable"] = "read_committed"


class TransactionResult(BaseModel):
    """The response to `POST /v1:transact`: a record per operation, in their order; null for `assert` and `delete`."""

    results: tuple[dict[str, Any] | None, ...]


class BatchGet(_Strict):
    """The body of `:batch_get`; the response is `{"items": […]}` in the same order, with null for a missing record."""

    ids: tuple[str, ...] = Field(max_length=MAX_BATCH)


class BatchRecord(_Strict):
    """One record of a batch.

    Attributes:
        id: the record's id; a create may leave it out where ids are UUIDs.
        data: the fields of a create, update or upsert; None for a delete.
        if_match: the ETag that the record must have; not for a create.
    """

    id: str | None = None
    data: dict[str, Any] | None = None
    if_match: str | None = None


class BatchWrite(_Strict):
    """The body of `:batch_create`, `:batch_update`, `:batch_upsert` and `:batch_delete`: all items are done, or none.

    The response is `{"items": […]}` in the same order, with null for a deleted record.

    https://google.aip.dev/233
    """

    items: tuple[BatchRecord, ...] = Field(min_length=1, max_length=MAX_BATCH)
