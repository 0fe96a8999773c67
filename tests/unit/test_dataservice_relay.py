"""The relay against an outbox in memory: order per key, nothing lost, and who may hold up whom."""

import asyncio
import time
from collections import Counter
from collections.abc import MutableMapping
from dataclasses import replace
from typing import Any, cast

import pytest

from hybridkit.dataservice import Relay
from hybridkit.dataservice._outbox import _partition_leases, _relay
from hybridkit.dataservice._outbox._protocol import PARTITIONS, Lease
from hybridkit.errors import (
    NackedError,
    NotConnectedError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    UnavailableError,
    UnroutableError,
)
from hybridkit.observability import metrics
from hybridkit.retry import UNLIMITED, Retry
from tests.helpers import until
from tests.helpers.memory_outbox import MemoryOutbox, MemoryPublisher

pytestmark = pytest.mark.usefixtures("logs")


def _backoff(first_seconds: float, cap_seconds: float) -> Retry:
    return Retry.exponential(first_seconds=first_seconds, cap_seconds=cap_seconds, attempts=UNLIMITED)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_partition_leases, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(_relay, "IDLE_SECONDS", 0.02)
    monkeypatch.setattr(_relay, "DATABASE_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(_relay, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(_relay, "BACKLOG_SECONDS", 0.02)
    monkeypatch.setattr(_relay, "_BACKOFF", _backoff(0.02, 0.05))


@pytest.fixture
def outbox() -> MemoryOutbox:
    return MemoryOutbox()


@pytest.fixture
def publisher() -> MemoryPublisher:
    return MemoryPublisher()


async def test_what_waits_is_published_and_marked(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    """Rows from before the start and from after it are published, commands to their queue."""
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
    """The publisher runs in the context of the request that caused the event."""
    outbox.add("a")
    async with Relay(outbox, publisher):
        await until(lambda: outbox.published)
    assert publisher.contexts == [("the-request", "ann")]


async def test_events_of_one_key_go_one_after_another(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    """Of a key never two events are unconfirmed at a time, however many there are."""
    rows = [outbox.add("a") for _ in range(250)]
    async with Relay(outbox, publisher):
        await until(lambda: len(outbox.published) == 250)
    assert publisher.sent == [row.event_id for row in rows]
    assert publisher.most_at_work == 1


async def test_a_key_that_ends_while_others_are_marked_is_not_begun_again(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    """Its rows were confirmed after the marks were written, and would be published twice."""
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
    """A key whose confirm is late holds up no other key."""
    slow = outbox.add("slow")
    gate = publisher.gates[slow.event_id] = asyncio.Event()
    async with Relay(outbox, publisher):
        await until(lambda: publisher.at_work)
        others = [outbox.add(f"key {n}") for n in range(150)]
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
    """The same event is published again before its successors, while other keys go on."""
    first, second, other = outbox.add("a"), outbox.add("a"), outbox.add("b")
    publisher.errors[first.event_id] = [error] * 3
    async with Relay(outbox, publisher):
        await until(lambda: len(outbox.published) == 3)
    assert publisher.sent == [other.event_id, first.event_id, second.event_id]
    told = [line for line in logs if line.get("event_id") == str(first.event_id)]
    assert [line["failures"] for line in told] == [1, 2, 3]
    assert {line["request_id"] for line in told} == {"the-request"}


@pytest.mark.parametrize("field", ["request_id", "user_id"])
@pytest.mark.parametrize("value", ["x" * 200_000, "two\r\nlines", ""])
async def test_what_an_older_release_let_in_and_no_message_carries_is_parked(
    outbox: MemoryOutbox, publisher: MemoryPublisher, field: str, value: str
) -> None:
    """It is parked with its reason at once, and later events of its key are published."""
    first = outbox.add("a")
    outbox.rows[first.sequence] = replace(first, **cast("Any", {field: value}))
    behind = outbox.add("a")
    async with Relay(outbox, publisher):
        await until(lambda: outbox.parked and outbox.published == [behind.sequence])
    assert f"{field} has 1 to 255 characters" in outbox.parked[first.sequence]
    assert publisher.sent == [behind.event_id]


@pytest.mark.parametrize(
    "error",
    [
        UnroutableError("nobody wants it", exchange="hk.events", routing_key="item.sold"),
        PayloadTooLargeError("too large", size_bytes=2, limit_bytes=1),
    ],
)
async def test_what_can_never_be_published_is_parked_and_blocks_nobody(
    outbox: MemoryOutbox, publisher: MemoryPublisher, error: Exception, logs: list[Any]
) -> None:
    """The next event of its key is published, the row keeps the error as its reason, and the log says what to do.

    What no queue wants yet is a warning, as the consumer may be deployed later; what can't be sent at all is an error.
    """
    first, second = outbox.add("a"), outbox.add("a")
    publisher.errors[first.event_id] = [error]
    async with Relay(outbox, publisher):
        await until(lambda: outbox.published and outbox.parked)
        await until(lambda: metrics.outbox_parked._value.get() == 1)
    assert outbox.published == [second.sequence]
    assert str(error) in outbox.parked[first.sequence]
    [told] = [line for line in logs if line["event"] == "an event can't be published and is parked"]
    unwanted = isinstance(error, UnroutableError)
    assert told["log_level"] == ("warning" if unwanted else "error")
    assert ("hybridkit outbox retry" if unwanted else "hybridkit outbox list") in told["remedy"]


async def test_without_a_broker_everything_waits(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    """One failure is enough; the other keys are not tried one by one."""
    rows = [outbox.add(f"{n}") for n in range(20)]
    away = NotConnectedError("no connection")
    for row in rows:
        publisher.errors[row.event_id] = [away]
    async with Relay(outbox, publisher):
        await until(lambda: len(outbox.published) == 20)
    assert sorted(publisher.sent) == sorted(row.event_id for row in rows)


async def test_keys_that_fail_together_are_one_failure_of_the_broker(
    outbox: MemoryOutbox, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses grow with the length of the outage, and not with the number of events that wait."""
    monkeypatch.setattr(_relay, "_BACKOFF", _backoff(60, 3600))
    gate, away = asyncio.Event(), NotConnectedError("no connection")
    for number in range(20):
        row = outbox.add(f"{number}")
        publisher.errors[row.event_id], publisher.gates[row.event_id] = [away], gate
    relay = Relay(outbox, publisher)
    async with relay:
        await until(lambda: len(publisher.at_work) == 20)
        gate.set()
        await until(lambda: not publisher.at_work and not relay._busy_keys)
        assert relay._broker_backoff.failures == 1


async def test_when_the_broker_is_back_no_key_waits_for_its_own_interval(
    outbox: MemoryOutbox, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent as the connection broke has an unknown outcome, and would come minutes after the others."""
    unknown, away = outbox.add("a"), outbox.add("b")
    publisher.errors[unknown.event_id] = [OutcomeUnknownError("no answer")]
    publisher.errors[away.event_id] = [NotConnectedError("no connection")]
    publisher.gates[away.event_id] = asyncio.Event()
    monkeypatch.setattr(_relay, "_BACKOFF", _backoff(3600, 3600))
    relay = Relay(outbox, publisher)
    async with relay:
        await until(lambda: relay._key_backoffs["a"].is_on)
        monkeypatch.setattr(_relay, "_BACKOFF", _backoff(0, 0))
        publisher.gates[away.event_id].set()
        await until(lambda: len(outbox.published) == 2)


async def test_without_a_database_it_waits_and_goes_on(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    """Neither an outage nor a defect in a turn ends the relay."""
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
    """A relay remembers confirmed rows until the database has marked them."""
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


async def test_replicas_share_the_partitions(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    """Each publishes its own partitions, and one that stops leaves them to the others."""
    other = MemoryPublisher()
    async with Relay(outbox, other) as second:
        await until(lambda: len(outbox.owners) == PARTITIONS)
        async with Relay(outbox, publisher) as first:
            await until(lambda: len(set(outbox.owners.values())) == 2)
            await until(lambda: max(Counter(outbox.owners.values()).values()) == PARTITIONS // 2)
            rows = [outbox.add(f"{n}") for n in range(100)]
            await until(lambda: len(outbox.published) == 100)
            assert publisher.sent
            assert other.sent
            assert repr(first) != repr(second)
            assert "Relay(partitions=[" in repr(first)
        late = [outbox.add(f"late {n}") for n in range(50)]
        await until(lambda: len(outbox.published) == 150)
    assert sorted([*publisher.sent, *other.sent]) == sorted(row.event_id for row in [*rows, *late])


async def test_a_partition_is_handed_over_once_nothing_of_it_is_under_way(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    """The other replica never publishes beside this one, and the key's later rows wait for it."""
    rows = [outbox.add(f"{n}") for n in range(100)]
    behind = [outbox.add(row.ordering_key) for row in rows]
    for row in rows:
        publisher.gates[row.event_id] = asyncio.Event()
    other = MemoryPublisher()
    async with Relay(outbox, publisher):
        await until(lambda: len(publisher.at_work) == 100)
        async with Relay(outbox, other):
            await until(lambda: len(outbox.replicas) == 2)
            await asyncio.wait({asyncio.create_task(outbox.changed(timeout_seconds=0.1))})
            assert (set(outbox.owners.values()) < outbox.replicas, other.sent) == (True, [])
            for gate in publisher.gates.values():
                gate.set()
            await until(lambda: len(outbox.published) == 200)
    for first, second in zip(rows, behind, strict=True):
        sent = [*publisher.sent, *other.sent]
        assert sent.index(first.event_id) < sent.index(second.event_id)
    assert len(publisher.sent) + len(other.sent) == 200
    assert other.sent


async def test_a_former_owner_stops_and_its_marks_count_for_nothing(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    """Its event is published again by the new owner, and nothing else happens."""
    row = outbox.add("a")
    gate = publisher.gates[row.event_id] = asyncio.Event()
    async with Relay(outbox, publisher) as relay:
        await until(lambda: publisher.at_work)
        for partition in range(PARTITIONS):
            outbox.give(partition, "somebody else")
        gate.set()
        await until(lambda: not relay._leases.partitions)
        assert (publisher.sent, outbox.published) == ([row.event_id], [])
        await until(lambda: metrics.outbox_pending._value.get() == 0)
        outbox.owners.clear()
        await until(lambda: outbox.published)
    assert publisher.sent == [row.event_id] * 2


async def test_a_mark_that_comes_too_late_loses_that_partition_only(
    outbox: MemoryOutbox, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of partitions that are still its own are marked."""
    monkeypatch.setattr(_partition_leases, "RENEW_SECONDS", 60)
    mine, lost = outbox.add("a"), outbox.add("b")
    assert mine.partition != lost.partition
    gates = [publisher.gates.setdefault(row.event_id, asyncio.Event()) for row in (mine, lost)]
    async with Relay(outbox, publisher) as relay:
        await until(lambda: len(publisher.at_work) == 2)
        outbox.give(lost.partition, "somebody else")
        for gate in gates:
            gate.set()
        await until(lambda: lost.partition not in relay._leases.partitions)
        assert len(relay._leases.partitions) == PARTITIONS - 1
    assert outbox.published == [mine.sequence]


async def test_rows_of_lost_partitions_are_not_marked(
    outbox: MemoryOutbox, publisher: MemoryPublisher, logs: list[MutableMapping[str, Any]]
) -> None:
    """A relay that has lost all its leases asks the database for nothing, and says that events may come twice."""
    relay = Relay(outbox, publisher)
    row = outbox.add("a")
    relay._published.append(row)
    outbox.broken = AssertionError("the database was asked")
    await relay._mark()
    [line] = logs
    assert (line["partitions"], line["events"]) == ([row.partition], 1)
    assert not relay._published


async def test_a_key_ends_with_the_lease(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    """A publish that could end after another owner has begun is not started."""
    relay = Relay(outbox, publisher)
    rows = [outbox.add("a"), outbox.add("a")]
    [lease] = [
        each for each in (await outbox.renew_leases("x")).leases if each.partition == rows[0].partition
    ]
    await relay._publish_key("a", rows, lease)  # it has none
    relay._leases._replace([Lease(lease.partition, lease.fence, time.monotonic() - 1)])
    await relay._publish_key("a", rows, lease)
    relay._leases._replace([Lease(lease.partition, lease.fence + 1, time.monotonic() + 9)])
    await relay._publish_key("a", rows, lease)
    assert publisher.sent == []
    relay._leases._replace([lease])
    await relay._publish_key("a", rows, lease)
    assert publisher.sent == [row.event_id for row in rows]


async def test_rows_of_a_partition_that_was_lost_meanwhile_are_not_begun(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    """Without a lease no row is taken up."""
    relay = Relay(outbox, publisher)
    relay._start_publishing({"a": [outbox.add("a")]})
    assert not relay._busy_keys


async def test_an_event_goes_on_in_the_trace_of_its_request(
    outbox: MemoryOutbox, publisher: MemoryPublisher
) -> None:
    """The publisher sees the stored trace, and none for an event without one."""
    parent = f"00-{'4b' * 16}-{'a1' * 8}-01"
    outbox.add("a", traceparent=parent)
    outbox.add("b")
    async with Relay(outbox, publisher):
        await until(lambda: len(outbox.published) == 2)
    assert publisher.traces == [{"traceparent": parent}, {}]


async def test_it_looks_more_often_while_there_is_something_to_do(
    outbox: MemoryOutbox, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events of other replicas are only found by looking."""
    monkeypatch.setattr(_relay, "BUSY_POLL_SECONDS", 0.005)
    async with Relay(outbox, publisher) as relay:
        await until(lambda: relay._poll_seconds == _relay.POLL_SECONDS)
        outbox.add("a")
        await until(lambda: relay._poll_seconds < _relay.POLL_SECONDS)


async def test_failures_are_forgotten_after_a_while(
    outbox: MemoryOutbox, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key whose rows another replica has published leaves nothing behind."""
    monkeypatch.setattr(_relay, "FORGET_SECONDS", 0.0)
    row = outbox.add("a")
    publisher.errors[row.event_id] = [NackedError("no")]
    async with Relay(outbox, publisher) as relay:
        await until(lambda: relay._key_backoffs)
        del outbox.rows[row.sequence]
        await until(lambda: not relay._key_backoffs)


async def test_stopping_finishes_what_is_under_way(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    """No further row is published, and the leases are free at once."""
    first, second = outbox.add("a"), outbox.add("a")
    gate = publisher.gates[first.event_id] = asyncio.Event()
    async with Relay(outbox, publisher):
        await until(lambda: publisher.at_work)
        asyncio.get_running_loop().call_later(0.05, gate.set)
    assert publisher.sent == [first.event_id]
    assert (outbox.published, outbox.owners) == ([first.sequence], {})
    assert second.sequence not in outbox.published


async def test_stopping_does_not_wait_for_ever(
    outbox: MemoryOutbox, publisher: MemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publish that is never confirmed is cancelled, and its row waits for the next replica."""
    monkeypatch.setattr(_relay, "STOP_SECONDS", 0.05)
    row = outbox.add("a")
    publisher.gates[row.event_id] = asyncio.Event()
    async with Relay(outbox, publisher):
        await until(lambda: publisher.at_work)
    assert outbox.published == []


async def test_stopping_without_a_database_ends_too(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    """The leases are left to run out."""
    outbox.add("a")
    async with Relay(outbox, publisher):
        await until(lambda: outbox.published)
        outbox.broken = UnavailableError("away")
    assert outbox.owners


async def test_the_backlog_is_measured(outbox: MemoryOutbox, publisher: MemoryPublisher) -> None:
    """The metrics follow the outbox up and down."""
    row = outbox.add("a")
    gate = publisher.gates[row.event_id] = asyncio.Event()
    async with Relay(outbox, publisher):
        await until(lambda: metrics.outbox_lag._value.get() == metrics.outbox_pending._value.get() == 1)
        gate.set()
        await until(lambda: metrics.outbox_lag._value.get() == metrics.outbox_pending._value.get() == 0)
