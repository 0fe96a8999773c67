"""Retry policies: pure decisions, tested without waiting."""

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace

import httpx
import pytest
from aiogram.exceptions import TelegramRetryAfter
from aiogram.methods import GetMe
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from hybridkit.errors import (
    DeclarationError,
    MisuseError,
    NotFoundError,
    RateLimitedError,
    RejectedError,
    RequirementNotMetError,
    ResponseError,
    StaleVersionError,
    UnavailableError,
)
from hybridkit.retry import UNLIMITED, GiveUp, Pause, Retry, RetryAfter, asked_seconds

policies = st.builds(
    lambda first, factor, attempts: Retry.exponential(
        first_seconds=first, cap_seconds=min(first * factor, 36 * 3600), attempts=attempts
    ),
    st.floats(0.001, 60),
    st.floats(1, 10_000),
    st.integers(1, 50),
)
jitters = st.floats(0, 1, exclude_max=True)


@given(policies, st.integers(1, 60), jitters)
def test_a_delay_lies_between_zero_and_a_bound_that_doubles_up_to_the_cap(
    policy: Retry, attempt: int, jitter: float
) -> None:
    """For every policy, attempt and jitter."""
    decision = policy.decide(OSError(), attempt=attempt, jitter=jitter)
    if attempt >= policy.attempts:
        assert decision == GiveUp("exhausted")
        return
    assert isinstance(decision, RetryAfter)
    assert 0 <= decision.seconds <= policy.bound_seconds(attempt) <= policy.cap_seconds
    assert policy.bound_seconds(attempt) <= policy.bound_seconds(attempt + 1)
    assert policy.bound_seconds(attempt) == pytest.approx(
        min(policy.first_seconds * 2.0 ** (attempt - 1), policy.cap_seconds)
    )


@given(policies, jitters)
def test_pauses_grow_to_the_cap_and_are_never_below_a_quarter_of_their_bound(
    policy: Retry, jitter: float
) -> None:
    """There is one pause between each two attempts."""
    pauses = list(policy.pauses(jitter=lambda: jitter))
    assert len(pauses) == policy.attempts - 1
    for attempt, pause in enumerate(pauses, start=1):
        bound = policy.bound_seconds(attempt)
        assert bound / 4 <= pause <= bound


def test_a_policy_without_a_limit_goes_on_with_pauses_at_its_cap() -> None:
    """The total of such a policy is a number too, and takes no time to compute."""
    policy = Retry.exponential(first_seconds=0.2, cap_seconds=10, attempts=UNLIMITED)
    pauses = policy.pauses(jitter=lambda: 1.0)
    assert [next(pauses) for _ in range(8)] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])
    assert policy.total_seconds() > 1e18


@given(policies, jitters)
def test_retries_never_take_longer_than_the_total(policy: Retry, jitter: float) -> None:
    """What a guard has to remember outcomes for depends on it."""
    delays = 0.0
    for attempt in range(1, policy.attempts):
        decision = policy.decide(OSError(), attempt=attempt, jitter=jitter)
        assert isinstance(decision, RetryAfter)
        delays += decision.seconds
    assert delays <= policy.total_seconds() + 1e-6


@given(st.integers(1, 10_000_000))
def test_no_attempt_number_overflows(attempt: int) -> None:
    """2 to the power of ten million is never computed."""
    assert Retry.exponential(attempts=10_000_001).bound_seconds(attempt) <= 300


def test_immediate_retries_do_not_wait() -> None:
    """They are bounded by their attempts as others are."""
    policy = Retry.immediate(attempts=3)
    assert policy.decide(OSError(), attempt=2, jitter=0.9) == RetryAfter(0.0)
    assert policy.decide(OSError(), attempt=3, jitter=0.9) == GiveUp("exhausted")
    assert policy.total_seconds() == 0


def test_errors_that_blame_the_request_the_code_or_the_other_side_are_given_up_at_once() -> None:
    """Another attempt would fail the same way."""
    for error in (
        NotFoundError("x"),
        RequirementNotMetError("x"),
        MisuseError("x"),
        ResponseError("x", response_status=418),
    ):
        assert Retry.exponential().decide(error, attempt=1, jitter=0.5) == GiveUp("permanent")


