"""After a failover the old primary is up and takes no writes: the service says so, leaves it, and finds the new one."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dev import Server
from hybridkit.errors import MisuseError, UnavailableError
from tests.helpers import until

EVENT = {
    "event_type": "item.made",
    "version": 1,
    "event_id": "1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc",
    "timestamp": "2026-01-01T00:00:00Z",
    "key": None,
    "request_id": "r-1",
    "user_id": None,
    "data": {},
}
OWNER = {"op": "create", "resource": "owners", "id": "o1", "data": {"id": "o1", "title": "t"}}


async def only_reads(url: str, *, on: bool) -> None:
    """Have the server refuse writes, or take them again, as a primary that was put aside does."""
    connection = await connect(
        url,
        timeout_seconds=10,
        command_seconds=30,
        application_name="the test",
        default_transaction_read_only="off",
    )
    try:
        setting = "SET default_transaction_read_only = on" if on else "RESET default_transaction_read_only"
        await connection.execute(f"ALTER SYSTEM {setting}")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


@pytest.fixture
async def primary(own_postgres_server: Server, run_service: Any, make_tables: Any) -> AsyncIterator[Any]:
    await make_tables(own_postgres_server.url)
    async with run_service(own_postgres_server.url) as service:
        yield service


async def test_a_server_that_only_reads_is_left_and_found_again(primary: Any) -> None:
    """The store is not ready though nobody writes, writes are retryable, and the relay waits, then goes on."""

    service = primary

    async def ready() -> bool:
        return bool((await service.get("/ready")).status_code == 200)

    async def not_ready() -> bool:
        return not await ready()

    item = await service.create("before")
    store = service.store
    before = [link for database in (store._pool, store._own_pool) for link in database._free]
    await only_reads(service.url, on=True)
    await until(not_ready)
    assert all(link not in store._pool._free for link in before)
    assert (await service.get(f"/v1/items/{item['id']}")).status_code == 200
    for answer in (
        await service.send("POST", "/v1/items", {"name": "one"}),
        await service.send("PATCH", f"/v1/items/{item['id']}", {"rank": 1}),
        await service.send("DELETE", f"/v1/items/{item['id']}"),
        await service.send("POST", "/v1/items:batch_create", {"items": [{"data": {"name": "b"}}] * 2}),
        await service.transact(OWNER, emit=[EVENT]),
        await service.transact(OWNER, isolation="serializable"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE"), answer.text
        assert answer.json()["retryable"]
        assert int(answer.headers["retry-after"]) >= 1
    assert store._pool._free == []
    for work in (store.clean(), store.outbox.renew_leases("replica"), store.outbox.retry()):
        with pytest.raises(UnavailableError):
            await work
    await only_reads(service.url, on=False)
    await until(ready)
    assert (await service.transact(OWNER, emit=[EVENT])).status_code == 200

    async def published() -> bool:
        return bool(service.publisher.published)

    await until(published)
    assert await store.clean() == 0


async def test_a_change_in_a_transaction_that_only_reads_is_a_mistake_in_the_code(service: Any) -> None:
    """PostgreSQL answers as after a failover, but the code is to blame, and the connection is used further."""
    store = service.store
    await service.create("before")
    with pytest.raises(MisuseError):
        async with store._pool.session(read_only=True) as session:
            await session.fetch("UPDATE items SET rank = 1")
    assert store._pool._free
