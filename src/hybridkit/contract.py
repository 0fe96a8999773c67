"""The part of the HTTP contract that data clients and data services share: headers, transactions, batches, problems.

Errors travel as `application/problem+json` (RFC 9457). `Problem.to_error` makes of a problem the error that
`Problem.from_error` was given, with its message and those of its attributes that a problem has members for, except that

* a class without a code of its own comes back as the most general one with that code, such as `UnavailableError` for
  `NotConnectedError`, or `MisuseError` for `SettingsError`;
* a `PayloadError` comes back as `InvalidRequestError`, and the sizes of one that was too large only in its message;
* `retry_after_seconds` comes back between 0 and `MAX_DELAY_SECONDS` of `hybridkit.retry`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
)

from hybridkit._header_fields import quote_string, read_string
from hybridkit.codec import Timestamp, check_readable, decode_object, encode_json, field_errors
from hybridkit.context import ContextId
from hybridkit.errors import (
    FieldProblem,
    ForeignKeyError,
    HybridkitError,
    InvalidHeaderError,
    InvalidQueryError,
    InvalidRequestError,
    MalformedPayloadError,
    NoRouteError,
    NotFoundError,
    PayloadTooLargeError,
    ResponseError,
    StaleVersionError,
    TemporaryError,
    UniqueViolationError,
)
from hybridkit.errors._codes import error_for_code
from hybridkit.events import Command, Event, Message, encode_data
from hybridkit.events._declaration import MAX_TYPE_LENGTH
from hybridkit.retry import MAX_DELAY_SECONDS, retry_after_seconds

__all__ = [
    "CALLER_HEADER",
    "IDEMPOTENCY_KEY_HEADER",
    "IDEMPOTENCY_REPLAYED_HEADER",
    "IDEMPOTENCY_REREAD_HEADER",
    "MAX_BATCH",
    "MAX_BODY_BYTES",
    "MAX_OPERATIONS",
    "MAX_PAGE_BYTES",
    "NDJSON_MEDIA_TYPE",
    "PROBLEM_MEDIA_TYPE",
    "AssertOperation",
    "BatchGet",
    "BatchRecord",
    "BatchWrite",
    "CreateOperation",
    "DeleteOperation",
    "Emission",
    "Operation",
    "Problem",
    "Transaction",
    "TransactionResult",
    "UpdateOperation",
    "UpsertOperation",
    "parse_key",
    "quote_key",
    "whole_characters",
]

IDEMPOTENCY_KEY_HEADER: Final = "idempotency-key"
IDEMPOTENCY_REPLAYED_HEADER: Final = "idempotency-replayed"
IDEMPOTENCY_REREAD_HEADER: Final = "idempotency-reread"
"""Marks the repetition of a response that was too large to keep: its records were read again."""
CALLER_HEADER: Final = "x-service-name"
"""Names the calling service. It tells callers apart; it doesn't authenticate them."""
PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
NDJSON_MEDIA_TYPE: Final = "application/x-ndjson"
"""The media type of exports: a record per line, and `{"$end": true, "count": n}` as the last line, to notice a cut."""

HEADER_POINTER: Final = "/header/"
"""The beginning of a problem's pointer to a header field, as in FastAPI; the field's name follows."""
NO_ROUTE: Final = "NO_ROUTE"
"""The code in the `errors` of a 404 that tells a missing route from a missing record."""
MAX_OPERATIONS: Final = 100
MAX_BATCH: Final = 1000
"""The largest number of records in one `:batch_…` call."""
MAX_BODY_BYTES: Final = 1024 * 1024
MAX_PAGE_BYTES: Final = 4 * 1024 * 1024
"""The largest size of the records in one page, or one response to `:batch_get`; a larger record comes alone."""
MAX_KEY_LENGTH: Final = 255
MAX_TRACE_STATE_LENGTH: Final = 512
MAX_ORDERING_KEY_LENGTH: Final = 1024
MAX_VERSION: Final = 2**31 - 1
_VISIBLE: Final = "^[!-~]+$"


def quote_key(key: str) -> str:
    """Write a key as a structured-field string (RFC 9651, section 3.3.3), the form of `Idempotency-Key`.

    Raises:
        InvalidRequestError: the key is empty, longer than 255 characters, or not printable ASCII.
    """
    if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise InvalidRequestError(f"an idempotency key has 1 to {MAX_KEY_LENGTH} printable ASCII characters")
    return quote_string(key)