def test_a_stale_version_is_tried_again_until_the_attempts_are_used_up() -> None:
    """The next run reads the record again; `never` still wins, and another error of a group may be permanent."""
    policy, stale = Retry.immediate(attempts=3), StaleVersionError("changed")
    assert policy.decide(stale, attempt=2, jitter=0) == RetryAfter(0)
    assert policy.decide(ExceptionGroup("", [stale, MISTAKE]), attempt=2, jitter=0) == RetryAfter(0)
    assert policy.decide(stale, attempt=3, jitter=0) == GiveUp("exhausted")
    assert policy.decide(ExceptionGroup("", [stale, REFUSED]), attempt=1, jitter=0) == GiveUp("permanent")
    assert policy.never(StaleVersionError).decide(stale, attempt=1, jitter=0) == GiveUp("permanent")


def test_never_and_pause_on_name_more_errors_and_never_wins() -> None:
    """A pause costs no attempt, also after the last one."""
    policy = Retry.exponential().never(KeyError).pause_on(UnavailableError, LookupError)
    assert policy.decide(KeyError(), attempt=1, jitter=0.5) == GiveUp("permanent")
    assert policy.decide(IndexError(), attempt=1, jitter=0.5) == Pause()
    assert policy.decide(UnavailableError("down"), attempt=99, jitter=0.5) == Pause()
    assert policy.never(OSError).never_for == (KeyError, OSError)


def test_pausing_can_name_an_error_that_would_be_permanent() -> None:
    """A wrong route may mean that the other side is being deployed."""
    assert (
        Retry.immediate().pause_on(NotFoundError).decide(NotFoundError("x"), attempt=1, jitter=0) == Pause()
    )


@pytest.mark.parametrize(
    ("first_seconds", "cap_seconds", "attempts"),
    [(1, 300, 0), (-1, 300, 8), (10, 1, 8), (1, 36 * 3600 + 1, 8), (float("nan"), 300, 8)],
)
def test_a_policy_that_contradicts_itself_is_refused(
    first_seconds: float, cap_seconds: float, attempts: int
) -> None:
    """When it is declared, and not at the first failure."""
    with pytest.raises(DeclarationError):
        Retry.exponential(first_seconds=first_seconds, cap_seconds=cap_seconds, attempts=attempts)


@pytest.mark.parametrize(("asked", "waited"), [(None, 1), (0.5, 1.5), (30, 31), (10.0**9, 36 * 3600)])
def test_an_error_that_says_when_to_come_back_is_not_asked_before(asked: float | None, waited: float) -> None:
    """The jitter is added, and 36 hours are the end."""
    error = UnavailableError("busy", retry_after_seconds=asked)
    policy = Retry.exponential(first_seconds=1)
    assert policy.decide(error, attempt=1, jitter=1.0) == RetryAfter(waited)


class Refusal(Exception):  # noqa: N818 - not ours
    """An error of somebody else's, with whatever attributes it has."""

    def __init__(self, **attributes: object) -> None:
        super().__init__("not now")
        vars(self).update(attributes)


class Moody(Refusal):
    @property
    def response(self) -> object:
        raise RuntimeError("the request was never sent")


_METHOD = GetMe()


def _answered(**headers: str) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://service")
    return httpx.HTTPStatusError("busy", request=request, response=httpx.Response(503, headers=headers))


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (RateLimitedError("slow down", retry_after_seconds=6), 6),
        (TelegramRetryAfter(_METHOD, "flood control", 6), 6),
        (_answered(**{"Retry-After": "6"}), 6),
        (_answered(**{"retry-after": "0.5"}), 0.5),
        (Refusal(headers=CIMultiDict({"RETRY-AFTER": "7"})), 7),  # as aiohttp has them
        (Refusal(response=SimpleNamespace(headers={"retry-after": 8})), 8),
        (Refusal(retry_after=timedelta(minutes=1)), 60),
        (Refusal(retry_after=Decimal("1.5")), 1.5),
        (Refusal(retry_after="9"), 9),
        (ExceptionGroup("all", [OSError(), Refusal(retry_after=3), Refusal(retry_after=5)]), 5),
        (Moody(retry_after=2), 2),
    ],
    ids=[
        "ours",
        "aiogram",
        "httpx",
        "httpx lower",
        "aiohttp",
        "requests",
        "span",
        "decimal",
        "text",
        "group",
        "moody",
    ],
)
def test_whoever_asks_for_time_is_given_it(error: Exception, seconds: float) -> None:
    """Whichever library's error it is."""
    assert asked_seconds(error) == seconds
    policy = Retry.exponential(first_seconds=1)
    assert policy.decide(error, attempt=1, jitter=0.0) == RetryAfter(seconds)


