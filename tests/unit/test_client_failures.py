"""The failure that an answer reports: its error, and what retry and breaker make of it."""

from datetime import timedelta

import pytest

from hybridkit.clients._pipeline._failures import Failure, failure_from
from hybridkit.clients._transports._base import Response
from hybridkit.codec import encode_json, now
from hybridkit.contract import Problem
from hybridkit.errors import (
    AccessDeniedError,
    ConflictError,
    DeadlineExceededError,
    DeadlinePassedError,
    FieldProblem,
    HybridkitError,
    InvalidRequestError,
    NotFoundError,
    OutcomeUnknownError,
    RateLimitedError,
    ResponseError,
    StaleVersionError,
    UnavailableError,
)


def judge(
    status: int, body: bytes = b"<html>", *, safe: bool = False, headers: dict[str, str] | None = None
) -> Failure:
    response = Response(status=status, headers={"content-type": "text/html", **(headers or {})}, body=body)
    failure = failure_from(response, what="POST users:8001/v1/users", safe=safe)
    assert failure is not None
    return failure


def judge_problem(
    error: HybridkitError, *, safe: bool = False, headers: dict[str, str] | None = None, **changes: object
) -> Failure:
    problem = Problem.from_error(error, instance="/v1/users", request_id="r").model_copy(update=changes)
    media_type = {"content-type": "application/problem+json; charset=utf-8", **(headers or {})}
    return judge(problem.status, encode_json(problem), safe=safe, headers=media_type)


@pytest.mark.parametrize("status", [200, 201, 204])
def test_a_success_is_no_failure(status: int) -> None:
    """Every status from 200 to 299 is a success."""
    assert failure_from(Response(status=status, headers={}, body=b""), what="", safe=True) is None


def test_a_problem_becomes_the_error_that_the_service_raised() -> None:
    """The error has its attributes, is not repeated, and doesn't count against the target."""
    failure = judge_problem(StaleVersionError("changed", current='"3-a"'))
    assert isinstance(failure.error, StaleVersionError)
    assert failure.error.current == '"3-a"'
    assert not failure.retryable
    assert failure.counts is False


def test_not_retryable_wins_over_the_kind_of_error() -> None:
    """A problem that says it is not retryable is not repeated, whatever its class."""
    assert judge_problem(ConflictError("deadlock")).retryable
    assert not judge_problem(ConflictError("deadlock"), retryable=False).retryable


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (UnavailableError("pool"), True),
        (OutcomeUnknownError("commit"), True),
        (DeadlineExceededError("too short a deadline"), False),
        (DeadlinePassedError("too short a deadline"), False),
        (NotFoundError("gone"), False),
        (RateLimitedError("slow down"), False),
    ],
)
def test_the_breaker_counts_what_is_the_services_fault(error: HybridkitError, *, counts: bool) -> None:
    """A 504 counts unless it was the caller's deadline that was too short."""
    assert judge_problem(error).counts is counts


@pytest.mark.parametrize("safe", [True, False])
def test_a_deadline_leaves_the_outcome_of_writes_only_unknown(*, safe: bool) -> None:
    """A service says the same of both, and a read changes nothing."""
    late = judge_problem(DeadlineExceededError("late"), safe=safe).error
    assert type(late) is (DeadlinePassedError if safe else DeadlineExceededError)
    assert type(judge_problem(DeadlinePassedError("late"), safe=safe).error) is DeadlinePassedError


def test_retry_after_comes_from_the_problem_or_the_header() -> None:
    """The problem document wins, as it has fractions of a second."""
    in_body = judge_problem(UnavailableError("x", retry_after_seconds=2.5), headers={"retry-after": "9"})
    in_header = judge_problem(UnavailableError("x"), headers={"retry-after": "9"})
    assert isinstance(in_body.error, UnavailableError)
    assert isinstance(in_header.error, UnavailableError)
    assert (in_body.error.retry_after_seconds, in_header.error.retry_after_seconds) == (2.5, 9.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        ("-5", 0.0),
        ("99999999", 3600.0),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Sat, 21 Nov 2020 08:00:00 GMT", 0.0),
        ("Sat, 21 Nov 2020 08:00:00 -0000", 0.0),
        ("Sat Nov 21 08:00:00 2020", 0.0),
    ],
)
def test_retry_after_is_clamped(value: str, seconds: float | None) -> None:
    """Nonsense is None, the past is 0, and nothing is longer than an hour."""
    failure = judge(503, headers={"retry-after": value})
    assert isinstance(failure.error, UnavailableError)
    assert failure.error.retry_after_seconds == seconds


@pytest.mark.parametrize(
    "form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"]
)
def test_retry_after_may_be_a_date(form: str) -> None:
    """Each form that a recipient has to take is read, https://www.rfc-editor.org/rfc/rfc9110#section-5.6.7."""
    failure = judge(429, headers={"retry-after": (now() + timedelta(seconds=60)).strftime(form)})
    assert isinstance(failure.error, RateLimitedError)
    assert failure.error.retry_after_seconds == pytest.approx(60, abs=2)


@pytest.mark.parametrize(("said", "seconds"), [("-5", 0.0), ("1e308", 3600.0), ("NaN", 7.0), ("null", 7.0)])
def test_a_problem_asks_for_a_time_that_can_be_waited_for(said: str, seconds: float) -> None:
    """A number out of range is clamped; where there is none, the header counts."""
    headers = {"content-type": "application/problem+json", "retry-after": "7"}
    body = f'{{"title": "Busy", "status": 503, "code": "UNAVAILABLE", "retry_after_seconds": {said}}}'
    failure = judge(503, body.encode(), headers=headers)
    assert isinstance(failure.error, UnavailableError)
    assert failure.error.retry_after_seconds == seconds


@pytest.mark.parametrize(
    ("status", "safe", "expected"),
    [
        (503, False, UnavailableError),
        (502, True, UnavailableError),
        (504, True, UnavailableError),
        (502, False, OutcomeUnknownError),
        (504, False, OutcomeUnknownError),
        (401, False, AccessDeniedError),
        (403, True, AccessDeniedError),
        (500, False, ResponseError),
        (404, True, ResponseError),
        (302, True, ResponseError),
    ],
)
def test_a_proxys_answer_has_the_honest_error(
    status: int, safe: bool, expected: type[HybridkitError]
) -> None:
    """A 502 or 504 of a proxy means that a read didn't happen and a write may have."""
    failure = judge(status, safe=safe)
    assert type(failure.error) is expected
    assert failure.counts is (status in {502, 503, 504})


def test_garbage_shows_its_beginning_only() -> None:
    """A page of HTML is quoted by its first characters in an error with its status."""
    failure = judge(500, b"<html>\xff" + b"x" * 10_000)
    assert isinstance(failure.error, ResponseError)
    assert failure.error.response_status == 500
    assert "'<html>\ufffdxxx" in str(failure.error)
    assert len(str(failure.error)) < 300


@pytest.mark.parametrize("body", [b"", b"{", b'{"status": 503}', b"[]"])
def test_a_broken_problem_is_as_good_as_none(body: bytes) -> None:
    """A problem document that can't be read leaves the status to decide."""
    failure = judge(503, body, headers={"content-type": "application/problem+json"})
    assert isinstance(failure.error, UnavailableError)


def test_field_errors_arrive() -> None:
    """Each problem of a field keeps its pointer."""
    error = judge_problem(InvalidRequestError("x", errors=[FieldProblem("/email", "missing")])).error
    assert isinstance(error, InvalidRequestError)
    assert error.errors == (FieldProblem("/email", "missing"),)
