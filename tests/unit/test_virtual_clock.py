"""The clock that a test moves: one for the process, in every task and thread."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from hybridkit.codec import now
from hybridkit.errors import MisuseError
from hybridkit.events import Event
from hybridkit.testing import FakeDataService, VirtualClock

START = datetime(2030, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)


class Rang(Event, type="virtual_clock.rang"):
    number: int


def test_it_stands_still_and_moves_when_told() -> None:
    """It shows whole milliseconds, as any time of hybridkit's."""
    with VirtualClock(START) as clock:
        assert now() == now() == START.replace(microsecond=123000)
        assert clock.advance(timedelta(minutes=15)) == clock.moment == START + timedelta(minutes=15)
        assert now() == START.replace(microsecond=123000) + timedelta(minutes=15)
    assert now() < START


def test_it_begins_at_the_time_of_now() -> None:
    """A naive start is in UTC."""
    before = now()
    assert before <= VirtualClock().moment <= now() + timedelta(milliseconds=1)
    assert VirtualClock(START.replace(tzinfo=None)).moment == START
    assert repr(VirtualClock(START)) == "VirtualClock(2030-05-01T12:00:00.123456+00:00)"


async def test_tasks_and_threads_see_it_that_began_before() -> None:
    """A fixture's background task has the test's time as well."""
    go = asyncio.Event()

    async def read() -> datetime:
        await go.wait()
        return now()

    earlier = asyncio.create_task(read())
    with VirtualClock(START):
        go.set()
        assert await earlier == await asyncio.to_thread(now) == START.replace(microsecond=123000)


def test_a_second_one_is_refused_and_leaves_the_first() -> None:
    """Each would move the other's time; after the block another one may begin."""
    with VirtualClock(START):
        with pytest.raises(MisuseError, match="in use already"), VirtualClock():
            pass
        assert now().year == START.year
    with VirtualClock(START):
        assert now().year == START.year


def test_time_moves_forward_only() -> None:
    """A test that goes back would see what no production sees."""
    with pytest.raises(MisuseError, match="only moves forward"):
        VirtualClock().advance(timedelta(seconds=-1))


async def test_messages_and_their_delays_follow_it() -> None:
    """The time of an event and its earliest publication are those of the clock."""
    fake = FakeDataService([])
    client = fake.postgres_client(service="tests")
    async with client:
        with VirtualClock(START) as clock:
            async with client.transaction() as tx:
                tx.emit(Rang(number=1), delay_seconds=60)
            [emission] = fake.emitted
            assert emission.timestamp == now()
            assert emission.not_before == now() + timedelta(seconds=60)
            clock.advance(timedelta(days=1))
            assert Rang(number=2).timestamp == now()
