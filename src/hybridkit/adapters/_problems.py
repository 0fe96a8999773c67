"""What a caller is told when something went wrong: a problem (RFC 9457), about the caller's own request.

An error that a client of ours raised is about another request, which the caller never made. What the caller can have
meant goes on, in neutral words; that we asked wrongly is our mistake, and none of the caller's business.
"""

import math
from http import HTTPStatus
from traceback import walk_tb
from typing import Any, Final

from pydantic_core import to_json

from hybridkit.codec import decode_json, encode_json
from hybridkit.context import current
from hybridkit.contract import PROBLEM_MEDIA_TYPE, Problem, whole_characters
from hybridkit.errors import (
    DeadlineExceededError,
    DeadlinePassedError,
    FieldProblem,
    ForeignKeyError,
    HybridkitError,
    MalformedPayloadError,
    NoRouteError,
    NotFoundError,
    OutcomeUnknownError,
    StaleVersionError,
    TemporaryError,
    UnavailableError,
    UniqueViolationError,
)

__all__ = [
    "http_problem",
    "is_upstream_error",
    "json_form",
    "problem_body",
    "problem_headers",
    "problem_of",
    "unwrapped",
]

BUSY_SECONDS: Final = 1.0
"""When to try again, where nobody knows better."""

_UPSTREAM_MODULES: Final = ("hybridkit.clients.", "hybridkit.messaging.")


def problem_of(error: BaseException, *, instance: str, request_id: str, internal: bool) -> Problem:
    """What a caller is told of that error.

    Args:
        error: as it left the application.
        instance: the path of the request.
        request_id: of the request.
        internal: the caller is one of our own services, which may read why.
    """
    error = unwrapped(error)
    told = _translated(error) if is_upstream_error(error) else error
    if isinstance(told, HybridkitError):
        problem = Problem.from_error(told, instance=instance, request_id=request_id)
    else:
        problem = Problem(
            title="Internal Server Error",
            status=500,
            code="INTERNAL",
            instance=instance,
            request_id=request_id,
        )
    if internal and isinstance(error, HybridkitError):
        return problem.model_copy(update={"detail": whole_characters(str(error))})
    return problem if problem.status < 500 else problem.model_copy(update={"detail": ""})


def unwrapped(error: BaseException) -> BaseException:
    """The error itself, where task groups have wrapped it; of several the one that says most about a new try.

    That is one which no new try helps against, the group where somebody has made a mistake, else the longest wait.
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
    """Whether a client or a publisher raised it: they stand among the innermost frames of its traceback, ours.

    What an application's own function raises is about its caller, also where a client calls that function.
    """
    modules = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    for module in reversed(modules):
        if module.startswith(_UPSTREAM_MODULES):
            return True
        if not module.startswith("hybridkit."):
            break
    return False


def _translated(error: BaseException) -> HybridkitError | None:
    """What the error of another request means for the caller's; None where it means that we asked wrongly."""
    match error:
        case NoRouteError():
            return None
        case NotFoundError():
            return NotFoundError("something that this needs is not there")
        case StaleVersionError():
            return StaleVersionError("it has changed meanwhile; read it again", current=error.current)
        case UniqueViolationError():
            return UniqueViolationError("another one has this value already", fields=error.fields)
        case ForeignKeyError(errors=()):
            return ForeignKeyError("it is still referred to, or refers to something that is not there")
        case ForeignKeyError():
            names = [each.pointer.rpartition("/")[2] for each in error.errors]
            found = [FieldProblem(f"/{name}", "foreign_key") for name in names]
            return ForeignKeyError("it refers to something that is not there", errors=found)
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


def problem_body(problem: Problem) -> bytes:
    """A problem as JSON, without the members that have nothing to say."""
    return problem.model_dump_json(exclude_none=True).encode()


def problem_headers(problem: Problem) -> list[tuple[bytes, bytes]]:
    """The headers that go with a problem."""
    headers = [(b"content-type", PROBLEM_MEDIA_TYPE.encode())]
    if problem.retry_after_seconds is not None:
        headers.append((b"retry-after", str(math.ceil(problem.retry_after_seconds)).encode()))
    if problem.status == 401:  # RFC 9110, section 15.5.2, wants one; all our tokens are bearer tokens
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def http_problem(status: int, detail: Any, *, instance: str) -> tuple[Problem, bytes]:
    """The problem, and its body, of a status that no error of ours stands behind, such as 405.

    Args:
        status: from 400 to 599, of which many have no name.
        detail: text, or any JSON, which then stands in the body as it is.
        instance: the path of the request.
    """
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = f"Status {status}"
    problem = Problem(
        title=title,
        status=status,
        code=title.upper().replace(" ", "_").replace("-", "_").replace("'", ""),
        detail=detail if isinstance(detail, str) and detail != title else "",
        instance=instance,
        request_id=current().request_id,
    )
    told = None if isinstance(detail, str) else json_form(detail)
    if told is None:
        return problem, problem_body(problem)
    return problem, encode_json({**problem.model_dump(mode="json", exclude_none=True), "detail": told})


def json_form(detail: Any) -> Any:
    """That detail as FastAPI would show it; None where it has no JSON form: the status says more than a 500 would."""
    if isinstance(detail, str):
        return whole_characters(detail)
    try:
        return decode_json(encode_json(detail))
    except MalformedPayloadError:
        pass
    try:
        return decode_json(to_json(detail))  # members may be named by numbers, ids and the like
    except (ValueError, MalformedPayloadError):
        return None
