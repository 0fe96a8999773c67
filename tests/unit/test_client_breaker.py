"""The circuit breaker, by a clock that the test moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.clients._pipeline._breaker import Breaker
from hybridkit.errors import UnavailableError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("users:8001", clock=clock)


def state(breaker: Breaker) -> str:
    """As a function, so that type checkers don't take the state of before for that of now."""
    return breaker.state


def call(breaker: Breaker, *, failed: bool | None, times: int = 1) -> None:
    for _ in range(times):
        breaker.leave(breaker.enter(), failed=failed)


def test_it_opens_when_half_of_twenty_calls_failed(breaker: Breaker) -> None:
    """The twentieth call opens the breaker, whose refusal says when to come back."""
    call(breaker, failed=False, times=10)
    call(breaker, failed=True, times=9)
    assert state(breaker) == "closed"
    call(breaker, failed=True)
    assert state(breaker) == "open"
    with pytest.raises(UnavailableError, match="users:8001 has been failing") as caught:
        breaker.enter()
    assert caught.value.retry_after_seconds == 5


def test_fewer_than_twenty_calls_say_nothing(breaker: Breaker) -> None:
    """Nineteen failures in a row leave the breaker closed."""
    call(breaker, failed=True, times=19)
    assert state(breaker) == "closed"


def test_calls_that_tell_nothing_are_not_counted(breaker: Breaker) -> None:
    """A call that ended by its caller's own short deadline leaves the breaker closed."""
    call(breaker, failed=None, times=100)
    call(breaker, failed=True, times=19)
    assert state(breaker) == "closed"


def test_old_failures_are_forgotten(breaker: Breaker, clock: Clock) -> None:
    """Failures older than the window of ten seconds don't count."""
    call(breaker, failed=True, times=19)
    clock.now += 11
    call(breaker, failed=True, times=19)
    assert state(breaker) == "closed"


def test_one_call_tries_while_the_others_wait(breaker: Breaker, clock: Clock) -> None:
    """A half-open breaker lets one call through, and its success closes the breaker for all."""
    call(breaker, failed=True, times=20)
    clock.now += 5
    assert state(breaker) == "half_open"
    ticket = breaker.enter()
    with pytest.raises(UnavailableError):
        breaker.enter()
    breaker.leave(ticket, failed=False)
    assert state(breaker) == "closed"
    breaker.enter()


def test_each_failed_try_doubles_the_wait_up_to_a_minute(breaker: Breaker, clock: Clock) -> None:
    """The time until the next probe grows from 5 to 60 seconds."""
    call(breaker, failed=True, times=20)
    waits: list[float | None] = []
    for _ in range(6):
        with pytest.raises(UnavailableError) as caught:
            breaker.enter()
        waits.append(caught.value.retry_after_seconds)
        clock.now += waits[-1] or 0
        call(breaker, failed=True)
    assert waits == [5, 10, 20, 40, 60, 60]


def test_after_a_recovery_the_wait_is_short_again(breaker: Breaker, clock: Clock) -> None:
    """A success resets the doubled time to 5 seconds."""
    call(breaker, failed=True, times=20)
    clock.now += 5
    call(breaker, failed=True)
    clock.now += 10
    call(breaker, failed=False)
    call(breaker, failed=True, times=20)
    with pytest.raises(UnavailableError) as caught:
        breaker.enter()
    assert caught.value.retry_after_seconds == 5


def test_a_try_that_tells_nothing_makes_room_for_the_next(breaker: Breaker, clock: Clock) -> None:
    """After a cancelled probe the next call is the probe."""
    call(breaker, failed=True, times=20)
    clock.now += 5
    call(breaker, failed=None)
    call(breaker, failed=False)
    assert state(breaker) == "closed"


def test_calls_from_before_the_change_are_not_taken_for_the_try(breaker: Breaker, clock: Clock) -> None:
    """A late success from before the breaker opened doesn't close it."""
    late = breaker.enter()
    call(breaker, failed=True, times=20)
    clock.now += 5
    trying = breaker.enter()
    breaker.leave(late, failed=False)
    assert state(breaker) == "half_open"
    breaker.leave(trying, failed=True)
    assert repr(breaker) == "Breaker('users:8001', open)"


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=200))
def test_it_opens_only_with_cause(calls: list[tuple[float, bool]]) -> None:
    """Whenever it opens, at least 20 calls ended in the last 11 s, and at least 10 of them failed."""
    clock = Clock()
    breaker = Breaker("x", clock=clock)
    ended: list[tuple[float, bool]] = []
    for pause, failed in calls:
        clock.now += pause
        call(breaker, failed=failed)
        ended.append((clock.now, failed))
        if state(breaker) == "open":
            recent = [failed for at, failed in ended if at > clock.now - 11]
            assert len(recent) >= 20
            assert sum(recent) >= 10
            return


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(20, 40))
def test_a_target_that_only_fails_is_always_noticed(history: list[bool], failures: int) -> None:
    """The breaker opens when failures within the window outnumber what came before."""
    breaker = Breaker("x", clock=Clock())
    for failed in history:
        if state(breaker) == "closed":
            call(breaker, failed=failed)
    for _ in range(len(history) + failures):
        if state(breaker) == "closed":
            call(breaker, failed=True)
    assert state(breaker) == "open"
