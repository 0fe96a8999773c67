"""What goes wrong below a data service: typed answers in time, nothing done twice or by halves, and recovery."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import func, select

from hybridkit.dataservice._postgres import _keys, _writer
from hybridkit.dataservice._postgres._driver import _pool
from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.dataservice._postgres._single_statement import SingleStatement
from hybridkit.errors import ConflictError, DeadlinePassedError, UnavailableError
from hybridkit.testing import FaultProxy
from tests.helpers import until

ITEM = "1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"
PATH = f"/v1/items/{ITEM}"
HERE = "datname = current_database()"  # the server has databases of other tests too
WAITS = f"wait_event_type = 'Lock' AND {HERE}"
LOCK = "SELECT 1 FROM items WHERE name = $1 FOR UPDATE"


def verdict(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "")


async def recovers(service: Any) -> None:
    """Wait until new connections have replaced the broken ones; the first calls may still find those."""
    for path in ("/v1/items", "/ready"):
        await until(partial(_is_well, service, path))


async def _is_well(service: Any, path: str) -> bool:
    return bool((await service.get(path)).status_code == 200)


# ── deadlines ────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_is_done_after_the_deadline(service: Any) -> None:
    """A request whose time is over reads nothing and writes nothing."""
    for method, path, body in (("GET", "/v1/items", None), ("POST", "/v1/items", {"name": "pen"})):
        answer = await service.send(method, path, body, x_request_timeout="0")
        assert verdict(answer) == (504, "DEADLINE_PASSED")
    assert (await service.get("/v1/items")).json()["items"] == []


async def test_the_deadline_reaches_the_database(service: Any) -> None:
    """The server itself stops the statement, and the connection serves the next request."""
    await service.create("pen", id=ITEM)
    async with service.holding(LOCK, "pen"):
        started = time.monotonic()
        answer = await service.send("PATCH", PATH, {"rank": 1}, x_request_timeout="0.3")
        assert verdict(answer) == (504, "DEADLINE_PASSED")
        assert time.monotonic() - started < 5
        assert not await service.sql(f"SELECT 1 FROM pg_stat_activity WHERE {WAITS}")
    assert (await service.get(PATH)).json()["version"] == 1


async def test_each_statement_has_what_is_left(service: Any) -> None:
    """A transaction of many statements ends at the deadline too."""
    limits: set[str] = set()
    async with service.store._pool.session() as session:
        for _ in range(3):
            [[limit]] = await session.execute(select(func.current_setting("statement_timeout")))
            limits.add(limit)
            session._connection.deadline -= 3
        session._connection.deadline = 0.0
        with pytest.raises(DeadlinePassedError):
            await session.execute(select(1))
    assert len(limits) == 3


async def test_the_driver_has_a_limit_of_its_own(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends what neither the server nor the timer ends, and the connection is not used again."""
    monkeypatch.setattr(_pool, "connect", partial(_connect_impatiently, connect))
    pool = _pool.Pool(service.url, pool_size=1, application_name="impatient")
    sleep = select(func.pg_sleep(5))
    with pytest.raises(UnavailableError):
        async with pool.session() as session:
            await session.execute(sleep)
    with pytest.raises(UnavailableError):
        async with pool.session() as session:
            await session.run_sync(lambda connection: connection.execute(sleep))
    async with pool.session() as session:
        assert (await session.execute(select(1)))[0][0] == 1
        assert repr(session).startswith("Session(")
    await pool.close()


async def _connect_impatiently(connect: Any, url: str, **options: Any) -> Any:
    return await connect(url, **{**options, "command_seconds": 0.2})


async def test_a_caller_that_leaves_leaves_nothing_behind(service: Any) -> None:
    """A caller that is cancelled while it waits for a lock has its transaction undone and its connection freed."""
    await service.create("pen", id=ITEM)
    async with service.holding(LOCK, "pen"):
        calls = [asyncio.create_task(service.send("PATCH", PATH, {"rank": 1})) for _ in range(10)]
        await service.until(f"SELECT 1 WHERE (SELECT count(*) FROM pg_stat_activity WHERE {WAITS}) > 9")
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await service.until(f"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE {WAITS})")
        assert (await service.get(PATH)).json()["version"] == 1
    assert (await service.send("PATCH", PATH, {"rank": 1})).status_code == 200


