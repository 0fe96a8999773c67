"""The verdict of the relay's proof: what it finds lost, rowless, out of order or early (see `tests/proofs`)."""

import pytest

from tests.proofs._sales import Arrival, Row, Verdict, judge

ROWS = [Row("a1", "a", 1.0), Row("a2", "a", 2.0), Row("a3", "a", 2.0, place=1), Row("b1", "b", 1.5)]


def verdict(*arrivals: str, rows: list[Row] = ROWS) -> Verdict:
    return judge(rows, [Arrival(name, 10.0 + number) for number, name in enumerate(arrivals)])


def test_all_in_order_is_well() -> None:
    """Every event once and in order holds, and the times from store to arrival are known."""
    found = verdict("a1", "b1", "a2", "a3")
    assert (found.holds, found.duplicates, found.most_copies) == (True, 0, 1)
    assert list(found.seconds) == [9.0, 9.5, 10.0, 11.0]
    assert (found.within(0.5), found.within(1.0)) == (10.0, 11.0)


def test_an_event_that_comes_again_is_counted_and_no_disorder() -> None:
    """Repetitions are allowed, also after later events of their key."""
    found = verdict("a1", "a2", "a1", "a2", "a1", "a3", "b1")
    assert (found.holds, found.duplicates, found.most_copies) == (True, 3, 3)


@pytest.mark.parametrize(
    ("arrivals", "what", "which"),
    [
        (["a1", "a2", "b1"], "lost", ["a3"]),
        (["a1", "a2", "a3", "b1", "x"], "rowless", ["x"]),
        (["a2", "a1", "a3", "b1"], "disordered", ["a"]),
        (["a1", "a3", "a2", "b1"], "disordered", ["a"]),
    ],
)
def test_what_was_promised_and_is_not_so_is_named(arrivals: list[str], what: str, which: list[str]) -> None:
    """A missing, unknown or disordered event is listed."""
    found = verdict(*arrivals)
    assert not found.holds
    assert getattr(found, what) == which


def test_what_has_no_key_has_no_order() -> None:
    """Events without a key may arrive in any order."""
    rows = [Row("1", "", 1.0), Row("2", "", 2.0)]
    assert verdict("2", "1", rows=rows).holds


def test_what_comes_before_its_time_is_named() -> None:
    """An event that arrives before its `not_before` breaks the promise."""
    rows = [Row("1", "", 1.0, not_before=10.0), Row("2", "", 1.0, not_before=11.5)]
    found = verdict("1", "2", rows=rows)
    assert (found.early, found.holds, list(found.seconds)) == (["2"], False, [-0.5, 0.0])


def test_nothing_is_within_no_time() -> None:
    """A run without arrivals has a quantile of 0."""
    assert verdict(rows=[]).within(0.5) == 0.0
