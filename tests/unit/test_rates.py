"""Rates as text, and the limits of a process without Redis."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from hybridkit.coordination import Rate
from hybridkit.coordination import _local_limiter as local_module
from hybridkit.coordination._local_limiter import LocalLimiter
from hybridkit.errors import DeclarationError
from tests.helpers.buckets import Buckets

PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/minute", Rate(100, "minute", 100)),
        ("100/m", Rate(100, "minute", 100)),
        ("5/s", Rate(5, "second", 5)),
        ("7/h;burst=2", Rate(7, "hour", 2)),
        ("1/day", Rate(1, "day", 1)),
        ("1/d;burst=30", Rate(1, "day", 30)),
    ],
)
def test_a_rate_is_read_from_text(text: str, rate: Rate) -> None:
    """Periods have a short and a long name; the burst is the period's count unless it is said."""
    assert Rate.parse(text) == rate


def test_a_field_of_a_model_is_read_from_text_and_written_as_such() -> None:
    """As settings are; what is no rate is refused with the form of one, and no program's error comes of it."""

    class Limits(BaseModel):
        uploads: Rate

    read = Limits.model_validate({"uploads": "5/s;burst=20"})
    assert read.uploads == Rate(5, "second", 20)
    assert read.model_dump_json() == '{"uploads":"5/second;burst=20"}'
    with pytest.raises(ValidationError, match="a rate is a number per s, m, h or d"):
        Limits.model_validate({"uploads": "5/week"})


def test_the_burst_may_be_given_beside_the_text() -> None:
    """A program writes it as an argument, a setting as a part of its text."""
    assert Rate.parse("100/minute", burst=20) == Rate.parse("100/minute;burst=20")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "100",
        "100/",
        "/minute",
        "100/week",
        "100/minutes",
        "-1/s",
        "1.5/s",
        " 1/s",
        "1/s;burst=",
        "1/s;burst=-1",
        "1/s;burst=1;burst=1",
        "٣/s",
        "1/S",
        "1/s\n",
        "9999999999/s",
    ],
)
def test_other_text_is_refused_with_an_example(text: str) -> None:
    """The error shows the text and one that is right."""
    with pytest.raises(DeclarationError, match=r"such as 100/minute") as refused:
        Rate.parse(text)
    assert repr(text[:80]) in str(refused.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rate.parse("0/s"), "at least 1"),
        (lambda: Rate.parse("1/s", burst=0), "not 1 and 0"),
        (lambda: Rate.parse("1/s;burst=2", burst=2), "said twice"),
        (lambda: Rate.parse("10001/s"), "more than the 10000 per second"),
        (lambda: Rate.parse("1/day;burst=367"), "over a year"),
        (lambda: Rate(1, "week", 1), "second, minute, hour, day"),
    ],
)
def test_a_rate_that_cannot_be_kept_is_refused(make: Any, words: str) -> None:
    """The message names the value that is out of its range."""
    with pytest.raises(DeclarationError, match=words):
        make()


@given(count=st.integers(1, 10_000), period=st.sampled_from(sorted(PERIODS)), burst=st.integers(1, 366))
def test_a_rate_comes_back_from_its_text(count: int, period: str, burst: int) -> None:
    """Settings and logs show what can be read again; the interval is never shorter than the rate says."""
    rate = Rate(count, period, burst)
    assert Rate.parse(str(rate)) == rate
    exact = Fraction(PERIODS[period] * 1_000_000, count)
    assert exact <= rate.interval_microseconds < exact + 1
    assert rate.period_seconds == PERIODS[period]


# ── without Redis ────────────────────────────────────────────────────────────────────────────────


class Clock:
    """Microseconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> float:
        return self.now / 1_000_000


RATES = st.builds(
    Rate,
    st.sampled_from([1, 10, 1000]),
    st.sampled_from(["second", "minute"]),
    st.sampled_from([1, 2, 3, 20]),
)
REQUESTS = st.lists(
    st.tuples(st.integers(0, 2_000_000), st.sampled_from("ab"), st.sampled_from("xy"), st.integers(1, 3)),
    max_size=40,
)


@given(rates=st.tuples(RATES, RATES), requests=REQUESTS)
def test_one_replica_decides_as_buckets_do(
    rates: tuple[Rate, Rate], requests: list[tuple[int, str, str, int]]
) -> None:
    """Of one replica the share is the whole; what is refused by one bucket takes nothing out of the other."""
    clock, buckets = Clock(), Buckets(rates)
    limiter = LocalLimiter(rates, replicas=1, clock=clock)
    highest = min(rate.burst for rate in rates)
    for pause, first, second, cost in requests:
        clock.now += pause
        taken = min(cost, highest)
        assert limiter.check([first, second], taken) == buckets.check([first, second], taken, clock.now)


def test_replicas_share_a_rate_and_its_burst() -> None:
    """Each of four has a quarter of both."""
    clock = Clock()
    limiter = LocalLimiter([Rate.parse("4/second", burst=8)], replicas=4, clock=clock)
    assert [limiter.check(["a"], 1)[0] for _ in range(3)] == [1, 1, 0]
    clock.now += 1_000_000
    assert [limiter.check(["a"], 1)[0] for _ in range(2)] == [1, 0]


def test_a_cost_above_the_share_of_the_burst_is_let_through_and_paid_for_later() -> None:
    """It would be refused for ever otherwise; the rate is kept over time."""
    clock = Clock()
    limiter = LocalLimiter([Rate.parse("10/second", burst=10)], replicas=5, clock=clock)
    allowed, _, remaining, wait, missing = limiter.check(["a"], 10)
    assert (allowed, remaining, wait, missing) == (1, 0, 0, 5_000_000)
    allowed, _, remaining, wait, _ = limiter.check(["a"], 1)
    assert (allowed, remaining, wait) == (0, 0, 4_500_000)
    clock.now += 4_500_000
    assert limiter.check(["a"], 1)[0] == 1


def test_a_burst_smaller_than_the_replicas_is_one_for_each() -> None:
    """Nobody is locked out, and the rate is shared all the same."""
    limiter = LocalLimiter([Rate.parse("1/second")], replicas=50, clock=Clock())
    assert limiter.check(["a"], 1)[0] == 1
    assert limiter.check(["a"], 1)[3] == 50_000_000


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was let through longest ago is forgotten."""
    monkeypatch.setattr(local_module, "MAX_KEYS", 3)
    limiter = LocalLimiter([Rate.parse("1/day;burst=2")], replicas=1, clock=Clock())
    for name in ("a", "b", "c", "a", "d"):
        assert limiter.check([name], 1)[0] == 1
    assert repr(limiter) == "LocalLimiter(3 keys)"
    assert limiter.check(["a"], 1)[0] == 0  # used up
    assert limiter.check(["b"], 2)[0] == 1  # begins anew