async def test_a_caller_that_leaves_while_connecting_leaves_no_connection(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is opened to its end and closed, and the pool has room again."""
    gate = asyncio.Event()

    async def slowly(url: str, **options: Any) -> Any:
        await gate.wait()
        return await connect(url, **options)

    monkeypatch.setattr(_pool, "connect", slowly)
    pool = _pool.Pool(service.url, pool_size=1, application_name="leaver")

    async def work() -> list[int]:
        async with pool.session() as session:
            return [row[0] for row in await session.execute(select(1))]

    leaving = asyncio.create_task(work())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait({leaving})
    gate.set()
    assert await work() == [1]
    assert leaving.cancelled()
    await pool.close()
    await service.until(
        "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE application_name = 'leaver')"
    )


# ── too much at once ─────────────────────────────────────────────────────────────────────────────


async def test_a_full_pool_says_so_and_readiness_stays(service: Any) -> None:
    """Requests beyond the pool are refused with `Retry-After`, and `/ready` has connections of its own."""
    await service.create("pen", id=ITEM)
    async with service.holding(LOCK, "pen") as other:
        calls = [asyncio.create_task(service.send("PATCH", PATH, {"rank": n})) for n in range(10)]
        await service.until(f"SELECT 1 WHERE (SELECT count(*) FROM pg_stat_activity WHERE {WAITS}) > 9")
        answer = await service.get(PATH)
        assert verdict(answer) == (503, "OVERLOADED")
        assert answer.headers["retry-after"] == "1"
        assert (await service.get("/ready")).status_code == 200
        await other.execute("ROLLBACK")
        assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}
    assert (await service.get(PATH)).json()["version"] == 11


async def test_a_deadlock_is_resolved_inside(service: Any) -> None:
    """PostgreSQL ends our transaction; it is done again, and the caller never knows."""
    for name in ("a", "b"):
        await service.create(name, id=f"{ITEM[:-1]}{name}")
    both = [
        {"op": "update", "resource": "items", "id": f"{ITEM[:-1]}{name}", "data": {"rank": 1}}
        for name in ("a", "b")
    ]
    async with service.holding(LOCK, "b") as other:
        call = asyncio.create_task(service.transact(*both))
        await service.until(f"SELECT 1 FROM pg_stat_activity WHERE {WAITS}")
        # Now it waits for b and has a; the other transaction asks for a, and has patience.
        await other.execute("SET LOCAL deadlock_timeout = '60s'")
        await other.execute(LOCK, "a")
        await other.execute("ROLLBACK")
        assert (await call).status_code == 200
    assert [row["rank"] for row in await service.sql("SELECT rank FROM items")] == [1, 1]


async def test_a_lost_race_is_run_again(service: Any) -> None:
    """Above `read_committed` a row that changed meanwhile ends the transaction."""
    await service.create("pen", id=ITEM)
    sell = {"op": "update", "resource": "items", "id": ITEM, "increment": {"quantity": 1}}
    answers = await asyncio.gather(
        *(
            service.transact_insistently(sell, isolation=isolation)
            for isolation in ("repeatable_read", "serializable") * 2
        )
    )
    assert [answer.status_code for answer in answers] == [200] * 4
    assert (await service.get(PATH)).json()["quantity"] == 4


async def test_races_are_lost_three_times_and_no_more(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that always loses is tried four times and then answered with a retryable 409."""
    tries = 0

    async def lose(*_: Any) -> None:
        nonlocal tries
        tries += 1
        raise ConflictError("lost")

    monkeypatch.setattr(_writer, "apply", lose)
    answer = await service.send("PUT", PATH, {"name": "pen"})
    assert verdict(answer) == (409, "SERIALIZATION_FAILURE")
    assert answer.json()["retryable"] is True
    assert tries == 4


# ── connections ──────────────────────────────────────────────────────────────────────────────────


async def test_idle_connections_that_the_server_closed_are_not_noticed(service: Any) -> None:
    """A closed connection is replaced before a request uses it."""
    await asyncio.gather(*(service.get("/v1/items") for _ in range(20)))
    await service.sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        f" WHERE application_name = 'db_postgres_service' AND {HERE}"
    )
    answers = await asyncio.gather(*(service.get("/v1/items") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}


async def test_a_connection_lost_in_a_statement_is_unavailable(service: Any) -> None:
    """The caller gets a 503 with `Retry-After`, and the next request has a new connection."""
    await service.create("pen", id=ITEM)
    async with service.holding(LOCK, "pen"):
        call = asyncio.create_task(service.send("PATCH", PATH, {"rank": 1}))
        await service.until(f"SELECT 1 FROM pg_stat_activity WHERE {WAITS}")
        await service.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {WAITS}")
        answer = await call
        assert verdict(answer) == (503, "UNAVAILABLE")
        assert answer.headers["retry-after"] == "1"
    assert (await service.send("PATCH", PATH, {"rank": 1})).status_code == 200


async def test_a_table_that_changes_below_is_a_reason_to_try_again(service: Any) -> None:
    """PostgreSQL refuses plans that were prepared for the old table, so the next try makes new ones."""
    await service.create("pen", id=ITEM)
    await asyncio.gather(*(service.get(PATH) for _ in range(20)))
    await service.sql("ALTER TABLE items ALTER COLUMN rank TYPE bigint")
    answers = [await service.get(PATH) for _ in range(40)]
    assert {verdict(answer) for answer in answers} <= {(200, ""), (503, "UNAVAILABLE")}
    assert answers[-1].status_code == 200


@pytest.fixture
async def proxied(postgres_url: str, service: Any, run_service: Any) -> AsyncIterator[tuple[Any, FaultProxy]]:
    """A second data service, on the far side of a network that can break."""
    parts = urlsplit(postgres_url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 5432) as proxy,
        run_service(proxy.url_for(postgres_url)) as far,
    ):
        yield far, proxy
        proxy.let_pass()


