"""The relay on real PostgreSQL: several replicas, crashes at the worst moment, and the order of each key."""

import asyncio
import re
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from alembic import command
from sqlalchemy import text

from hybridkit.codec import now
from hybridkit.contract import Emission
from hybridkit.dataservice import Relay, migrate
from hybridkit.dataservice._outbox._protocol import (
    PARTITIONS,
    Backlog,
    Lease,
    ParkedRow,
    WaitingRow,
    fair_share,
)
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._outbox import PostgresOutbox, add_emissions
from hybridkit.dataservice._postgres._outbox_sql import BACKLOG
from hybridkit.dataservice._postgres._schema import histories_of, migrating_connection
from hybridkit.dataservice._postgres._types._parameters import DIALECT
from hybridkit.dataservice._store._keys import RETENTION
from tests.helpers import until


class Broker:
    """What all replicas publish to."""

    def __init__(self) -> None:
        self.received: list[UUID] = []
        self.values: defaultdict[str, list[int]] = defaultdict(list)

    async def publish_encoded(
        self, body: bytes, *, event_type: str, event_id: UUID, queue: str | None = None
    ) -> None:
        await asyncio.sleep(0)
        data = orjson.loads(body)["data"]
        self.received.append(event_id)
        self.values[data["key"]].append(data["value"])


class Replica:
    """The connections of one process."""

    def __init__(self, url: str) -> None:
        self.pool = Pool(url, pool_size=15, application_name="replica")
        self.outbox = PostgresOutbox(self.pool)

    async def emit(self, *events: tuple[str | None, int], **more: Any) -> list[UUID]:
        emissions = [emission(key, value, **more) for key, value in events]
        async with self.pool.session() as session:
            await add_emissions(session, emissions, service="api_service")
        self.outbox.wake()
        return [event.event_id for event in emissions]

    async def renew_leases(self, owner: str) -> dict[int, Lease]:
        return {lease.partition: lease for lease in (await self.outbox.renew_leases(owner)).leases}

    async def waiting(self, *, without: Collection[str] = (), limit: int = 100) -> Sequence[WaitingRow]:
        return await self.outbox.waiting(range(PARTITIONS), without=without, limit=limit)

    async def backlog(self) -> Backlog:
        return await self.outbox.backlog(range(PARTITIONS))

    async def drained(self) -> None:
        await until(self._is_empty)

    async def _is_empty(self) -> bool:
        return not (await self.backlog()).waiting

    async def sql(self, statement: str) -> Sequence[Any]:
        async with self.pool.session() as session:
            return await session.execute(text(statement))


def emission(key: str | None, value: int, **more: Any) -> Emission:
    fields: dict[str, Any] = {
        "event_type": "item.sold",
        "event_id": uuid4(),
        "timestamp": now(),
        "key": key,
        "request_id": "the-request",
        "data": {"key": str(key), "value": value},
    }
    return Emission(**{**fields, **more})


@asynccontextmanager
async def replica_of(url: str) -> AsyncGenerator[Replica]:
    replica = Replica(url)
    try:
        yield replica
    finally:
        await replica.pool.close()


@pytest.fixture
async def replicas(postgres_url: str) -> AsyncIterator[tuple[Replica, Replica]]:
    await migrate(postgres_url)
    async with replica_of(postgres_url) as one, replica_of(postgres_url) as two:
        yield one, two


async def test_rows_of_an_older_release_are_published(postgres_url: str) -> None:
    """The migration keeps them, even after an interrupted run, and can be undone."""
    [own] = histories_of(None)
    async with migrating_connection(postgres_url) as connection:
        await connection.run_sync(lambda sync: command.upgrade(own._config(sync), "hk_0001"))
        await connection.execute(
            text(
                "INSERT INTO hk_outbox (event_id, event_type, key, request_id, body)"
                " SELECT gen_random_uuid(), 'item.sold', 'key ' || number % 40, 'r', '{}'"
                " FROM generate_series(1, 400) AS number"
            )
        )
        await connection.execute(text("ALTER TABLE hk_outbox ADD COLUMN not_before timestamptz"))
        await connection.execute(text("CREATE INDEX hk_outbox_later ON hk_outbox (event_type)"))
        await connection.commit()
    await migrate(postgres_url)
    async with replica_of(postgres_url) as one:
        assert len(await one.renew_leases("one")) == PARTITIONS
        assert [row.sequence for row in await one.waiting(limit=1000)] == list(range(1, 401))
    async with migrating_connection(postgres_url) as connection:
        await connection.run_sync(lambda sync: command.downgrade(own._config(sync), "hk_0001"))
        left = await connection.scalar(text("SELECT count(*) FROM hk_outbox"))
    assert left == 400


