"""Retry policies: pure decisions, tested without waiting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.errors import DeclarationError, MisuseError, NotFoundError, UnavailableError
from hybridkit.retry import GiveUp, Pause, Retry, RetryAfter

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
def test_retries_never_take_longer_than_the_total(policy: Retry, jitter: float) -> None:
    delays = 0.0
    for attempt in range(1, policy.attempts):
        decision = policy.decide(OSError(), attempt=attempt, jitter=jitter)
        assert isinstance(decision, RetryAfter)
        delays += decision.seconds
    assert delays <= policy.total_seconds() + 1e-6


@given(st.integers(1, 10_000_000))
def test_no_attempt_number_overflows(attempt: int) -> None:
    assert Retry.exponential(attempts=10_000_001).bound_seconds(attempt) <= 300


def test_immediate_retries_do_not_wait() -> None:
    policy = Retry.immediate(attempts=3)
    assert policy.decide(OSError(), attempt=2, jitter=0.9) == RetryAfter(0.0)
    assert policy.decide(OSError(), attempt=3, jitter=0.9) == GiveUp("exhausted")
    assert policy.total_seconds() == 0


def test_errors_that_blame_the_request_or_the_code_are_given_up_at_once() -> None:
    for error in (NotFoundError("x"), MisuseError("x")):
        assert Retry.exponential().decide(error, attempt=1, jitter=0.5) == GiveUp("permanent")


def test_never_and_pause_on_name_more_errors_and_never_wins() -> None:
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
    with pytest.raises(DeclarationError):
        Retry.exponential(first_seconds=first_seconds, cap_seconds=cap_seconds, attempts=attempts)


@pytest.mark.parametrize(("asked", "waited"), [(None, 1), (0.5, 1.5), (30, 31), (10.0**9, 36 * 3600)])
def test_an_error_that_says_when_to_come_back_is_not_asked_before(asked: float | None, waited: float) -> None:
    error = UnavailableError("busy", retry_after_seconds=asked)
    policy = Retry.exponential(first_seconds=1)
    assert policy.decide(error, attempt=1, jitter=1.0) == RetryAfter(waited)
