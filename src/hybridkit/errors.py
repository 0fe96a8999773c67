"""Every error that hybridkit raises, sorted by what the caller can do about it.

```
HybridkitError
├── TemporaryError                     try again: nothing was done, and waiting can help
│   ├── UnavailableError               a service, database or broker does not answer
│   │   ├── NotConnectedError          no connection to the broker right now
│   │   ├── BlockedError               the broker is alive but refuses publishers (memory or disk alarm)
│   │   ├── OverloadedError            alive, but every place in the queue for it is taken
│   │   └── ServerStartError           a local development server did not come up
│   ├── RateLimitedError               slow down; `retry_after_seconds` says by how much
│   ├── ConflictError                  lost a race in the database (serialization, deadlock)
│   │   └── LockTimeoutError           a lock was not to be had in time
│   ├── InProgressError                another call with the same idempotency key is still running
│   └── NackedError                    the broker took the message and gave it back
├── RejectedError                      fix the request: the same call will fail again
│   ├── NotFoundError                  no such record, or no such route
│   │   └── NoRouteError               no such route: an older service than its caller expects, or another one
│   ├── MethodNotAllowedError          the route is there, but not for this HTTP method
│   ├── InvalidRequestError            the body does not fit the resource; `errors` has pointers
│   ├── InvalidQueryError              a filter, order or page token that the resource does not allow
│   │   ├── PageTokenError             the token belongs to another query, or was made up
│   │   └── AnswerTooLargeError        the records come to more than one answer may have; ask for fewer
│   ├── InvalidHeaderError             a header field that can't be read, or that says two things
│   ├── NotAcceptableError             the answer has none of the media types that the caller takes
│   ├── UniqueViolationError           another record has that value
│   ├── ForeignKeyError                the record refers to one that is not there
│   ├── StaleVersionError              the record changed since it was read
│   ├── PreconditionRequiredError      a change has to name the state that the caller has read
│   ├── KeyMissingError                a write came without an idempotency key
│   ├── KeyReusedError                 an idempotency key came back with another payload
│   │   └── RequestKeyReusedError       the same at an API, with another request of the same caller
│   ├── AnswerNotKeptError             done before; its answer was too large to be given again
│   ├── UriTooLongError                the query doesn't fit into a URL; send it as the body of `:query`
│   ├── HeadTooLargeError              the header fields are too many or too long
│   ├── UnsupportedMediaTypeError      the body is no JSON, or it is compressed
│   ├── UnauthenticatedError           the caller doesn't prove who it is
│   ├── AccessDeniedError              the caller may not do this
│   └── PayloadError                   bytes that are no valid message
│       ├── MalformedPayloadError      not JSON, not an envelope, or data of the wrong shape
│       ├── PayloadTooLargeError       over the size limit, refused before anything is read or sent
│       ├── UnknownEventTypeError      no registered event has this type
│       └── UnknownEventVersionError   the type is known, this version of it is not
├── MisuseError                        fix the code or the deployment
│   ├── SettingsError                  every problem of the configuration in one report
│   ├── MissingExtraError              an optional dependency is not installed (also an ImportError)
│   ├── DeclarationError               a Resource, Event, Retry or consumer that contradicts itself
│   ├── UnroutableError                no queue wants what was published
│   ├── TopologyError                  the broker has a queue or exchange with other arguments
│   ├── ServerMissingError             no local server of that kind can be had on this machine
│   ├── NotSupportedError              the server at hand cannot do this
│   │   └── TransactionsUnavailableError   its database has no transactions over several records
│   └── ResponseError                  the other side answered with something outside the contract
└── OutcomeUnknownError                it may have happened or not: repeat it with the same identity
    ├── DeadlineExceededError          the time ran out first
    └── ClaimLostError                 another holder has taken this work over
```

What a data service answers with is `application/problem+json` (RFC 9457). Its `code` and HTTP status are class
attributes here, so that the service and its client cannot disagree.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

__all__ = [
    "AccessDeniedError",
    "AnswerNotKeptError",
    "AnswerTooLargeError",
    "BlockedError",
    "ClaimLostError",
    "ConflictError",
    "DeadlineExceededError",
    "DeclarationError",
    "FieldError",
    "ForeignKeyError",
    "HeadTooLargeError",
    "HybridkitError",
    "InProgressError",
    "InvalidHeaderError",
    "InvalidQueryError",
    "InvalidRequestError",
    "KeyMissingError",
    "KeyReusedError",
    "LockTimeoutError",
    "MalformedPayloadError",
    "MethodNotAllowedError",
    "MissingExtraError",
    "MisuseError",
    "NackedError",
    "NoRouteError",
    "NotAcceptableError",
    "NotConnectedError",
    "NotFoundError",
    "NotSupportedError",
    "OutcomeUnknownError",
    "OverloadedError",
    "PageTokenError",
    "PayloadError",
    "PayloadTooLargeError",
    "PreconditionRequiredError",
    "RateLimitedError",
    "RejectedError",
    "RequestKeyReusedError",
    "ResponseError",
    "ServerMissingError",
    "ServerStartError",
    "SettingsError",
    "StaleVersionError",
    "TemporaryError",
    "TopologyError",
    "TransactionsUnavailableError",
    "UnauthenticatedError",
    "UnavailableError",
    "UniqueViolationError",
    "UnknownEventTypeError",
    "UnknownEventVersionError",
    "UnroutableError",
    "UnsupportedMediaTypeError",
    "UriTooLongError",
]


class HybridkitError(Exception):
    """The root: catch it to catch everything that hybridkit raises on purpose.

    Attributes:
        code: the problem code on the wire, upper case, stable over releases.
        status: the HTTP status a data service answers with.
        retryable: whether the same call, made later, can succeed.
    """

    code: ClassVar[str] = "ERROR"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False


class FieldError:
    """One problem at one place of a request: an RFC 6901 JSON pointer, a code and words for people.

    Values never appear in it: what a caller sent may be a secret.
    """

    __slots__ = ("code", "message", "pointer")

    def __init__(self, pointer: str, code: str, message: str = "") -> None:
        self.pointer = pointer
        self.code = code
        self.message = message

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FieldError):
            return NotImplemented
        return (self.pointer, self.code) == (other.pointer, other.code)

    def __hash__(self) -> int:
        return hash((self.pointer, self.code))

    def __repr__(self) -> str:
        return f"FieldError(pointer={self.pointer!r}, code={self.code!r})"

    def __str__(self) -> str:
        return f"{self.pointer or '/'}: {self.message or self.code}"


# ── try again ────────────────────────────────────────────────────────────────────────────────────


class TemporaryError(HybridkitError):
    """Nothing was done; the same call can succeed later."""

    code = "TEMPORARY"
    status = 503
    retryable = True

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UnavailableError(TemporaryError):
    """A service, database or broker is down, starting, or too busy to take the call."""

    code = "UNAVAILABLE"


class NotConnectedError(UnavailableError):
    """There is no connection to the broker, so nothing was sent."""


class BlockedError(UnavailableError):
    """The broker has stopped reading from publishers (`connection.blocked`: a memory or disk alarm)."""


class ServerStartError(UnavailableError):
    """A local server for development and tests did not become ready; the end of its log is in the message."""


class OverloadedError(UnavailableError):
    """The service is alive, but every connection of its pool stayed taken for too long."""

    code = "OVERLOADED"


class RateLimitedError(TemporaryError):
    """Too many requests."""

    code = "RATE_LIMITED"
    status = 429


class ConflictError(TemporaryError):
    """The database chose another transaction (SQLSTATE 40001, 40P01)."""

    code = "SERIALIZATION_FAILURE"
    status = 409


class LockTimeoutError(ConflictError):
    """Another transaction held a lock for too long (SQLSTATE 55P03)."""

    code = "LOCK_TIMEOUT"


class InProgressError(TemporaryError):
    """Another call with the same idempotency key has not finished."""

    code = "IDEMPOTENCY_IN_PROGRESS"
    status = 409


class NackedError(TemporaryError):
    """The broker answered a publish with `basic.nack`: it did not take responsibility for the message."""


# ── fix the request ──────────────────────────────────────────────────────────────────────────────


class RejectedError(HybridkitError):
    """The same request will be refused again."""

    code = "REJECTED"
    status = 400


class NotFoundError(RejectedError):
    """There is no such record, or no such route."""

    code = "NOT_FOUND"
    status = 404


class NoRouteError(NotFoundError):
    """There is no such route: the service is older than its caller expects, or another one."""


class MethodNotAllowedError(RejectedError):
    """The route is there, but not for this HTTP method."""

    code = "METHOD_NOT_ALLOWED"
    status = 405


class InvalidRequestError(RejectedError):
    """The body does not fit what the resource declares.

    Attributes:
        errors: one `FieldError` per problem, all of them at once.
    """

    code = "VALIDATION"
    status = 422

    def __init__(self, message: str, *, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message if not errors else f"{message}: {'; '.join(map(str, errors))}")
        self.errors = tuple(errors)


class InvalidQueryError(RejectedError):
    """A filter, order, selection or page token that the resource does not allow.

    Attributes:
        pointer: where in the query the problem is, as an RFC 6901 JSON pointer.
    """

    code = "INVALID_QUERY"

    def __init__(self, message: str, *, pointer: str = "") -> None:
        super().__init__(message)
        self.pointer = pointer


class PageTokenError(InvalidQueryError):
    """The page token belongs to another filter or order, or no service made it."""

    code = "PAGE_TOKEN_MISMATCH"


class AnswerTooLargeError(InvalidQueryError):
    """The records that were asked for by their ids come to more bytes than one answer may have."""

    code = "ANSWER_TOO_LARGE"


class InvalidHeaderError(RejectedError):
    """A header field that can't be read, or whose lines differ where it has one value.

    Attributes:
        field: its name, in lower case.
    """

    code = "INVALID_HEADER"

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class NotAcceptableError(RejectedError):
    """The route has no answer of a media type that `Accept` allows."""

    code = "NOT_ACCEPTABLE"
    status = 406


class UniqueViolationError(RejectedError):
    """Another record already has this value.

    Attributes:
        fields: the fields of the violated constraint, where the database names them.
        errors: where in the request these fields are, where the service tells it.
    """

    code = "UNIQUE_VIOLATION"
    status = 409

    def __init__(
        self, message: str, *, fields: Sequence[str] = (), errors: Sequence[FieldError] = ()
    ) -> None:
        super().__init__(message)
        self.fields = tuple(fields)
        self.errors = tuple(errors)


class ForeignKeyError(RejectedError):
    """The record refers to one that does not exist, or is still referred to.

    Attributes:
        errors: where in the request the reference is, where the service tells it.
    """

    code = "FOREIGN_KEY_VIOLATION"
    status = 409

    def __init__(self, message: str, *, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)


class StaleVersionError(RejectedError):
    """The record changed since it was read: read it again and apply the change to what is there now.

    Attributes:
        current: the ETag that the record has now, where the service told it.
    """

    code = "PRECONDITION_FAILED"
    status = 412

    def __init__(self, message: str, *, current: str | None = None) -> None:
        super().__init__(message)
        self.current = current


class PreconditionRequiredError(RejectedError):
    """The resource only takes changes that name the state which the caller has read: pass the record, not its id."""

    code = "PRECONDITION_REQUIRED"
    status = 428


class KeyMissingError(RejectedError):
    """A write came without an `Idempotency-Key`, so it could not be repeated safely."""

    code = "IDEMPOTENCY_KEY_REQUIRED"


class KeyReusedError(RejectedError):
    """An idempotency key came back with another payload."""

    code = "IDEMPOTENCY_KEY_REUSED"
    status = 422


class RequestKeyReusedError(KeyReusedError):
    """A caller of an API sent its `Idempotency-Key` again with another query, body, or wish for the answer's form."""

    code = "KEY_REUSED"


