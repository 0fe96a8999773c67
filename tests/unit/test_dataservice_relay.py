"""The relay against an outbox in memory: order per key, nothing lost, and who may hold up whom."""

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from hybridkit.context import current
from hybridkit.dataservice import Relay, _relay
from hybridkit.dataservice._single_outbox import Backlog, Lease, Parked, Waiting
from hybridkit.errors import (
    NackedError,
    NotConnectedError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    UnavailableError,
    UnroutableError,
)
from hybridkit.observability import metrics
from hybridkit.retry import Retry


class MemoryOutbox:
    """An outbox that forgets with the test."""

    def __init__(self) -> None:
        self.rows: dict[int, Waiting] = {}
        self.published: list[int] = []
        self.parked: dict[int, str] = {}
        self.owner: str | None = None
        self.fence = 0
        self.broken: Exception | None = None
        self.failures = 0
        self.marking = False
        self.mark_gate = asyncio.Event()
        self.mark_gate.set()
        self._sequences = itertools.count(1)
        self._changed = asyncio.Event()

    def add(self, lane: str, event_type: str = "item.sold", **more: str) -> Waiting:
        row = Waiting(
            sequence=next(self._sequences),
            lane=lane,
            event_id=uuid4(),
            event_type=event_type,
            queue=more.get("queue"),
            request_id="the-request",
            user_id="ann",
            body=b"{}",
        )
        self.rows[row.sequence] = row
        self._changed.set()
        return row

    async def acquire(self, owner: str) -> Lease | None:
        self._fail()
        if self.owner not in (None, owner):
            return None
        if self.owner is None:
            self.owner, self.fence = owner, self.fence + 1
        return Lease(self.fence, time.monotonic() + 9)

    async def release(self, owner: str) -> None:
        self._fail()
        if self.owner == owner:
            self.owner = None

    async def waiting(self, *, without: Collection[str], limit: int) -> Sequence[Waiting]:
        self._fail()
        done = {*self.published, *self.parked}
        rows = [row for row in self.rows.values() if row.sequence not in done and row.lane not in without]
        return rows[:limit]

    async def backlog(self) -> Backlog:
        waiting = await self.waiting(without=(), limit=1000)
        return Backlog(waiting=len(waiting), parked=len(self.parked), lag_seconds=float(len(waiting)))

    async def changed(self, *, timeout_seconds: float) -> None:
        await asyncio.wait({asyncio.ensure_future(self._changed.wait())}, timeout=timeout_seconds)
        self._changed.clear()

    async def mark(self, lease: Lease, *, published: Sequence[int], parked: Sequence[Parked]) -> bool:
        self._fail()
        self.marking = True
        await self.mark_gate.wait()
        self.marking = False
        if lease.fence != self.fence:
            return False
        self.published += published
        self.parked |= {row.sequence: row.reason for row in parked}
        return True

    def _fail(self) -> None:
        if self.broken is not None:
            self.failures += 1
            raise self.broken


