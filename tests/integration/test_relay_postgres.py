"""The relay on real PostgreSQL: several replicas, crashes at the worst moment, and the order of each key."""

import asyncio
import subprocess
import sys
import textwrap
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import orjson
import pytest
from sqlalchemy import text

from hybridkit.codec import now
from hybridkit.contract import Emission
from hybridkit.dataservice import Relay, migrate
from hybridkit.dataservice._postgres_database import Database
from hybridkit.dataservice._postgres_outbox import PostgresOutbox, add_emissions
from hybridkit.dataservice._single_outbox import Parked


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
        self.database = Database(url, pool_size=5, application_name="replica")
        self.outbox = PostgresOutbox(self.database)

    async def emit(self, *events: tuple[str | None, int]) -> list[UUID]:
        emissions = [emission(key, value) for key, value in events]
        async with self.database.session() as session:
            await add_emissions(session, emissions, service="api_service")
        self.outbox.wake()
        return [event.event_id for event in emissions]

    async def drained(self) -> None:
        async with asyncio.timeout(30):
            while (await self.outbox.backlog()).waiting:  # noqa: ASYNC110 - the relay may be in another process
                await asyncio.sleep(0.01)


def emission(key: str | None, value: int) -> Emission:
    return Emission(
        event_type="item.sold",
        event_id=uuid4(),
        timestamp=now(),
        key=key,
        request_id="the-request",
        data={"key": str(key), "value": value},
    )


@asynccontextmanager
async def replica_of(url: str) -> AsyncGenerator[Replica]:
    replica = Replica(url)
    try:
        yield replica
    finally:
        await replica.database.close()


@pytest.fixture
async def replicas(postgres_url: str) -> AsyncIterator[tuple[Replica, Replica]]:
    await migrate(postgres_url)
    async with replica_of(postgres_url) as one, replica_of(postgres_url) as two:
        yield one, two


async def test_the_lease_has_one_owner_at_a_time(replicas: tuple[Replica, Replica]) -> None:
    one, two = (replica.outbox for replica in replicas)
    first = await one.acquire("one")
    assert first is not None
    assert await two.acquire("two") is None
    renewed = await one.acquire("one")
    assert renewed is not None
    assert (renewed.fence, renewed.valid_until > first.valid_until) == (first.fence, True)
    await one.release("one")
    taken = await two.acquire("two")
    assert taken is not None
    assert taken.fence == first.fence + 1
    await one.release("one")  # it is not his any more
    assert await one.acquire("one") is None


async def test_marks_under_an_old_fence_count_for_nothing(replicas: tuple[Replica, Replica]) -> None:
    one, two = replicas
    [event_id] = await one.emit(("a", 1))
    [row] = await one.outbox.waiting(without=(), limit=10)
    old = await one.outbox.acquire("one")
    await one.outbox.release("one")
    new = await two.outbox.acquire("two")
    assert old is not None
    assert new is not None
    assert not await one.outbox.mark(old, published=[row.sequence], parked=[])
    assert [row.event_id for row in await two.outbox.waiting(without=(), limit=10)] == [event_id]
    assert await two.outbox.mark(new, published=[row.sequence], parked=[])
    assert not await two.outbox.waiting(without=(), limit=10)


async def test_what_waits_comes_in_order_and_without_some_keys(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    ids = await one.emit(("a", 1), ("b", 1), (None, 1), ("a", 2), ("c", 1))
    rows = await one.outbox.waiting(without=(), limit=4)
    assert [row.event_id for row in rows] == ids[:4]
    assert [row.lane for row in rows] == ["a", "b", str(ids[2]), "a"]
    rest = await one.outbox.waiting(without={"a", str(ids[2])}, limit=10)
    assert [row.event_id for row in rest] == [ids[1], ids[4]]


async def test_a_parked_row_keeps_its_reason(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    await one.emit(("a", 1), ("a", 2))
    lease = await one.outbox.acquire("one")
    rows = await one.outbox.waiting(without=(), limit=10)
    assert lease is not None
    await one.outbox.mark(lease, published=[], parked=[Parked(rows[0].sequence, "nobody wants it" * 100)])
    assert [row.sequence for row in await one.outbox.waiting(without=(), limit=10)] == [rows[1].sequence]
    backlog = await one.outbox.backlog()
    assert (backlog.waiting, backlog.parked, backlog.lag_seconds > 0) == (1, 1, True)


async def test_an_empty_outbox_lags_by_nothing(replicas: tuple[Replica, Replica]) -> None:
    backlog = await replicas[0].outbox.backlog()
    assert (backlog.waiting, backlog.parked, backlog.lag_seconds) == (0, 0, 0)
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
    from hybridkit.dataservice._postgres_database import Database
    from hybridkit.dataservice._postgres_outbox import PostgresOutbox

    url, confirmed, survive = sys.argv[1], sys.argv[2], int(sys.argv[3])

    class Publisher:
        async def publish_encoded(self, body, *, event_type, event_id, queue=None):
            with open(confirmed, "a") as file:
                print(event_id, file=file, flush=True)
            if len(open(confirmed).readlines()) == survive:
                os.kill(os.getpid(), 9)

    async def main():
        database = Database(url, pool_size=3, application_name="replica")
        async with Relay(PostgresOutbox(database), Publisher()):
            await asyncio.sleep(60)

    asyncio.run(main())
"""


async def test_a_crash_between_confirm_and_mark_publishes_the_same_event_again(
    replicas: tuple[Replica, Replica], postgres_url: str, tmp_path: Path
) -> None:
    """Killed with SIGKILL after its fifth confirm: nothing is lost, and the order holds; ids tell the twins."""
    one, _ = replicas
    ids = await one.emit(*(("a", value) for value in range(8)))
    confirmed = tmp_path / "confirmed"
    command = [sys.executable, "-c", textwrap.dedent(CRASHES), postgres_url, str(confirmed), "5"]
    crashed = await asyncio.to_thread(subprocess.run, command, timeout=60, check=False)
    assert crashed.returncode == -9
    before = [UUID(line) for line in confirmed.read_text().split()]
    assert before == ids[:5]
    async with one.database.session() as session:  # as if its ten seconds had passed
        await session.execute(text("UPDATE hk_leases SET expires_at = now() - interval '1 s'"))
    broker = Broker()
    async with Relay(one.outbox, broker):
        await one.drained()
    assert set(before + broker.received) == set(ids)
    assert broker.received == ids[ids.index(broker.received[0]) :]
    assert ids[4] in broker.received  # confirmed, never marked