def parse_key(value: str) -> str:
    """Read the key in a value of `Idempotency-Key`: quoted or, as many clients send it, bare.

    Raises:
        InvalidRequestError: `quote_key` would refuse the key, or the value has a quotation mark out of place.
    """
    value = value.strip()
    if '"' in value:
        try:
            value = read_string(value)
        except ValueError as error:
            raise InvalidRequestError(f"the idempotency key can't be read: {error}") from None
    quote_key(value)
    return value


# ── POST /v1:transact ────────────────────────────────────────────────────────────────────────────


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
    increment: dict[str, int | FiniteFloat] = Field(default_factory=dict)
    require: dict[str, Any] | None = None
    if_match: str | None = None


class UpsertOperation(_Strict):
    """Create a record, or replace it where it exists."""

    op: Literal["upsert"] = "upsert"
    resource: str
    id: str
    data: dict[str, Any]


class DeleteOperation(_Strict):
    """Delete a record."""

    op: Literal["delete"] = "delete"
    resource: str
    id: str
    if_match: str | None = None


type Operation = Annotated[
    AssertOperation | CreateOperation | UpdateOperation | UpsertOperation | DeleteOperation,
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
    data: dict[str, Any]

    @classmethod
    def of(
        cls,
        message: Message,
        *,
        request_id: str,
        user_id: str | None,
        not_before: datetime | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Self:
        """Make the emission of a message, with the message's id and timestamp.

        Args:
            message: the event or command.
            request_id: the id of the request that causes it.
            user_id: the user on whose behalf the request is made.
            not_before: the earliest time to publish it; None for at once.
            trace: `traceparent` and `tracestate`; a state that is too long is left out, as W3C allows.

        Raises:
            InvalidRequestError: a value is outside the limits, such as a key of 10,000 characters.
            MalformedPayloadError: the message's data has no JSON form, or one that no consumer could read.
        """
        trace = trace or {}
        state = trace.get("tracestate", "")
        data = encode_data(message)
        check_message_data(data)
        members: dict[str, Any] = {
            "event_type": message.message_type,
            "version": message.message_version,
            "event_id": message.event_id,
            "timestamp": message.timestamp,
            "key": message.ordering_key if isinstance(message, Event) else None,
            "queue": message.queue if isinstance(message, Command) else None,
            "not_before": not_before,
            "request_id": request_id,
            "user_id": user_id,
            "traceparent": trace.get("traceparent"),
            "tracestate": state if 0 < len(state) <= MAX_TRACE_STATE_LENGTH else None,
            "data": decode_object(data),
        }
        try:
            return cls(**members)
        except ValidationError as error:
            raise InvalidRequestError(
                f"{message.message_type!r} can't be sent", errors=field_errors(error)
            ) from None


def check_message_data(data: bytes) -> None:
    """Check that consumers can read a message's data once it is in its envelope.

    Args:
        data: the data as JSON.

    Raises:
        MalformedPayloadError: the data is nested too deeply, or has a number beyond the range of a double.
    """
    check_readable(b'{"data":' + data + b"}")


class Transaction(_Strict):
    """The body of `POST /v1:transact`: at most 100 operations, done in order, all of them or none."""

    operations: tuple[Operation, ...] = Field(default=(), max_length=MAX_OPERATIONS)
    emit: tuple[Emission, ...] = Field(default=(), max_length=MAX_OPERATIONS)
    isolation: Literal["read_committed", "repeatable_read", "serializable"] = "read_committed"


class TransactionResult(BaseModel):
    """The response to `POST /v1:transact`: a record per operation, in their order; null for `assert` and `delete`."""

    results: tuple[dict[str, Any] | None, ...]


# ── POST /v1/{resource}:batch_… ──────────────────────────────────────────────────────────────────


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


# ── application/problem+json ─────────────────────────────────────────────────────────────────────


def whole_characters(text: Any) -> Any:
    """Replace halves of surrogate pairs in a text, which UTF-8 can't encode; return anything else as it is."""
    is_sendable = not isinstance(text, str) or text.isascii()
    return text if is_sendable else text.encode(errors="replace").decode()


_Words = Annotated[str, BeforeValidator(whole_characters)]


class ProblemField(BaseModel):
    """One entry of a problem's `errors`."""

    pointer: _Words
    code: _Words
    message: _Words = ""


class Problem(BaseModel):
    """A problem document, which a data service answers a failed request with. It shows no SQL and no values.

    https://www.rfc-editor.org/rfc/rfc9457#section-3.1
    """

    type: str = "about:blank"
    title: _Words
    status: int = Field(ge=400, le=599)
    detail: str = ""
    instance: _Words | None = None
    code: _Words
    retryable: bool = False
    request_id: _Words | None = None
    errors: tuple[ProblemField, ...] = ()
    fields: tuple[_Words, ...] = ()
    current: _Words | None = None
    retry_after_seconds: float | None = None

    @field_validator("detail", mode="before")
    @classmethod
    def _as_text(cls, detail: Any) -> str:
        """Accept any JSON, which other APIs may send here, and halves of characters: the rest is worth reading."""
        if not isinstance(detail, str):
            return encode_json(detail).decode()
        return str(whole_characters(detail))

    @classmethod
    def from_error(cls, error: HybridkitError, *, instance: str, request_id: str) -> Self:
        """Make the problem of an error.

        Args:
            error: the error.
            instance: the path of the request.
            request_id: the id of the request.
        """
        findings: tuple[FieldProblem, ...] = ()
        if isinstance(
            error, InvalidRequestError | MalformedPayloadError | UniqueViolationError | ForeignKeyError
        ):
            findings = error.errors
        elif isinstance(error, InvalidQueryError) and error.pointer:
            findings = (FieldProblem(error.pointer, error.code),)
        elif isinstance(error, InvalidHeaderError):
            findings = (FieldProblem(f"{HEADER_POINTER}{error.field}", error.code),)
        elif isinstance(error, NoRouteError):
            findings = (FieldProblem("", NO_ROUTE),)
        return cls(
            title=type(error).__name__.removesuffix("Error"),
            status=error.status,
            detail=str(error),
            instance=instance,
            code=error.code,
            retryable=error.retryable,
            request_id=request_id,
            errors=tuple(ProblemField(pointer=f.pointer, code=f.code, message=f.message) for f in findings),
            fields=error.fields if isinstance(error, UniqueViolationError) else (),
            current=error.current if isinstance(error, StaleVersionError) else None,
            retry_after_seconds=_sendable_seconds(error),
        )

    def to_error(self) -> HybridkitError:
        """Return the error that a client raises for this problem; `ResponseError` for an unknown code."""
        error = _error_class(self)
        found = [FieldProblem(entry.pointer, entry.code, entry.message) for entry in self.errors]
        match error:
            case _ if issubclass(error, ResponseError):
                said = self.detail if self.code == error.code else f"{self.status} {self.code}: {self.detail}"
                return ResponseError(said, response_status=self.status)
            case _ if issubclass(error, InvalidRequestError):
                return InvalidRequestError(self._message_without(found), errors=found)
            case _ if issubclass(error, InvalidQueryError):
                return error(self.detail, pointer=self.errors[0].pointer if self.errors else "")
            case _ if issubclass(error, InvalidHeaderError):
                pointer = self.errors[0].pointer if self.errors else ""
                return error(self.detail, field=pointer.removeprefix(HEADER_POINTER))
            case _ if issubclass(error, UniqueViolationError):
                return UniqueViolationError(self.detail, fields=self.fields, errors=found)
            case _ if issubclass(error, ForeignKeyError):
                return ForeignKeyError(self.detail, errors=found)
            case _ if issubclass(error, StaleVersionError):
                return StaleVersionError(self.detail, current=self.current)
            case _ if issubclass(error, TemporaryError):
                return error(self.detail, retry_after_seconds=self.retry_after_seconds)
            case _ if issubclass(error, PayloadTooLargeError):
                return InvalidRequestError(self.detail)
            case _:
                return error(self.detail)

    def _message_without(self, problems: Sequence[FieldProblem]) -> str:
        """Return the detail without the list of problems that `InvalidRequestError` puts at its end."""
        if not problems:
            return self.detail
        listed = f": {'; '.join(map(str, problems))}"
        return self.detail.removesuffix(listed) if self.detail.endswith(listed) else self.title


def _sendable_seconds(error: HybridkitError) -> float | None:
    """Return the error's `retry_after_seconds` within the range that a caller can wait for."""
    asked = retry_after_seconds(error.retry_after_seconds) if isinstance(error, TemporaryError) else None
    return None if asked is None else min(max(asked, 0.0), MAX_DELAY_SECONDS)


def _error_class(problem: Problem) -> type[HybridkitError]:
    error = error_for_code(problem.code) or ResponseError
    if error is NotFoundError and any(entry.code == NO_ROUTE for entry in problem.errors):
        return NoRouteError
    return error
