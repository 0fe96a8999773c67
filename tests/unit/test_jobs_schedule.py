"""Slots: cron expressions through changes of the clock, periods, and the last slots of a span."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.errors import DeclarationError
from hybridkit.jobs._cron import Cron
from hybridkit.jobs._schedule import Every, jitter_of, latest_slots

BERLIN = "Europe/Berlin"


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type,misc]


def shown(expression: str, zone: str, since: datetime, count: int) -> list[str]:
    """The next moments, as a clock in the zone shows them."""
    cron, found = Cron(expression, time_zone=zone), list[str]()
    for _ in range(count):
        since = cron.next_after(since)
        found.append(since.astimezone(ZoneInfo(zone)).strftime("%m-%d %H:%M %z"))
    return found


# ── cron ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_time_of_day_follows_the_clock_of_its_zone() -> None:
    """Three in the morning stays three in the morning when summer begins."""
    assert shown("0 3 * * *", BERLIN, utc(2026, 3, 27, 12), 3) == [
        "03-28 03:00 +0100",
        "03-29 03:00 +0200",
        "03-30 03:00 +0200",
    ]


def test_a_time_in_the_gap_comes_at_its_end_and_once() -> None:
    """When 02:00 to 03:00 is left out, both slots in it become the one at 03:00."""
    assert shown("0,30 2 * * *", BERLIN, utc(2026, 3, 28, 0), 5) == [
        "03-28 02:00 +0100",
        "03-28 02:30 +0100",
        "03-29 03:00 +0200",
        "03-30 02:00 +0200",
        "03-30 02:30 +0200",
    ]


def test_a_time_in_the_hour_that_comes_twice_comes_the_first_time() -> None:
    """When summer ends, 02:30 is run in summer time, and not again an hour later."""
    assert shown("30 2 * * *", BERLIN, utc(2026, 10, 23, 12), 3) == [
        "10-24 02:30 +0200",
        "10-25 02:30 +0200",
        "10-26 02:30 +0100",
    ]


def test_an_hourly_job_goes_on_every_hour_through_both_changes() -> None:
    """No hour that passes is left out, and none has two slots."""
    assert shown("0 * * * *", BERLIN, utc(2026, 3, 28, 23, 30), 3) == [
        "03-29 01:00 +0100",
        "03-29 03:00 +0200",
        "03-29 04:00 +0200",
    ]
    assert shown("0 * * * *", BERLIN, utc(2026, 10, 24, 23, 30), 3) == [
        "10-25 02:00 +0200",
        "10-25 02:00 +0100",
        "10-25 03:00 +0100",
    ]


def test_a_gap_of_half_an_hour_ends_where_it_ends() -> None:
    """Lord Howe Island puts its clock forward by 30 minutes."""
    assert shown("15 2 * * *", "Australia/Lord_Howe", utc(2026, 10, 2, 18), 2) == [
        "10-04 02:30 +1100",
        "10-05 02:15 +1100",
    ]


def test_a_gap_at_midnight_moves_the_slot_into_the_day() -> None:
    """Where a day began at one o'clock, 00:30 becomes 01:00."""
    assert shown("30 0 * * *", "America/Sao_Paulo", utc(2018, 11, 3, 12), 2) == [
        "11-04 01:00 -0200",
        "11-05 00:30 -0200",
    ]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 13 * fri", ["10-09", "10-13", "10-16"]),  # either of them
        ("0 0 */2 * fri", ["10-09", "10-23", "11-13"]),  # both, as one begins with a star
        ("0 0 * * 7", ["10-04", "10-11", "10-18"]),
        ("0 0 1,15 nov-DEC *", ["11-01", "11-15", "12-01"]),
        ("0 0 20-31/5 * *", ["10-20", "10-25", "10-30"]),
        ("0 0 28/2 * *", ["10-28", "10-30", "11-28"]),
    ],
)
def test_days_are_those_of_crontab(expression: str, expected: list[str]) -> None:
    """Lists, ranges, steps, names, and the two fields for days."""
    assert [each[:5] for each in shown(expression, "UTC", utc(2026, 10, 2, 12), 3)] == expected


def test_a_leap_day_is_found_beyond_years_without_one() -> None:
    """From 2096 the next is in 2104, as 2100 is no leap year."""
    assert Cron("5 4 29 2 *").next_after(utc(2096, 3, 1)) == utc(2104, 2, 29, 4, 5)
    assert Cron("*/5 4 29 2 *").next_after(utc(2096, 3, 1)) == utc(2104, 2, 29, 4, 0)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("60 * * * *", "'60' as its minute, which is from 0 to 59"),
        ("* 24 * * *", "its hour"),
        ("* * 0 * *", "its day of the month"),
        ("* * * 13 *", "its month"),
        ("* * * * 8", "its day of the week"),
        ("* * * * l", "its day of the week"),
        ("0 0 30 2 *", "no day at all"),
        ("*/0 * * * *", "the step '0'"),
        ("*/ * * * *", "the step ''"),
        ("5-1 * * * *", "range '5-1'"),
        ("1,,2 * * * *", "''"),
        ("٣ * * * *", "its minute"),
        ("1" * 300 + " * * * *", "five fields"),
    ],
)
def test_an_expression_that_cant_be_read_is_refused_with_its_field(expression: str, reason: str) -> None:
    """The mistake is found where the job is declared."""
    with pytest.raises(DeclarationError) as caught:
        Cron(expression)
    assert reason in str(caught.value)


