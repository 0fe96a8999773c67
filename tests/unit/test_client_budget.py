"""The retry budget: a dead target sees a fifth more calls, plus ten."""

from hypothesis import given
from hypothesis import strategies as st

from hybridkit.clients._pipeline._retry_budget import RetryBudget


@given(st.lists(st.booleans(), max_size=500))
def test_retries_never_exceed_a_fifth_of_the_calls_and_ten(wishes: list[bool]) -> None:
    """The bound holds for any order of calls and retries."""
    budget = RetryBudget()
    calls = retries = 0
    for wants_retry in wishes:
        if wants_retry:
            retries += budget.withdraw()
        else:
            budget.deposit()
            calls += 1
        assert retries <= 10 + 0.2 * calls + 1e-9


def test_a_dead_target_gets_the_whole_budget() -> None:
    """Of calls that each want two retries, ten are granted at once, and then one for every fifth call."""
    budget = RetryBudget()
    retries = 0
    for _ in range(100):
        budget.deposit()
        retries += budget.withdraw() + budget.withdraw()
    assert 29 <= retries <= 30


def test_no_more_than_ten_are_saved_up() -> None:
    """After a quiet hour a storm has ten retries, not a thousand."""
    budget = RetryBudget()
    for _ in range(10_000):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(100)) == 10
    assert repr(budget) == "RetryBudget(0.0 of 10)"
