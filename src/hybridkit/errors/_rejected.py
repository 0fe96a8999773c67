"""Errors that blame the request: the same call will be refused again."""

from collections.abc import Sequence

from hybridkit.errors._field_problem import FieldProblem, named_operation
from hybridkit.errors._root import HybridkitError


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
        errors: one `FieldProblem` per problem, all of them at once.
    """

    code = "VALIDATION"
    status = 422

    def __init__(self, message: str, *, errors: Sequence[FieldProblem] = ()) -> None:
        super().__init__(message if not errors else f"{message}: {'; '.join(map(str, errors))}")
        self.errors = tuple(errors)


class InvalidQueryError(RejectedError):
    """A filter, order, selection or page token that the resource does not allow.

    Attributes:
        pointer: the place of the problem in the query, as an RFC 6901 JSON pointer.
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
    """A header field that can't be read, or that has one value and differing lines.

    Attributes:
        field: the name of the header field, in lower case.
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
        fields: the fields of the violated constraint, if the database names them.
        errors: the places of these fields in the request, if the service tells them.
    """

    code = "UNIQUE_VIOLATION"
    status = 409

    def __init__(
        self, message: str, *, fields: Sequence[str] = (), errors: Sequence[FieldProblem] = ()
    ) -> None:
        super().__init__(message)
        self.fields = tuple(fields)
        self.errors = tuple(errors)

    @property
    def operation(self) -> int | None:
        """The place of the refused operation in its transaction, from 0; None outside of one."""
        return named_operation(self.errors)


class ForeignKeyError(RejectedError):
    """The record refers to one that does not exist, or is still referred to.

    Attributes:
        errors: the place of the reference in the request, if the service tells it.
    """

    code = "FOREIGN_KEY_VIOLATION"
    status = 409

    def __init__(self, message: str, *, errors: Sequence[FieldProblem] = ()) -> None:
        super().__init__(message)
        self.errors = tuple(errors)

    @property
    def operation(self) -> int | None:
        """The place of the refused operation in its transaction, from 0; None outside of one."""
        return named_operation(self.errors)


class StaleVersionError(RejectedError):
    """The record changed since it was read: read it again and apply the change to what is there now.

    Attributes:
        current: the ETag that the record has now, if the service told it.
        errors: the place of the operation in its transaction or batch, if it is one of several.
    """

    code = "PRECONDITION_FAILED"
    status = 412

    def __init__(
        self, message: str, *, current: str | None = None, errors: Sequence[FieldProblem] = ()
    ) -> None:
        super().__init__(message)
        self.current = current
        self.errors = tuple(errors)

    @property
    def operation(self) -> int | None:
        """The place of the refused operation in its transaction, from 0; None outside of one."""
        return named_operation(self.errors)


class RequirementNotMetError(RejectedError):
    """The record is not as a write's `require` demands, such as when nothing is left in stock.

    It is a decision about the record as it is now, not a lost race: consumers and bots do not run the work again.

    Attributes:
        current: the ETag that the record has now, if the service told it.
        errors: the place of the requirement in the request, with the code `requirement_not_met`.
    """

    code = "REQUIREMENT_NOT_MET"
    status = 412

    def __init__(
        self, message: str, *, current: str | None = None, errors: Sequence[FieldProblem] = ()
    ) -> None:
        super().__init__(message)
        self.current = current
        self.errors = tuple(errors)

    @property
    def operation(self) -> int | None:
        """The place of the refused operation in its transaction, from 0; None outside of one."""
        return named_operation(self.errors)


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


class StepReusedError(KeyReusedError):
    """A step that is told from equal ones by its order alone came back with another content: name it with `step=`.

    It may be another item of a loop whose order has changed, so the recorded outcome is not its own.
    """

    code = "IDEMPOTENCY_STEP_REUSED"


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
    """The caller doesn't prove its identity.

    Attributes:
        challenge: the `WWW-Authenticate` of the response (RFC 9110, section 11.6.1).
    """

    code = "UNAUTHENTICATED"
    status = 401

    def __init__(self, message: str = "", *, challenge: str = "Bearer") -> None:
        super().__init__(message)
        self.challenge = challenge


class SessionEndedError(UnauthenticatedError):
    """The user's session has ended, or another request has given it a new id."""

    code = "SESSION_ENDED"


class AccessDeniedError(RejectedError):
    """The caller may not do this.

    Attributes:
        challenge: the `WWW-Authenticate` of the response, which says what the credentials lack; None without one.
    """

    code = "ACCESS_DENIED"
    status = 403

    def __init__(self, message: str = "", *, challenge: str | None = None) -> None:
        super().__init__(message)
        self.challenge = challenge


class CrossSiteError(AccessDeniedError):
    """A page of another site has sent the request, and the user's browser has added its cookies (CSRF)."""

    code = "CROSS_SITE_REQUEST"


class PayloadError(RejectedError):
    """A payload that cannot become the message that it claims to be."""

    code = "VALIDATION"
    status = 422


class MalformedPayloadError(PayloadError):
    """A payload that is no JSON or no envelope, or whose data does not fit the declared type.

    Attributes:
        errors: one `FieldProblem` per problem, without the values.
    """

    def __init__(self, message: str, *, errors: Sequence[FieldProblem] = ()) -> None:
        super().__init__(message if not errors else f"{message}: {'; '.join(map(str, errors))}")
        self.errors = tuple(errors)


class PayloadTooLargeError(PayloadError):
    """A payload that is larger than allowed, refused before it was parsed or sent.

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
