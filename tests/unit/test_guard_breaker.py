"""The guard's breaker, by a clock that the test moves."""

import pytest

from hybridkit.idempotency._breaker import COOLDOWN_SECONDS, FAILURES_TO_OPEN, Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock=clock)
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed()
    return breaker


def test_it_opens_at_the_third_failure_in_a_row_and_says_so_once() -> None:
    """The caller logs it once, however many fail after it."""
    breaker = Breaker()
    assert [breaker.failed() for _ in range(5)] == [False, False, True, False, False]
    assert not breaker.allows()


def test_a_success_in_between_starts_the_count_again() -> None:
    """Failures that are far apart never open it."""
    breaker = Breaker()
    breaker.failed()
    breaker.failed()
    assert not breaker.succeeded()
    assert not breaker.failed()
    assert breaker.allows()


def test_while_open_one_call_per_second_tries_for_all(opened: Breaker, clock: Clock) -> None:
    """The others don't wait for a timeout."""
    assert not opened.allows()
    clock.now += COOLDOWN_SECONDS
    assert [opened.allows() for _ in range(3)] == [True, False, False]


def test_a_failed_try_keeps_it_open_for_another_second(opened: Breaker, clock: Clock) -> None:
    """It isn't told again that it opened."""
    clock.now += COOLDOWN_SECONDS
    assert opened.allows()
    assert not opened.failed()
    clock.now += COOLDOWN_SECONDS / 2
    assert not opened.allows()


def test_a_success_closes_it_and_says_so(opened: Breaker) -> None:
    """From then on every call is made."""
    assert opened.succeeded()
    assert opened.allows()
    assert repr(opened) == "Breaker(closed, failures=0)"


def test_its_repr_tells_that_it_is_open(opened: Breaker) -> None:
    """With the number of failures that opened it."""
    assert repr(opened) == "Breaker(open, failures=3)"
