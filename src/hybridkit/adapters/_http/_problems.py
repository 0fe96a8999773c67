"""Problems (RFC 9457): what callers are told about errors of their requests.

An error that one of our clients has raised is about another request, which the caller never made. What matters to the
caller is translated into neutral words; a request that we made wrongly is our own mistake.
"""

import math
import re
from http import HTTPStatus
from traceback import walk_tb
from typing import Any, Final

from pydantic_core import to_json

from hybridkit.adapters._languages._problems import localized
from hybridkit.codec import decode_json, encode_json
from hybridkit.context import current
from hybridkit.contract import PROBLEM_MEDIA_TYPE, Problem, whole_characters
from hybridkit.contract._titles import TITLES
from hybridkit.errors import (
    DeadlineExceededError,
    DeadlinePassedError,
    FieldProblem,
    ForeignKeyError,
    HybridkitError,
    InvalidRequestError,
    MalformedPayloadError,
    NoRouteError,
    NotFoundError,
    OutcomeUnknownError,
    PageTokenError,
    RequirementNotMetError,
    RuleViolationError,
    StaleVersionError,
    TemporaryError,
    UnavailableError,
    UniqueViolationError,
)

BUSY_SECONDS: Final = 1.0
"""The retry time when the error has none."""

_OF_VALUES: Final = frozenset(
    {
        "check",
        "finite_number",
        "greater_than",
        "greater_than_equal",
        "inexact_number",
        "int_size",
        "invalid_value",
        "less_than",
        "less_than_equal",
        "out_of_range",
        "too_long",
    }
)
"""Codes of values that are of the right type, and that a data service can't store: most often a caller's own."""
_TO_RECORD: Final = re.compile(r"/(operations|items)/[0-9]+(/(data|increment))?")
_UPSTREAM_MODULES: Final = ("hybridkit.clients.", "hybridkit.messaging.", "hybridkit.coordination._lock")


def problem_of(error: BaseException, *, instance: str, request_id: str, internal: bool) -> Problem:
    """Return the problem for an error.

    Args:
        error: the error that the application raised.
        instance: the path of the request.
        request_id: the id of the request.
        internal: whether the caller is one of our own services, which may read the reason.
    """
    error = unwrapped(error)
    is_translated = is_upstream_error(error) or _is_check_in_mid_request(error)
    told = _translated(error) if is_translated else error
    if isinstance(told, HybridkitError):
        problem = Problem.from_error(told, instance=instance, request_id=request_id)
    else:
        problem = Problem(
            title=TITLES["INTERNAL"],
            status=500,
            code="INTERNAL",
            instance=instance,
            request_id=request_id,
        )
    if internal and isinstance(error, HybridkitError):
        return problem.model_copy(update={"detail": whole_characters(str(error))})
    return localized(problem if problem.status < 500 else problem.model_copy(update={"detail": ""}))


def unwrapped(error: BaseException) -> BaseException:
    """Return the error that task groups have wrapped; of several, the one that says most about a retry.

    That is an error which no retry helps against, the group itself when it has an error that is not hybridkit's,
    otherwise the one with the longest wait.
    """
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    if not inner:
        return error
    each = [unwrapped(one) for one in inner]
    if len(each) > 1 and not all(isinstance(one, HybridkitError) for one in each):
        return error
    return max(each, key=_finality)


def _finality(error: BaseException) -> tuple[bool, float]:
    return not getattr(error, "retryable", False), getattr(error, "retry_after_seconds", None) or 0.0


def is_upstream_error(error: BaseException) -> bool:
    """Return whether a client, publisher or lock of ours raised the error, by its traceback's innermost frames.

    An error of the application's own function is about its caller, also when a client calls that function.
    """
    for module in _innermost_modules(error):
        if module.startswith(_UPSTREAM_MODULES):
            return True
        if not module.startswith("hybridkit."):
            break
    return False


def _is_check_in_mid_request(error: BaseException) -> bool:
    """Return whether the application found its deadline passed: what it had done until then stays done."""
    modules = [*_innermost_modules(error), "", ""]
    return modules[0] == "hybridkit.context" and not modules[1].startswith("hybridkit.")


def _innermost_modules(error: BaseException) -> list[str]:
    return [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)][::-1]


