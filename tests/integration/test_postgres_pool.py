"""The pool below a data service: one round trip for a read, limits that follow the deadline, nothing left behind."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from hybridkit.context import RequestContext, bind
from hybridkit.dataservice._postgres._driver._connection import limit_fits, limit_for
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._store._pool_metrics import sample_pool
from hybridkit.dataservice._store._waiting_time import start_waiting_time
from hybridkit.errors import DeadlinePassedError, InvalidRequestError, MisuseError, OverloadedError
from hybridkit.observability import metrics
from tests.helpers import until

PID = "SELECT pg_backend_pid()"
LIMIT = "SELECT current_setting('statement_timeout')"


@pytest.fixture
async def pool(postgres_url: str) -> AsyncIterator[Pool]:
    """A pool of one connection: what is not given back is missed at once."""
    pool = Pool(postgres_url, pool_size=1, application_name="pool")
    yield pool
    await pool.close()


@pytest.fixture
async def other(postgres_url: str) -> AsyncIterator[Pool]:
    """Another pool, to look at the server from."""
    other = Pool(postgres_url, pool_size=1, application_name="other")
    yield other
    await other.close()


async def test_a_statement_stops_at_the_deadline_and_its_connection_goes_on(pool: Pool) -> None:
    """The server cancels the statement, so the next one runs in the same session."""
    [[pid]] = await pool.fetch(PID)
    started = time.monotonic()
    with bind(RequestContext().within(0.3)), pytest.raises(DeadlinePassedError):
        await pool.fetch("SELECT pg_sleep(30)")
    assert time.monotonic() - started < 5
    assert [[pid]] == [list(row) for row in await pool.fetch(PID)]


async def test_the_limit_is_told_only_where_it_must_change(pool: Pool) -> None:
    """Requests with about the same time share a setting of the session; a transaction has its own."""
    limits: list[str] = []
    for seconds in (3.0, 2.95, 3.1, 1.0):
        with bind(RequestContext().within(seconds)):
            limits += [row[0] for row in await pool.fetch(LIMIT)]
            async with pool.session() as session:
                limits += [row[0] for row in await session.fetch(LIMIT)]
    assert len(set(limits[:6])) == 1
    assert len(set(limits)) == 2
    with bind(RequestContext().within(0.5)):
        async with pool.session() as session:
            [[within]] = await session.fetch(LIMIT)
    assert within not in limits


@pytest.mark.parametrize("left", [0.0005, 0.01, 0.3, 1.0, 3.0, 10.0, 60.0])
def test_a_limit_ends_a_statement_before_its_connection_is_dropped(left: float) -> None:
    """The limit fits its own deadline at any scale, and neither a much later nor an earlier one."""
    assert limit_fits(limit_for(left), left)
    assert limit_for(left) >= 0.001
    assert not limit_fits(limit_for(left), left + 1 + left / 2)
    assert not limit_fits(left + 0.3, left)


async def test_a_cancelled_read_gives_its_connection_back(pool: Pool, other: Pool) -> None:
    """A pool of one connection serves the next read after a caller left in the middle of a statement."""
    reading = asyncio.create_task(pool.fetch("SELECT pg_sleep(30)"))
    sleeping = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    await until(lambda: other.fetch(sleeping))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert (await pool.fetch("SELECT 1"))[0][0] == 1


async def test_a_refused_statement_costs_no_connection(pool: Pool) -> None:
    """After refusals by the server and by the driver the same session goes on."""
    [[pid]] = await pool.fetch(PID)
    with pytest.raises(InvalidRequestError):
        await pool.fetch("SELECT 1 / $1", 0)
    with pytest.raises(InvalidRequestError):
        await pool.fetch("SELECT CAST($1 AS int)", 10**12)
    with pytest.raises(InvalidRequestError):
        async with pool.session() as session:
            await session.fetch("SELECT 1 / 0")
    assert [[pid]] == [list(row) for row in await pool.fetch(PID)]


async def test_both_ways_in_are_one_transaction(pool: Pool) -> None:
    """SQLAlchemy's statements, compiled text and a cursor see each other's work, and are undone together."""
    await pool.fetch("CREATE TABLE notes (n int)")
    with pytest.raises(KeyError):  # noqa: PT012 - the transaction is what fails
        async with pool.session() as session:
            await session.execute(text("INSERT INTO notes VALUES (1)"))
            await session.run(lambda connection: connection.execute(text("INSERT INTO notes VALUES (2)")))
            await session.fetch("INSERT INTO notes VALUES ($1)", 3)
            cursor = await session.cursor("SELECT n FROM notes ORDER BY n")
            assert [row[0] for row in await session.read(cursor, 10)] == [1, 2, 3]
            raise KeyError
    async with pool.session(isolation="serializable", read_only=True) as session:
        assert await session.execute(select(text("n")).select_from(text("notes"))) == []
        [[isolation]] = await session.fetch("SHOW transaction_isolation")
    assert isolation == "serializable"


async def test_somebody_elses_commit_ends_nothing(pool: Pool) -> None:
    """A `commit` on the connection that `run` lends is undone with the session."""
    await pool.fetch("CREATE TABLE notes (n int)")
    with pytest.raises(KeyError):  # noqa: PT012 - the transaction is what fails
        async with pool.session() as session:
            await session.execute(text("INSERT INTO notes VALUES (1)"))
            await session.run(lambda connection: connection.commit())
            raise KeyError
    assert await pool.fetch("SELECT n FROM notes") == []


async def test_a_swallowed_failure_is_no_success(pool: Pool) -> None:
    """PostgreSQL answers a commit of what has failed by undoing it, without an error."""
    await pool.fetch("CREATE TABLE notes (n int)")
    with pytest.raises(MisuseError, match="undid"):  # noqa: PT012 - the transaction is what fails
        async with pool.session() as session:
            await session.execute(text("INSERT INTO notes VALUES (1)"))
            with pytest.raises(DBAPIError):
                await session.execute(text("SELECT no_such_column"))
    assert await pool.fetch("SELECT n FROM notes") == []


async def test_failures_of_a_cursor_are_typed(pool: Pool) -> None:
    """Opening a cursor and reading from it raise the same errors as a statement."""
    with pytest.raises(InvalidRequestError):
        async with pool.session() as session:
            await session.cursor("SELECT CAST($1 AS int)", 10**12)
    with pytest.raises(InvalidRequestError):
        async with pool.session() as session:
            await session.read(await session.cursor("SELECT 1 / (n - 1) FROM generate_series(0, 2) n"), 3)


async def test_nobody_waits_for_long(pool: Pool) -> None:
    """With all connections in use a caller is refused at its deadline; without time it does not wait at all."""
    async with pool.session():
        with bind(RequestContext().within(0.05)), pytest.raises(OverloadedError):
            await pool.fetch("SELECT 1")
    with bind(RequestContext().within(0)), pytest.raises(DeadlinePassedError):
        await pool.fetch("SELECT 1")


async def test_a_request_knows_how_long_it_has_waited(pool: Pool) -> None:
    """The times of statements and sessions add up in the `Server-Timing` header."""
    waited = start_waiting_time()
    await pool.fetch("SELECT pg_sleep(0.02)")
    once = waited.seconds
    async with pool.session() as session:
        await session.fetch("SELECT pg_sleep(0.02)")
    assert once >= 0.02
    assert waited.seconds >= once + 0.02
    assert waited.header == f"db;dur={waited.seconds * 1000:.1f}"
    assert repr(waited).startswith("WaitingTime(0.")


async def test_a_session_without_statements_asks_nothing(pool: Pool) -> None:
    """A transaction begins with its first statement, so an empty session leaves nothing to end."""
    async with pool.session() as session:
        assert session.is_clean
    assert repr(pool) == "Pool(application_name='pool', pool_size=1)"


async def test_what_comes_back_after_the_end_is_closed(postgres_url: str, other: Pool) -> None:
    """A connection in use while the pool closes is closed once it is given back."""
    pool = Pool(postgres_url, pool_size=1, application_name="late")
    async with pool.session() as session:
        await session.fetch("SELECT 1")
        await pool.close()
    await pool.close()
    query = "SELECT WHERE NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'late')"
    await until(lambda: other.fetch(query))


async def test_a_pool_counts_who_works_and_who_waits(pool: Pool) -> None:
    """Also when work fails, is cancelled, or waits in vain; the metrics are sampled from it."""
    async with pool.session() as session:
        await session.fetch(PID)
        waiting = asyncio.create_task(pool.fetch(PID))
        await until(lambda: pool.waiting)
        sample_pool("counted", pool)
        shown = [
            gauge.labels("counted")._value.get()
            for gauge in (
                metrics.database_pool_limit,
                metrics.database_pool_in_use,
                metrics.database_pool_waiting,
            )
        ]
        waiting.cancel()
        await asyncio.wait([waiting])
        with bind(RequestContext().within(0.2)), pytest.raises((OverloadedError, DeadlinePassedError)):
            await pool.fetch(PID)
    assert shown == [1, 1, 1]
    with pytest.raises(Exception, match="nowhere"):
        await pool.fetch("SELECT 1 FROM nowhere", translate=lambda _: None)
    running = asyncio.create_task(pool.fetch("SELECT pg_sleep(60)"))
    await until(lambda: pool.in_use)
    running.cancel()
    await asyncio.wait([running])
    await until(lambda: not pool.in_use)
    assert pool.waiting == 0