@pytest.mark.parametrize("form", ["%a, %d %b %Y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"])
def test_a_date_is_waited_for(form: str) -> None:
    """Also in the form of C's asctime, which names no zone."""
    soon = (datetime.now(UTC) + timedelta(seconds=90)).strftime(form)
    assert 80 < asked_seconds(_answered(**{"Retry-After": soon})) <= 90


NONSENSE = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=10),
    st.binary(max_size=3),
    st.floats(),
    st.integers(),
    st.dates(),
)


@given(NONSENSE, NONSENSE, NONSENSE)
@example(math.nan, None, None)
@example(-1.0, None, None)
@example(10**400, None, None)
@example(None, "1" * 400, None)
@example(None, None, "Wed, 21 Oct 9999 07:28:00 -9999")
@example("Infinity", "-Infinity", "nan")
def test_however_much_time_is_asked_for_it_has_bounds(one: object, other: object, third: object) -> None:
    """A message must come again: neither at once and without end, nor never."""
    error = Refusal(retry_after_seconds=one, retry_after=other, headers={"Retry-After": third})
    assert 0 <= asked_seconds(error) <= 36 * 3600
    decision = Retry.exponential(first_seconds=1).decide(error, attempt=1, jitter=0.5)
    assert isinstance(decision, RetryAfter)
    assert 0.5 <= decision.seconds <= 36 * 3600


class Down(ExceptionGroup[Exception]):
    """A group that somebody has a name for."""


DOWN, REFUSED, MISTAKE = UnavailableError("down"), RejectedError("no"), ValueError("a mistake")
POLICY = Retry.exponential(first_seconds=1).never(PermissionError).pause_on(UnavailableError, Down)


@pytest.mark.parametrize(
    ("group", "decision"),
    [
        (ExceptionGroup("", [DOWN, ExceptionGroup("", [DOWN])]), Pause()),
        (ExceptionGroup("", [DOWN, MISTAKE]), RetryAfter(0.0)),
        (ExceptionGroup("", [DOWN, PermissionError()]), GiveUp("permanent")),
        (ExceptionGroup("", [MISTAKE, ExceptionGroup("", [REFUSED])]), GiveUp("permanent")),
        (Down("", [MISTAKE]), Pause()),
    ],
    ids=["all_down", "a_mistake_too", "one_of_never", "one_refused", "by_name"],
)
def test_a_group_is_decided_by_its_errors(group: ExceptionGroup[Exception], decision: object) -> None:
    """What a task group raises around the only error that there was means the same as the error."""
    assert POLICY.decide(group, attempt=1, jitter=0.0) == decision


def test_a_group_may_be_deep() -> None:
    """5,000 groups in each other exhaust no stack."""
    error: Exception = RateLimitedError("slowly", retry_after_seconds=7)
    for _ in range(5000):
        error = ExceptionGroup[Exception]("", [error])
    assert POLICY.decide(error, attempt=1, jitter=0.0) == RetryAfter(7)


class _Panic(BaseException):
    pass


class _TrapError(Exception):
    """Whatever is looked up in it raises."""

    def __init__(self, trap: BaseException) -> None:
        self._trap = trap

    @property
    def retry_after(self) -> float:
        raise self._trap

    @property
    def headers(self) -> "_TrapError":
        return self

    def __getitem__(self, _: str) -> str:
        raise self._trap


def test_no_attribute_of_an_error_prevents_the_decision() -> None:
    """A library in another language panics in a property: that is no answer, as is any other error."""
    assert POLICY.decide(_TrapError(_Panic()), attempt=1, jitter=0.5) == RetryAfter(0.5)
    for ending in (KeyboardInterrupt(), SystemExit()):
        with pytest.raises(type(ending)):
            POLICY.decide(_TrapError(ending), attempt=1, jitter=0.5)