async def pass_lease_time(replica: Replica) -> None:
    """As if ten seconds had passed without a heartbeat from anybody."""
    await replica.sql("UPDATE hk_leases SET expires_at = now() - interval '1 s'")


async def test_replicas_share_the_partitions(replicas: tuple[Replica, Replica]) -> None:
    """The first one has all partitions, then gives back the other's share; each has one owner at a time."""
    one, two = replicas
    first = await one.renew_leases("one")
    assert len(first) == PARTITIONS
    assert await two.renew_leases("two") == {}
    assert (await one.outbox.renew_leases("one")).share == PARTITIONS  # the other one has only just come
    assert await two.renew_leases("two") == {}
    renewed = await one.outbox.renew_leases("one")
    assert renewed.share == fair_share(2) == PARTITIONS // 2
    assert {lease.partition: lease.fence for lease in renewed.leases} == {
        partition: lease.fence for partition, lease in first.items()
    }
    assert renewed.leases[0].valid_until > first[0].valid_until
    await one.outbox.release_leases("one", range(10))
    taken = await two.renew_leases("two")
    assert len(taken) == PARTITIONS // 2
    assert taken.keys() < set(range(10))
    assert all(lease.fence == first[partition].fence + 1 for partition, lease in taken.items())
    assert len(await one.renew_leases("one")) == PARTITIONS // 2
    await one.outbox.release_leases("one", taken.keys())  # they are not his any more
    assert (await two.renew_leases("two")).keys() == taken.keys()


async def test_who_leaves_does_not_count_any_more(replicas: tuple[Replica, Replica]) -> None:
    """The other replica gets every partition at its next renewal."""
    one, two = replicas
    await one.renew_leases("one")
    await two.renew_leases("two")
    await one.outbox.release_leases("one")
    held = await two.outbox.renew_leases("two")
    assert (len(held.leases), held.share) == (PARTITIONS, PARTITIONS)


async def test_what_nobody_takes_is_for_anybody(replicas: tuple[Replica, Replica]) -> None:
    """Replicas that die at each start keep no partition from being published."""
    one, two = replicas
    await two.renew_leases("ghost")
    await two.renew_leases("ghost")
    await two.outbox.release_leases("ghost", range(PARTITIONS))
    assert len(await one.renew_leases("one")) == PARTITIONS // 2
    await one.sql("UPDATE hk_leases SET expires_at = now() - interval '6 s' WHERE owner = ''")
    for number in range(PARTITIONS // 2):
        assert len(await one.renew_leases("one")) == PARTITIONS // 2 + number + 1


async def test_what_a_dead_replica_had_is_taken_over(replicas: tuple[Replica, Replica]) -> None:
    """Its partitions are free once its leases have run out, and no trace of it stays."""
    one, two = replicas
    await one.renew_leases("dead")
    assert await two.renew_leases("two") == {}
    await pass_lease_time(one)
    assert len(await two.renew_leases("two")) == PARTITIONS
    await two.outbox.clean()
    names = {row[0] for row in await one.sql("SELECT name FROM hk_leases WHERE name LIKE 'relay.replica.%'")}
    assert names == {"relay.replica.two"}


async def test_partitions_are_never_shared_in_a_race(replicas: tuple[Replica, Replica]) -> None:
    """Replicas that take partitions at the same time get each of them once."""
    one, two = replicas
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(replica.renew_leases(f"{n}"))
            for n, replica in enumerate((one, two, one, two, one, two))
        ]
    taken = [partition for task in tasks for partition in task.result()]
    assert sorted(taken) == list(range(PARTITIONS))


async def test_marks_under_an_old_fence_count_for_nothing(replicas: tuple[Replica, Replica]) -> None:
    """Marks of other partitions in the same call count."""
    one, two = replicas
    await one.emit(("a", 1), ("b", 1))
    rows = await one.waiting()
    lost, kept = rows
    assert lost.partition != kept.partition
    old = await one.renew_leases("one")
    await two.renew_leases("two")
    await one.outbox.release_leases("one", [lost.partition])
    new = await two.renew_leases("two")
    leases = [old[row.partition] for row in rows]
    assert await one.outbox.mark(leases, published=rows, parked=[]) == {lost.partition}
    assert await one.outbox.mark(leases, published=[], parked=[ParkedRow(lost, "no")]) == {lost.partition}
    assert await two.waiting() == [lost]
    assert not await two.outbox.mark([new[lost.partition]], published=[lost], parked=[])
    assert not await two.waiting()