def before_commit(monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
    """Have something happen when all is written and the commit comes next, or a statement that commits itself; once."""
    record_key, write_by_statement = _keys.record_key, SingleStatement.write

    async def record(*arguments: Any) -> None:
        await record_key(*arguments)
        act()

    async def write(*arguments: Any) -> Any:
        act()
        return await write_by_statement(*arguments)

    def act() -> None:
        monkeypatch.setattr(_writer, "record_key", record_key)
        monkeypatch.setattr(SingleStatement, "write", write_by_statement)
        action()

    monkeypatch.setattr(_writer, "record_key", record)
    monkeypatch.setattr(SingleStatement, "write", write)


WRITES = [("POST", "/v1/items"), ("PUT", PATH)]
"""One is a single statement, which commits itself; the other is a transaction."""


@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_a_lost_answer_to_a_commit_is_found_again_by_its_key(
    proxied: tuple[Any, FaultProxy], monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    """The outcome is unknown at first; the same key then replays what the commit did."""
    far, proxy = proxied
    await far.create("ink")  # prepares the statement, which takes a round trip of its own
    before_commit(monkeypatch, lambda: proxy.cut("to_client", at_byte=0))
    answer = await far.send(method, path, {"name": "pen"}, key="k")
    assert verdict(answer) == (504, "OUTCOME_UNKNOWN")
    assert answer.json()["retryable"] is True
    proxy.let_pass()
    await recovers(far)
    again = await far.send(method, path, {"name": "pen"}, key="k")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")


@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_a_commit_that_never_arrived_is_done_by_the_next_call(
    proxied: tuple[Any, FaultProxy], monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    """Nothing was recorded under the key, so the same call is done and not replayed."""
    far, proxy = proxied
    await far.get("/v1/items")
    before_commit(monkeypatch, proxy.swallow)
    started = time.monotonic()
    answer = await far.send(method, path, {"name": "pen"}, key="k", x_request_timeout="1")
    assert verdict(answer) == (504, "DEADLINE_EXCEEDED")
    assert time.monotonic() - started < 8
    proxy.let_pass()
    await recovers(far)
    again = await far.send(method, path, {"name": "pen"}, key="k")
    assert again.status_code == 201
    assert "idempotency-replayed" not in again.headers


async def test_a_silent_network_is_bounded(proxied: tuple[Any, FaultProxy]) -> None:
    """Waiting for an answer, for a connection and for a rollback all end in time."""
    far, proxy = proxied
    await asyncio.gather(*(far.get("/v1/items") for _ in range(5)))
    proxy.freeze()
    started = time.monotonic()
    answers = await asyncio.gather(
        *(far.send("POST", "/v1/items", {"name": f"{n}"}, x_request_timeout="0.5") for n in range(15))
    )
    assert {answer.status_code for answer in answers} <= {503, 504}
    assert time.monotonic() - started < 10
    assert (await far.get("/ready")).status_code == 503
    proxy.let_pass()
    await recovers(far)


@pytest.mark.real_server
async def test_a_frozen_server_is_bounded(
    own_postgres_server: Any, run_service: Any, make_tables: Any
) -> None:
    """Reads and writes end near the caller's deadline though the server never answers, and work once it does."""
    await make_tables(own_postgres_server.url)
    async with run_service(own_postgres_server.url) as service:
        await service.create("pen")
        own_postgres_server.freeze()
        started = time.monotonic()
        read, written = await asyncio.gather(
            service.get("/v1/items", x_request_timeout="0.5"),
            service.send("POST", "/v1/items", {"name": "ink"}, key="k", x_request_timeout="0.5"),
        )
        assert {read.status_code, written.status_code} <= {503, 504}
        assert time.monotonic() - started < 8
        own_postgres_server.resume()
        await recovers(service)
        assert (await service.send("POST", "/v1/items", {"name": "ink"}, key="k")).status_code == 201


@pytest.mark.real_server
async def test_a_killed_server_is_unavailable_until_it_is_back(
    own_postgres_server: Any, run_service: Any, make_tables: Any
) -> None:
    """Requests and readiness fail, health does not, and the service recovers by itself."""
    await make_tables(own_postgres_server.url)
    async with run_service(own_postgres_server.url) as service:
        record = await service.create("pen")
        own_postgres_server.kill()
        for _ in range(3):
            assert verdict(await service.get("/v1/items")) == (503, "UNAVAILABLE")
        assert (await service.get("/ready")).status_code == 503
        assert (await service.get("/health")).status_code == 200
        await asyncio.to_thread(own_postgres_server.restart)
        await recovers(service)
        assert (await service.get(f"/v1/items/{record['id']}")).json() == record


async def test_a_refused_write_holds_nothing(service: Any) -> None:
    """Its connection comes back to the pool without a transaction."""
    await service.create("pen", id=ITEM)
    assert (await service.send("PATCH", PATH, {"name": None})).status_code == 422
    [row] = await service.sql(
        f"SELECT count(*) AS n FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND {HERE}"
        " AND application_name = 'db_postgres_service'"
    )
    assert row["n"] == 0