class MemoryPublisher:
    """Confirms at once, unless it was told to fail for an event, or to hold it."""

    def __init__(self) -> None:
        self.sent: list[UUID] = []
        self.queues: list[str | None] = []
        self.contexts: list[tuple[str, str | None]] = []
        self.at_work: list[str] = []
        self.most_at_work = 0
        self.errors: dict[UUID, list[Exception]] = {}
        self.gates: dict[UUID, asyncio.Event] = {}

    async def publish_encoded(
        self, body: bytes, *, event_type: str, event_id: UUID, queue: str | None = None
    ) -> None:
        self.at_work.append(event_type)
        self.most_at_work = max(self.most_at_work, len(self.at_work))
        try:
            if gate := self.gates.get(event_id):
                await gate.wait()
            await asyncio.sleep(0)
            if errors := self.errors.get(event_id):
                raise errors.pop(0)
            self.sent.append(event_id)
            self.queues.append(queue)
            self.contexts.append((current().request_id, current().user_id))
        finally:
            self.at_work.remove(event_type)


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as written:
        yield written


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_relay, "LEASE_POLL_SECONDS", 0.02)
    monkeypatch.setattr(_relay, "DATABASE_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(_relay, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(_relay, "BACKLOG_SECONDS", 0.02)
    monkeypatch.setattr(_relay, "_BACKOFF", Retry.exponential(first_seconds=0.02, cap_seconds=0.05))


@pytest.fixture
def outbox() -> MemoryOutbox:
    return MemoryOutbox()


@pytest.fixture
def publisher() -> MemoryPublisher:
    return MemoryPublisher()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the relay tells nobody
            await asyncio.sleep(0.001)


async def test_what_waits_is_published_and_marked(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    rows = [outbox.add("a"), outbox.add("b"), outbox.add("c", queue="email_tasks")]
    async with Relay(outbox, publisher):
        await until(lambda: len(outbox.published) == 3)
        later = outbox.add("a")
        await until(lambda: len(outbox.published) == 4)
    assert set(publisher.sent) == {row.event_id for row in [*rows, later]}
    assert publisher.queues.count("email_tasks") == 1


async def test_an_event_travels_with_its_request_and_user(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    outbox.add("a")
    async with Relay(outbox, publisher):
        await until(lambda: outbox.published)
    assert publisher.contexts == [("the-request", "ann")]


async def test_events_of_one_key_go_one_after_another(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    """Never two of them unconfirmed at a time, however many there are."""
    rows = [outbox.add("a") for _ in range(250)]
    async with Relay(outbox, publisher):
        await until(lambda: len(outbox.published) == 250)
    assert publisher.sent == [row.event_id for row in rows]
    assert publisher.most_at_work == 1


async def test_a_lane_that_ends_while_others_are_marked_is_not_begun_again(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    """What was confirmed in the meantime has no mark yet."""
    first, second = outbox.add("a"), outbox.add("b")
    gate = publisher.gates[second.event_id] = asyncio.Event()
    outbox.mark_gate.clear()
    async with Relay(outbox, publisher):
        await until(lambda: outbox.marking)
        gate.set()
        await until(lambda: not publisher.at_work)
        outbox.mark_gate.set()
        await until(lambda: len(outbox.published) >= 2)
    assert publisher.sent == [first.event_id, second.event_id]


async def test_keys_go_side_by_side(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    """One whose confirm is late holds up nobody else."""
    slow = outbox.add("slow")
    gate = publisher.gates[slow.event_id] = asyncio.Event()
    async with Relay(outbox, publisher):
        await until(lambda: publisher.at_work)
        others = [outbox.add(f"lane {n}") for n in range(150)]
        behind = outbox.add("slow")
        await until(lambda: len(outbox.published) == len(others))
        assert behind.event_id not in publisher.sent
        gate.set()
        await until(lambda: len(outbox.published) == len(others) + 2)
    assert publisher.sent.index(slow.event_id) < publisher.sent.index(behind.event_id)


@pytest.mark.parametrize(
    "error", [NackedError("no"), OutcomeUnknownError("who knows"), RuntimeError("a bug"), TimeoutError()]
)
async def test_a_failing_key_stops_until_it_goes_through(
    outbox: MemoryOutbox,
    publisher: MemoryPublisher,
    error: Exception,
    logs: list[MutableMapping[str, Any]],
) -> None:
    """The same event again, before its successors; other keys go on."""
    first, second, other = outbox.add("a"), outbox.add("a"), outbox.add("b")
    publisher.errors[first.event_id] = [error] * 3
    async with Relay(outbox, publisher):
        await until(lambda: len(outbox.published) == 3)
    assert publisher.sent == [other.event_id, first.event_id, second.event_id]
    told = [line for line in logs if line.get("event_id") == str(first.event_id)]
    assert [line["failures"] for line in told] == [1, 2, 3]
    assert {line["request_id"] for line in told} == {"the-request"}


@pytest.mark.parametrize(
    "error",
    [
        UnroutableError("nobody wants it", exchange="hk.events", routing_key="item.sold"),
        PayloadTooLargeError("too large", size_bytes=2, limit_bytes=1),
    ],
)
async def test_what_can_never_be_published_is_parked_and_blocks_nobody(
    outbox: MemoryOutbox, publisher: MemoryPublisher, error: Exception
) -> None:
    first, second = outbox.add("a"), outbox.add("a")
    publisher.errors[first.event_id] = [error]
    async with Relay(outbox, publisher):
        await until(lambda: outbox.published and outbox.parked)
        await until(lambda: metrics.outbox_parked._value.get() == 1)
    assert outbox.published == [second.sequence]
    assert str(error) in outbox.parked[first.sequence]


async def test_without_a_broker_everything_waits(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    """One failure is enough: the others are not tried one by one."""
    rows = [outbox.add(f"{n}") for n in range(20)]
    away = NotConnectedError("no connection")
    for row in rows:
        publisher.errors[row.event_id] = [away]
    async with Relay(outbox, publisher):
        await until(lambda: len(outbox.published) == 20)
    assert sorted(publisher.sent) == sorted(row.event_id for row in rows)


async def test_without_a_database_it_waits_and_goes_on(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    outbox.add("a")
    for broken in (UnavailableError("away"), RuntimeError("a bug")):
        outbox.broken, outbox.failures = broken, 0
        async with Relay(outbox, publisher):
            await until(lambda: outbox.failures > 2)
            assert not outbox.published
            outbox.broken = None
            await until(lambda: outbox.published)
        outbox.published.clear()


async def test_a_row_whose_mark_failed_is_not_published_twice(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    """As long as this relay lives it remembers what was confirmed."""
    row = outbox.add("a")
    gate = publisher.gates[row.event_id] = asyncio.Event()
    async with Relay(outbox, publisher):
        await until(lambda: publisher.at_work)
        outbox.broken = UnavailableError("away")
        gate.set()
        await until(lambda: publisher.sent)
        outbox.broken = None
        await until(lambda: outbox.published)
    assert (publisher.sent, outbox.published) == ([row.event_id], [row.sequence])


async def test_one_replica_publishes_and_another_takes_over(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    other = MemoryPublisher()
    async with Relay(outbox, other) as second:
        async with Relay(outbox, publisher) as first:
            rows = [outbox.add(f"{n}") for n in range(20)]
            await until(lambda: len(outbox.published) == 20)
            assert not (publisher.sent and other.sent)
            assert "Relay(fence=" in repr(first) + repr(second)
        late = outbox.add("late")
        await until(lambda: len(outbox.published) == 21)
    assert sorted([*publisher.sent, *other.sent]) == sorted(row.event_id for row in [*rows, late])


async def test_a_former_owner_stops_and_its_marks_count_for_nothing(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    """What it published comes twice, and that is all."""
    row = outbox.add("a")
    gate = publisher.gates[row.event_id] = asyncio.Event()
    async with Relay(outbox, publisher) as relay:
        await until(lambda: publisher.at_work)
        outbox.owner, outbox.fence = "somebody else", outbox.fence + 1
        gate.set()
        await until(lambda: relay._lease is None)
        assert (publisher.sent, outbox.published) == ([row.event_id], [])
        await until(lambda: metrics.outbox_pending._value.get() == 0)
        outbox.owner = None
        await until(lambda: outbox.published)
    assert publisher.sent == [row.event_id] * 2


async def test_a_lane_ends_with_the_lease(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    """A publish that could end after another owner has begun is not started."""
    relay = Relay(outbox, publisher)
    relay._lease = Lease(7, time.monotonic() - 1)
    rows = [outbox.add("a"), outbox.add("a")]
    await relay._publish_lane("a", rows, 7)
    relay._lease = Lease(8, time.monotonic() + 9)
    await relay._publish_lane("a", rows, 7)
    relay._lease = None
    await relay._publish_lane("a", rows, 7)
    assert publisher.sent == []


async def test_stopping_finishes_what_is_under_way(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    """And nothing more; the lease is free at once."""
    first, second = outbox.add("a"), outbox.add("a")
    gate = publisher.gates[first.event_id] = asyncio.Event()
    async with Relay(outbox, publisher):
        await until(lambda: publisher.at_work)
        asyncio.get_running_loop().call_later(0.05, gate.set)
    assert publisher.sent == [first.event_id]
    assert (outbox.published, outbox.owner) == ([first.sequence], None)
    assert second.sequence not in outbox.published


async def test_stopping_does_not_wait_for_ever(
    outbox: MemoryOutbox, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_relay, "STOP_SECONDS", 0.05)
    row = outbox.add("a")
    publisher.gates[row.event_id] = asyncio.Event()
    async with Relay(outbox, publisher):
        await until(lambda: publisher.at_work)
    assert outbox.published == []


async def test_stopping_without_a_database_ends_too(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    outbox.add("a")
    async with Relay(outbox, publisher):
        await until(lambda: outbox.published)
        outbox.broken = UnavailableError("away")
    assert outbox.owner is not None


async def test_the_backlog_is_measured(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    row = outbox.add("a")
    gate = publisher.gates[row.event_id] = asyncio.Event()
    async with Relay(outbox, publisher):
        await until(lambda: metrics.outbox_lag._value.get() == metrics.outbox_pending._value.get() == 1)
        gate.set()
        await until(lambda: metrics.outbox_lag._value.get() == metrics.outbox_pending._value.get() == 0)