def _translated(error: BaseException) -> HybridkitError | None:
    """Return what an upstream error means for the caller, or None when our own request was wrong."""
    match error:
        case NoRouteError():
            return None
        case NotFoundError():
            return NotFoundError("something that this needs is not there")
        case PageTokenError():  # callers are given tokens, and bring them back
            return PageTokenError("the page token is of another query; begin again without one")
        case RuleViolationError():  # its message is for people; its places are those of our own request
            return RuleViolationError(str(error), code=error.code)
        case StaleVersionError():
            return StaleVersionError("it has changed meanwhile; read it again", current=error.current)
        case RequirementNotMetError():
            return RequirementNotMetError("what it needs does not hold any more", current=error.current)
        case UniqueViolationError():
            return UniqueViolationError("another one has this value already", fields=error.fields)
        case ForeignKeyError():
            return _broken_reference(error)
        case InvalidRequestError() if error.errors and _OF_VALUES.issuperset(e.code for e in error.errors):
            found = [FieldProblem(_own_pointer(e), e.code, "the value is refused") for e in error.errors]
            return InvalidRequestError("the request does not fit", errors=found)
        case _:
            return _trouble(error)


def _trouble(error: BaseException) -> HybridkitError | None:
    """Return what an error that is nobody's request means for the caller, or None for a mistake of ours."""
    match error:
        case DeadlineExceededError() | DeadlinePassedError():  # other parts of the request may have been done
            return DeadlineExceededError("the time ran out before it was done")
        case TemporaryError():
            return UnavailableError(
                "too much is going on at the moment; try again",
                retry_after_seconds=error.retry_after_seconds or BUSY_SECONDS,
            )
        case OutcomeUnknownError():
            return OutcomeUnknownError("it may have been done or not")
        case _:
            return None


def _broken_reference(error: ForeignKeyError) -> ForeignKeyError:
    """Return the error with the fields alone, without the way to their record in our own request."""
    if not error.errors:
        return ForeignKeyError("it is still referred to, or refers to something that is not there")
    found = [FieldProblem(_own_pointer(each), "foreign_key") for each in error.errors]
    return ForeignKeyError("it refers to something that is not there", errors=found)


def _own_pointer(problem: FieldProblem) -> str:
    """Return the pointer to a field of a record, without the way to the record in our own request."""
    return _TO_RECORD.sub("", problem.pointer)


def problem_body(problem: Problem) -> bytes:
    """Return a problem as JSON, without its empty members."""
    return problem.model_dump_json(exclude_none=True).encode()


def problem_headers(problem: Problem, error: BaseException | None = None) -> list[tuple[bytes, bytes]]:
    """Return the headers of a response with a problem.

    Args:
        problem: the problem.
        error: the error that it is about, which may name the credentials that are missing.
    """
    headers = [(b"content-type", PROBLEM_MEDIA_TYPE.encode())]
    if problem.retry_after_seconds is not None:
        headers.append((b"retry-after", str(math.ceil(problem.retry_after_seconds)).encode()))
    challenge = None if error is None else getattr(unwrapped(error), "challenge", None)
    if problem.status == 401:  # required by RFC 9110, section 15.5.2; all our tokens are bearer tokens
        headers.append((b"www-authenticate", (challenge or "Bearer").encode()))
    elif problem.status == 403 and challenge:  # RFC 6750, section 3.1
        headers.append((b"www-authenticate", challenge.encode()))
    return headers


def http_problem(status: int, detail: Any, *, instance: str) -> tuple[Problem, bytes]:
    """Return the problem and its body for a status without an error of ours, such as 405.

    Args:
        status: the status, from 400 to 599; it need not be a registered one.
        detail: text, or any JSON, which becomes the member `detail` as it is.
        instance: the path of the request.
    """
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = f"Status {status}"
    code = phrase.upper().replace(" ", "_").replace("-", "_").replace("'", "")
    problem = Problem(
        title=TITLES.get(code, phrase),
        status=status,
        code=code,
        detail=detail if isinstance(detail, str) and detail != phrase else "",
        instance=instance,
        request_id=current().request_id,
    )
    problem = localized(problem)
    told = None if isinstance(detail, str) else json_form(detail)
    if told is None:
        return problem, problem_body(problem)
    return problem, encode_json({**problem.model_dump(mode="json", exclude_none=True), "detail": told})


def json_form(detail: Any) -> Any:
    """Return a detail as FastAPI would show it, or None when it can't be JSON."""
    if isinstance(detail, str):
        return whole_characters(detail)
    try:
        return decode_json(encode_json(detail))
    except MalformedPayloadError:
        pass
    try:
        return decode_json(to_json(detail))  # members may have numbers, ids and the like as names
    except (ValueError, MalformedPayloadError):
        return None