async def test_what_waits_comes_in_order_and_without_some_keys(replicas: tuple[Replica, Replica]) -> None:
    """Rows come by their number, without left-out keys and from the given partitions only."""
    one, _ = replicas
    ids = await one.emit(("a", 1), ("b", 1), (None, 1), ("a", 2), ("c", 1))
    rows = await one.waiting(limit=4)
    assert [row.event_id for row in rows] == ids[:4]
    assert [row.ordering_key for row in rows] == ["a", "b", str(ids[2]), "a"]
    assert rows[0].partition == rows[3].partition
    rest = await one.waiting(without={"a", str(ids[2])})
    assert [row.event_id for row in rest] == [ids[1], ids[4]]
    others = set(range(PARTITIONS)) - {rows[0].partition}
    assert not {"a"} & {row.ordering_key for row in await one.outbox.waiting(others, without=(), limit=10)}


async def test_keys_are_spread_over_the_partitions(replicas: tuple[Replica, Replica]) -> None:
    """Many keys fill all partitions about evenly."""
    one, _ = replicas
    await one.emit(*((f"key {n}", n) for n in range(400)))
    rows = await one.waiting(limit=400)
    sizes = Counter(row.partition for row in rows)
    assert sizes.keys() == set(range(PARTITIONS))
    assert max(sizes.values()) < 60
    assert sum([(await one.outbox.backlog([partition])).waiting for partition in range(PARTITIONS)]) == len(
        rows
    )


async def test_a_row_waits_for_its_time(replicas: tuple[Replica, Replica]) -> None:
    """It holds up no other row until then, and counts as late from then on."""
    one, _ = replicas
    await one.emit(("a", 1), not_before=now() + timedelta(hours=1))
    [second] = await one.emit(("a", 2))
    assert [row.event_id for row in await one.waiting()] == [second]
    assert ((await one.backlog()).waiting, (await one.backlog()).lag_seconds < 60) == (2, True)
    await one.sql("UPDATE hk_outbox SET not_before = now() - interval '1 hour' WHERE not_before IS NOT NULL")
    assert [row.sequence for row in await one.waiting()] == [1, 2]
    assert (await one.backlog()).lag_seconds > 3000


async def test_a_hundred_thousand_timers_cost_the_relay_no_more_than_ten_thousand(
    replicas: tuple[Replica, Replica],
) -> None:
    """Of the rows that wait for their time 10,000 are counted; those that are due or wait for nothing are all found."""
    one, _ = replicas
    await one.sql(
        "INSERT INTO hk_outbox (event_id, event_type, request_id, body, not_before)"
        " SELECT gen_random_uuid(), 'timer', 'r', '\\x7b7d', now() + interval '1 day'"
        " FROM generate_series(1, 100000)"
    )
    await one.sql("ANALYZE hk_outbox")
    [ready] = await one.emit(("a", 1))
    assert [row.event_id for row in await one.waiting()] == [ready]
    assert (await one.backlog()).waiting == 10_001
    async with one.pool.session() as session:
        compiled: Any = BACKLOG.compile(dialect=DIALECT)
        arguments = [list(range(PARTITIONS))] * len(set(re.findall(r"\$[0-9]+", compiled.string)))
        plan = await session.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {compiled.string}", *arguments)
    [tree] = plan[0][0]
    read = list(rows_read(tree["Plan"]))
    assert 0 < max(read) <= 10_000


def rows_read(plan: dict[str, Any]) -> Iterator[float]:
    """Yield the rows that each scan of the outbox gives or passes over."""
    if plan.get("Relation Name") == "hk_outbox":
        yield plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
    for part in plan.get("Plans", ()):
        yield from rows_read(part)


async def test_a_row_keeps_its_trace(replicas: tuple[Replica, Replica]) -> None:
    """The trace of the request is stored with its event."""
    one, _ = replicas
    await one.emit(("a", 1), traceparent="00-a", tracestate="vendor=1")
    [row] = await one.waiting()
    assert (row.traceparent, row.tracestate) == ("00-a", "vendor=1")


async def test_a_parked_row_keeps_its_reason_until_it_is_tried_again(
    replicas: tuple[Replica, Replica],
) -> None:
    """It is listed by filters, counted apart, and waits in its old order after a retry."""
    one, _ = replicas
    ids = await one.emit(("a", 1), ("a", 2), ("b", 3))
    leases = await one.renew_leases("one")
    rows = await one.waiting()
    await one.outbox.mark(
        list(leases.values()),
        published=[],
        parked=[ParkedRow(row, "nobody wants it" * 100) for row in rows[:2]],
    )
    assert [row.event_id for row in await one.waiting()] == ids[2:]
    backlog = await one.backlog()
    assert (backlog.waiting, backlog.parked, backlog.lag_seconds > 0) == (1, 2, True)
    first, second = await one.outbox.entries(parked=True, limit=10)
    assert (first.event_id, first.key, first.parked_at is not None) == (ids[0], "a", True)
    assert first.reason is not None
    assert first.reason.startswith("nobody wants it")
    assert await one.outbox.entries(parked=True, event_ids=[ids[1]], limit=10) == [second]
    assert await one.outbox.entries(parked=True, event_type="other", limit=10) == []
    [waiting] = await one.outbox.entries(parked=False, limit=10)
    assert (waiting.event_id, waiting.parked_at) == (ids[2], None)
    assert await one.outbox.retry(event_type="other") == 0
    assert await one.outbox.retry(event_ids=[ids[1], ids[2]]) == 1
    assert await one.outbox.retry() == 1
    assert [row.event_id for row in await one.waiting()] == ids


