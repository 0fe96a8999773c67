"""Errors as `application/problem+json` (RFC 9457), and back."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, BeforeValidator, Field, field_validator

from hybridkit.codec import encode_json
from hybridkit.contract._titles import title_of
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
    RequirementNotMetError,
    ResponseError,
    RuleViolationError,
    StaleVersionError,
    TemporaryError,
    UniqueViolationError,
)
from hybridkit.errors._codes import error_for_code
from hybridkit.retry import MAX_DELAY_SECONDS, retry_after_seconds

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
HEADER_POINTER: Final = "/header/"
"""The beginning of a problem's pointer to a header field, as in FastAPI; the field's name follows."""
NO_ROUTE: Final = "NO_ROUTE"
"""The code in the `errors` of a 404 that tells a missing route from a missing record."""
RULE: Final = RuleViolationError.code
"""The code, in the `errors` of a 409, that tells a rule of an application's from the conflicts of the contract."""


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
            error,
            InvalidRequestError
            | MalformedPayloadError
            | UniqueViolationError
            | ForeignKeyError
            | StaleVersionError
            | RequirementNotMetError,
        ):
            findings = error.errors
        elif isinstance(error, InvalidQueryError) and error.pointer:
            findings = (FieldProblem(error.pointer, error.code),)
        elif isinstance(error, InvalidHeaderError):
            findings = (FieldProblem(f"{HEADER_POINTER}{error.field}", error.code),)
        elif isinstance(error, NoRouteError):
            findings = (FieldProblem("", NO_ROUTE),)
        elif isinstance(error, RuleViolationError):
            findings = (FieldProblem("", RULE), *error.errors)
        return cls(
            title=title_of(error),
            status=error.status,
            detail=str(error),
            instance=instance,
            code=error.code,
            retryable=error.retryable,
            request_id=request_id,
            errors=tuple(ProblemField(pointer=f.pointer, code=f.code, message=f.message) for f in findings),
            fields=error.fields if isinstance(error, UniqueViolationError) else (),
            current=error.current if isinstance(error, StaleVersionError | RequirementNotMetError) else None,
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
            case _ if issubclass(error, InvalidRequestError | PayloadTooLargeError):
                return InvalidRequestError(self._message_without(found), errors=found)
            case _ if issubclass(error, InvalidQueryError):
                return error(self.detail, pointer=self.errors[0].pointer if self.errors else "")
            case _ if issubclass(error, InvalidHeaderError):
                pointer = self.errors[0].pointer if self.errors else ""
                return error(self.detail, field=pointer.removeprefix(HEADER_POINTER))
            case _ if issubclass(error, RuleViolationError):
                return _rule_violation(error, self, [place for place in found if place.code != RULE])
            case _ if issubclass(error, _AboutRecords):
                return _about_records(error, self, found)
            case _ if issubclass(error, TemporaryError):
                return error(self.detail, retry_after_seconds=self.retry_after_seconds)
            case _:
                return error(self.detail)

    def _message_without(self, problems: Sequence[FieldProblem]) -> str:
        """Return the detail without the list of problems that `InvalidRequestError` puts at its end."""
        if not problems:
            return self.detail
        listed = f": {'; '.join(map(str, problems))}"
        return self.detail.removesuffix(listed) if self.detail.endswith(listed) else self.title


_AboutRecords = UniqueViolationError | ForeignKeyError | StaleVersionError | RequirementNotMetError


def _about_records(
    error: type[HybridkitError], problem: Problem, found: Sequence[FieldProblem]
) -> HybridkitError:
    """Return the error of a problem with the records that are there."""
    if issubclass(error, UniqueViolationError):
        return UniqueViolationError(problem.detail, fields=problem.fields, errors=found)
    if issubclass(error, ForeignKeyError):
        return ForeignKeyError(problem.detail, errors=found)
    if issubclass(error, StaleVersionError):
        return StaleVersionError(problem.detail, current=problem.current, errors=found)
    return RequirementNotMetError(problem.detail, current=problem.current, errors=found)


def _sendable_seconds(error: HybridkitError) -> float | None:
    """Return the error's `retry_after_seconds` within the range that a caller can wait for."""
    asked = retry_after_seconds(error.retry_after_seconds) if isinstance(error, TemporaryError) else None
    return None if asked is None else min(max(asked, 0.0), MAX_DELAY_SECONDS)


def _rule_violation(
    rule: type[RuleViolationError], problem: Problem, places: Sequence[FieldProblem]
) -> RuleViolationError:
    """Return the rule's own error, made without its constructor, which may take other arguments."""
    error = rule.__new__(rule)
    RuleViolationError.__init__(error, problem.detail, errors=places, code=problem.code)
    return error


def _error_class(problem: Problem) -> type[HybridkitError]:
    error = error_for_code(problem.code)
    if error is None:
        is_rule = any(entry.code == RULE for entry in problem.errors)
        return RuleViolationError if is_rule else ResponseError
    if error is NotFoundError and any(entry.code == NO_ROUTE for entry in problem.errors):
        return NoRouteError
    return error