@pytest.mark.parametrize("zone", ["Europe/Nowhere", "../etc/passwd", ""])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    """The error tells what to install where the database of zones is missing."""
    with pytest.raises(DeclarationError, match="tzdata"):
        Cron("* * * * *", time_zone=zone)


ZONES = ["UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Cairo"]


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
    st.sampled_from(ZONES),
    st.sampled_from(
        ["*/7 * * * *", "30 */3 * * *", "15 0-6 * * *", "0 2 * * mon", "59 23 1 * *", "*/20 1 * * *"]
    ),
)
def test_every_moment_is_one_that_the_clock_shows_or_the_end_of_a_gap(
    moment: datetime, zone: str, expression: str
) -> None:
    """The moments increase, and each fits the expression unless the clock has just been put forward."""
    cron, at = Cron(expression, time_zone=zone), moment
    for _ in range(4):
        found = cron.next_after(at)
        assert found > at
        assert cron.next_after(found - timedelta(minutes=1)) == found
        there = found.astimezone(ZoneInfo(zone))
        fits = there.minute in cron._minutes and there.hour in cron._hours
        minute_ago = (found - timedelta(minutes=1)).astimezone(ZoneInfo(zone))
        assert fits or minute_ago.utcoffset() != there.utcoffset()
        at = found


@given(
    st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC)), st.sampled_from(ZONES)
)
def test_a_fixed_time_has_one_slot_on_each_day(moment: datetime, zone: str) -> None:
    """Whatever the clocks do on the day, there is neither none nor two."""
    cron = Cron("30 2 * * *", time_zone=zone)
    first = cron.next_after(moment)
    second = cron.next_after(first)
    dates = [each.astimezone(ZoneInfo(zone)).date() for each in (first, second)]
    assert dates[1] - dates[0] == timedelta(days=1)


# ── periods ──────────────────────────────────────────────────────────────────────────────────────


def test_a_period_is_counted_from_1970() -> None:
    """So all replicas have the same slots, whenever they were started."""
    five = Every(timedelta(minutes=5))
    assert five.next_after(utc(2026, 1, 1, 10, 7)) == utc(2026, 1, 1, 10, 10)
    assert five.next_after(utc(2026, 1, 1, 10, 10)) == utc(2026, 1, 1, 10, 15)
    assert str(five) == "every 0:05:00"
    assert repr(five) == "Every(datetime.timedelta(seconds=300))"
    assert repr(Cron("0  3 * * *", time_zone=BERLIN)) == "Cron('0 3 * * *', time_zone='Europe/Berlin')"


@pytest.mark.parametrize(
    "period",
    [
        timedelta(0),
        timedelta(seconds=-1),
        timedelta(seconds=0.5),
        timedelta(seconds=1.5),
        timedelta(days=367),
    ],
)
def test_a_period_out_of_its_range_is_refused(period: timedelta) -> None:
    """From a second to 366 days, in whole seconds."""
    with pytest.raises(DeclarationError, match="whole seconds"):
        Every(period)


# ── the last slots ───────────────────────────────────────────────────────────────────────────────


@given(
    st.integers(1, 100_000),
    st.integers(0, 3_000_000),
    st.integers(1, 5),
)
def test_the_last_slots_of_a_span_are_those_of_a_walk_through_it(period: int, span: int, limit: int) -> None:
    """Only the last ones are returned, oldest first."""
    after = utc(2026, 1, 1, 0, 0, 7)
    until = after + timedelta(seconds=span)
    schedule = Every(timedelta(seconds=period))
    found = latest_slots(schedule, after=after, until=until, limit=limit)
    newest = schedule.next_after(until) - timedelta(seconds=period)
    expected = [newest - timedelta(seconds=period * index) for index in range(limit)]
    assert found == sorted(slot for slot in expected if slot > after)


def test_a_burst_at_the_end_of_a_quiet_time_is_cut_to_its_last_slots() -> None:
    """A thousand slots in the last minutes of a year are not all kept."""
    schedule = Cron("* 12 31 12 *")
    found = latest_slots(schedule, after=utc(2025, 6, 1), until=utc(2026, 6, 1), limit=3)
    assert found == [utc(2025, 12, 31, 12, 57), utc(2025, 12, 31, 12, 58), utc(2025, 12, 31, 12, 59)]


def test_the_jitter_of_a_slot_is_the_same_everywhere_and_spread() -> None:
    """Replicas agree on it without asking, and different slots have different ones."""
    slots = [utc(2026, 1, 1) + timedelta(minutes=each) for each in range(200)]
    found = [jitter_of("job", slot, seconds=30) for slot in slots]
    assert found == [jitter_of("job", slot, seconds=30) for slot in slots]
    assert all(timedelta(0) <= each < timedelta(seconds=30) for each in found)
    assert min(found) < timedelta(seconds=3)
    assert max(found) > timedelta(seconds=27)