async def test_published_rows_are_deleted_after_their_retention(replicas: tuple[Replica, Replica]) -> None:
    """Until then they keep the same event from being added twice; waiting and parked rows stay."""
    one, _ = replicas
    event_id = uuid4()
    await one.emit(("a", 1), event_id=event_id)
    await one.emit(("a", 2))
    leases = await one.renew_leases("one")
    first, _second = await one.waiting()
    await one.outbox.mark([leases[first.partition]], published=[first], parked=[])
    await one.emit(("a", 1), event_id=event_id)
    assert (await one.backlog()).waiting == 1
    assert await one.outbox.clean() == 0
    await one.sql(
        f"UPDATE hk_outbox SET published_at = now() - interval '{RETENTION.total_seconds()} s'"
        " WHERE published_at IS NOT NULL"
    )
    assert await one.outbox.clean() == 1
    assert len(await one.waiting()) == 1


async def test_an_empty_outbox_lags_by_nothing(replicas: tuple[Replica, Replica]) -> None:
    """Without rows the backlog is all zeros."""
    assert await replicas[0].backlog() == Backlog(waiting=0, parked=0, lag_seconds=0)
    assert repr(replicas[0].outbox).startswith("PostgresOutbox(")


async def test_two_relays_publish_everything_once_and_in_order(replicas: tuple[Replica, Replica]) -> None:
    """Writers in both processes share keys; each key's events arrive as they were committed."""
    broker = Broker()
    one, two = replicas
    async with Relay(one.outbox, broker), Relay(two.outbox, broker):
        for value in range(30):
            await asyncio.gather(
                *((one, two)[n % 2].emit((f"key {n}", value), (None, value)) for n in range(10))
            )
        await one.drained()
    assert len(broker.received) == len(set(broker.received)) == 600
    for n in range(10):
        assert broker.values[f"key {n}"] == list(range(30))


async def test_a_replica_takes_over_when_the_other_one_stops(replicas: tuple[Replica, Replica]) -> None:
    """Events of one key go on in order across the replicas."""
    broker = Broker()
    one, two = replicas
    async with Relay(two.outbox, broker):
        async with Relay(one.outbox, broker):
            await one.emit(("a", 1))
            await one.drained()
        await one.emit(("a", 2))
        await one.drained()
    assert broker.values == {"a": [1, 2]}


CRASHES = """
    import asyncio, os, sys
    from hybridkit.dataservice import Relay
    from hybridkit.dataservice._postgres._driver._pool import Pool
    from hybridkit.dataservice._postgres._outbox import PostgresOutbox

    url, confirmed, survive = sys.argv[1], sys.argv[2], int(sys.argv[3])

    class Publisher:
        async def publish_encoded(self, body, *, event_type, event_id, queue=None):
            with open(confirmed, "a") as file:
                print(event_id, file=file, flush=True)
            if len(open(confirmed).readlines()) == survive:
                os.kill(os.getpid(), 9)

    async def main():
        pool = Pool(url, pool_size=3, application_name="replica")
        async with Relay(PostgresOutbox(pool), Publisher()):
            await asyncio.sleep(60)

    asyncio.run(main())
"""


async def test_a_crash_between_confirm_and_mark_publishes_the_same_event_again(
    replicas: tuple[Replica, Replica], postgres_url: str, tmp_path: Path
) -> None:
    """After a SIGKILL behind the fifth confirm nothing is lost, the order holds, and ids identify duplicates."""
    one, _ = replicas
    ids = await one.emit(*(("a", value) for value in range(8)))
    confirmed = tmp_path / "confirmed"
    words = [sys.executable, "-c", textwrap.dedent(CRASHES), postgres_url, str(confirmed), "5"]
    crashed = await asyncio.to_thread(subprocess.run, words, timeout=60, check=False)
    assert crashed.returncode == -9
    before = [UUID(line) for line in confirmed.read_text().split()]
    assert before == ids[:5]
    await pass_lease_time(one)
    broker = Broker()
    async with Relay(one.outbox, broker):
        await one.drained()
    assert set(before + broker.received) == set(ids)
    assert broker.received == ids[ids.index(broker.received[0]) :]
    assert ids[4] in broker.received  # confirmed, never marked