class AnswerNotKeptError(RejectedError):
    """The request was carried out before, and isn't again; its answer was too large to keep: read what it made."""

    code = "IDEMPOTENCY_ANSWER_NOT_KEPT"
    status = 409


class UriTooLongError(RejectedError):
    """The URL is longer than the service takes; a long query goes as the body of `:query`."""

    code = "URI_TOO_LONG"
    status = 414


class HeadTooLargeError(RejectedError):
    """The header fields of the request are too many or too long."""

    code = "REQUEST_HEADER_FIELDS_TOO_LARGE"
    status = 431


class UnsupportedMediaTypeError(RejectedError):
    """The body is of a type that the route doesn't take, or it is compressed."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415


class UnauthenticatedError(RejectedError):
    """The caller doesn't prove who it is."""

    code = "UNAUTHENTICATED"
    status = 401


class AccessDeniedError(RejectedError):
    """What the caller asked for is not allowed to it."""

    code = "ACCESS_DENIED"
    status = 403


class PayloadError(RejectedError):
    """Bytes that cannot become the message they claim to be."""

    code = "VALIDATION"
    status = 422


class MalformedPayloadError(PayloadError):
    """Not JSON, not an envelope, or data that does not fit the declared type.

    Attributes:
        errors: where and why, one `FieldError` per problem; never the values.
    """

    def __init__(self, message: str, *, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(message if not errors else f"{message}: {'; '.join(map(str, errors))}")
        self.errors = tuple(errors)


class PayloadTooLargeError(PayloadError):
    """Larger than allowed; refused before it was parsed or sent.

    Attributes:
        size_bytes: the size that was found.
        limit_bytes: the size that is allowed.
    """

    code = "PAYLOAD_TOO_LARGE"
    status = 413

    def __init__(self, message: str, *, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class UnknownEventTypeError(PayloadError):
    """No registered event has this type.

    Attributes:
        event_type: the type on the wire.
    """

    def __init__(self, message: str, *, event_type: str) -> None:
        super().__init__(message)
        self.event_type = event_type


class UnknownEventVersionError(PayloadError):
    """The type is registered, but this version is newer than the code, or too old for its upcasters.

    Attributes:
        event_type: the type on the wire.
        version: the version on the wire.
        known: the newest version that this process knows.
    """

    def __init__(self, message: str, *, event_type: str, version: int, known: int) -> None:
        super().__init__(message)
        self.event_type = event_type
        self.version = version
        self.known = known

    @property
    def newer(self) -> bool:
        """Whether a deployment of this service would know the version: worth waiting for."""
        return self.version > self.known


# ── fix the code or the deployment ───────────────────────────────────────────────────────────────


class MisuseError(HybridkitError):
    """Something is wrong in the code or in how it is deployed; retrying cannot help."""

    code = "MISUSE"


class SettingsError(MisuseError):
    """The configuration is unusable. The message lists every problem at once and never shows a value.

    Attributes:
        problems: one line per problem: the setting, what is wrong, and what to set.
    """

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__("\n  - ".join([message, *problems]))
        self.problems = tuple(problems)


class MissingExtraError(MisuseError, ImportError):
    """An optional dependency is needed for this module.

    Attributes:
        extra: the extra to install, as in `pip install "hybridkit[EXTRA]"`.
    """

    def __init__(self, module: str, *, extra: str, or_extra: str = "") -> None:
        another = f' or "hybridkit[{or_extra}]"' if or_extra else ""
        super().__init__(f'{module} needs an optional dependency: pip install "hybridkit[{extra}]"{another}')
        self.extra = extra


class DeclarationError(MisuseError, TypeError):
    """A Resource, Event, Retry policy or consumer was declared in a way that contradicts itself."""


class UnroutableError(MisuseError):
    """The broker confirmed the publish, but no queue wants the message (`basic.return`).

    Attributes:
        exchange: where it was published; empty in the error of another process, like the key.
        routing_key: with which key.
    """

    code = "UNROUTABLE"

    def __init__(self, message: str, *, exchange: str = "", routing_key: str = "") -> None:
        super().__init__(message)
        self.exchange = exchange
        self.routing_key = routing_key


class TopologyError(MisuseError):
    """The broker has an exchange, queue or binding that differs from the declared one.

    Attributes:
        differences: one line each, where all of them were looked for.
    """

    def __init__(self, message: str, *, differences: Sequence[str] = ()) -> None:
        super().__init__("\n  - ".join([message, *differences]))
        self.differences = tuple(differences)


class NotSupportedError(MisuseError):
    """The server at hand cannot do this."""

    code = "NOT_SUPPORTED"
    status = 501


class TransactionsUnavailableError(NotSupportedError):
    """The database has no transactions, so only one record can be written at a time."""

    code = "TRANSACTIONS_UNAVAILABLE"


class ServerMissingError(MisuseError):
    """No local server of that kind can be had on this machine.

    Attributes:
        missing: one line per way to get one, each with what it needs.
    """

    def __init__(self, message: str, *, missing: Sequence[str] = ()) -> None:
        super().__init__("\n  - ".join([message, *missing]))
        self.missing = tuple(missing)


class ResponseError(MisuseError):
    """The answer is outside the contract: not JSON, cut short, too large, or of another shape.

    Attributes:
        response_status: the HTTP status of that answer.
    """

    def __init__(self, message: str, *, response_status: int) -> None:
        super().__init__(message)
        self.response_status = response_status


# ── nobody knows yet ─────────────────────────────────────────────────────────────────────────────


class OutcomeUnknownError(HybridkitError):
    """It may have happened or not. Repeating it with the same identity (event id, key) is safe."""

    code = "OUTCOME_UNKNOWN"
    status = 504
    retryable = True


class DeadlineExceededError(OutcomeUnknownError):
    """The time allowed for this call ran out before its answer came."""

    code = "DEADLINE_EXCEEDED"


class ClaimLostError(OutcomeUnknownError):
    """The lease of an idempotency claim ran out and another holder has taken the work over."""


def error_for_code(code: str) -> type[HybridkitError] | None:
    """The most general error class with that problem code, or None for a code that is not ours."""
    return _BY_CODE.get(code)


def _collect(root: type[HybridkitError]) -> dict[str, type[HybridkitError]]:
    found: dict[str, type[HybridkitError]] = {}
    pending = [root]
    while pending:
        error = pending.pop(0)
        found.setdefault(error.code, error)
        pending.extend(error.__subclasses__())
    return found


_BY_CODE: Mapping[str, type[HybridkitError]] = _collect(HybridkitError)
