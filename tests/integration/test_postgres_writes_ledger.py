"""A ledger: what was acknowledged is there once, whatever happens to PostgreSQL; what is unknown, its key decides."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import httpx
import pytest

from hybridkit.clients import PostgresDataClient
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.errors import OutcomeUnknownError, TemporaryError
from hybridkit.events import Event
from tests.helpers import until

WRITERS = 6
FAULTS = 3


class EntryMade(Event, type="entry.made", key="counter_id"):
    counter_id: UUID
    number: int


class Ledger:
    """Writes numbered entries, each under a key of its own, and notes what became of them."""

    def __init__(self, client: PostgresDataClient, items: Any, counter: Any) -> None:
        self.acknowledged: set[int] = set()
        self.open: set[int] = set()
        self._client = client
        self._items = items
        self._counter = counter
        self._next = 0

    async def write(self, number: int) -> None:
        """By turns a single statement, a transaction that shows when it is done twice, and one with an event."""
        with bind(RequestContext(claim=Claim(f"ledger:entry:{number}")).within(2)):
            entry = self._items.create(name=f"entry {number}")
            if number % 3 == 0:
                await self._client.create(self._items, entry)
                return
            async with self._client.transaction() as tx:
                tx.create(self._items, entry)
                tx.emit(EntryMade(counter_id=self._counter, number=number))
                if number % 3 == 1:
                    tx.update(self._items, self._counter, increment={"quantity": 1})

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            number = self._next
            self._next += 1
            try:
                await self.write(number)
            except (TemporaryError, OutcomeUnknownError):
                self.open.add(number)
            else:
                self.acknowledged.add(number)

    async def more(self, count: int) -> None:
        """Wait until that many more are acknowledged."""
        wanted = len(self.acknowledged) + count
        await until(lambda: len(self.acknowledged) >= wanted)


async def insist(work: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(60):
        while True:
            try:
                return await work()
            except (TemporaryError, OutcomeUnknownError):
                await asyncio.sleep(0.1)


async def restart(server: Any) -> None:
    server.kill()
    await asyncio.to_thread(server.restart)


async def freeze(server: Any) -> None:
    """Longer than the writers wait."""
    server.freeze()
    await asyncio.sleep(3)
    server.resume()


@pytest.mark.real_server
@pytest.mark.parametrize("fault", [restart, freeze])
async def test_nothing_is_lost_or_done_twice(
    own_postgres_server: Any, run_service: Any, make_tables: Any, fault: Callable[[Any], Awaitable[None]]
) -> None:
    """Two replicas and six writers keep every promise while PostgreSQL is killed or frozen three times."""
    url = own_postgres_server.url
    await make_tables(url)
    async with AsyncExitStack() as stack:
        services = [await stack.enter_async_context(run_service(url)) for _ in range(2)]
        clients = [
            await stack.enter_async_context(
                PostgresDataClient(
                    "http://data", service="api_service", transport=httpx.ASGITransport(service.app)
                )
            )
            for service in services
        ]
        items = services[0].items
        counter = await clients[0].create(items, items.create(name="counter"))
        ledgers = [Ledger(client, items, counter.id) for client in clients]
        for number, ledger in enumerate(ledgers):
            ledger._next = number * 1_000_000
        stop = asyncio.Event()
        writers = [asyncio.create_task(ledger.run(stop)) for ledger in ledgers for _ in range(WRITERS // 2)]
        for _ in range(FAULTS):
            await ledgers[0].more(20)
            await fault(own_postgres_server)
        for ledger in ledgers:
            await ledger.more(20)
        stop.set()
        await asyncio.gather(*writers)
        acknowledged, unknown = (
            {number for ledger in ledgers for number in getattr(ledger, kind)}
            for kind in ("acknowledged", "open")
        )
        found = [
            row["name"] for row in await services[0].sql("SELECT name FROM items WHERE name <> 'counter'")
        ]
        assert len(found) == len(set(found))
        assert {f"entry {number}" for number in acknowledged} <= set(found)
        assert set(found) <= {f"entry {number}" for number in acknowledged | unknown}
        for number in (*unknown, *sorted(acknowledged)[:50]):
            await insist(lambda number=number: ledgers[1].write(number))  # type: ignore[misc]
        every = acknowledged | unknown
        [row] = await services[0].sql(
            "SELECT (SELECT quantity FROM items WHERE name = 'counter') AS counted,"
            " (SELECT count(*) FROM items) - 1 AS entries, (SELECT count(*) FROM hk_outbox) AS events,"
            " (SELECT count(*) FROM hk_keys) - 1 AS keys"
        )
        assert dict(row) == {
            "counted": sum(number % 3 == 1 for number in every),
            "entries": len(every),
            "events": sum(number % 3 > 0 for number in every),
            "keys": len(every),
        }


async def test_twenty_calls_with_one_key_through_clients_of_two_replicas(service: Any, replica: Any) -> None:
    """One call creates the record, and nineteen get it as a replay, without an error."""
    async with AsyncExitStack() as stack:
        replays = 0

        async def note(response: httpx.Response) -> None:
            nonlocal replays
            replays += response.headers.get("idempotency-replayed") == "true"

        clients: list[PostgresDataClient] = []
        for each in (service, replica):
            http = httpx.AsyncClient(
                transport=httpx.ASGITransport(each.app),
                base_url="http://data",
                event_hooks={"response": [note]},
            )
            await stack.enter_async_context(http)
            client = PostgresDataClient("http://data", service="api_service", transport=http)
            clients.append(await stack.enter_async_context(client))

        async def create(number: int) -> Any:
            with bind(RequestContext(claim=Claim("twenty:calls:1"))):
                made = service.items.create(name="pen")
                return await insist(lambda: clients[number % 2].create(service.items, made, step="pen"))

        records = await asyncio.gather(*(create(number) for number in range(20)))
    assert len({(record.id, record.etag) for record in records}) == 1
    assert replays == 19
    assert len(await service.sql("SELECT FROM items")) == 1
