"""The short form of the proof of streams (`tests/proofs/streams.py`, `make streams`)."""

import pytest

from hybridkit.dataservice._postgres._driver._connection import connect
from hybridkit.errors import UnavailableError
from tests.proofs.streams import (
    application,
    make_tables,
    prove_crash_points,
    prove_deciders,
    prove_late_commits,
    prove_restore,
)

pytestmark = pytest.mark.real_server


@pytest.fixture
async def url(postgres_url: str) -> str:
    await make_tables(postgres_url)
    return postgres_url


async def test_readers_of_the_log_miss_no_late_commit(url: str) -> None:
    """Every reader gets each event once and in order, and a reader by position misses some."""
    found = await prove_late_commits(url, events=300, writers=8, readers=2, share=0.3, seconds=0.03)
    assert all(reader.holds for reader in found.readers), found
    assert found.naive.skipped > 0, found


async def test_many_decide_on_one_stream(url: str) -> None:
    """No decision is lost or made on an old state: versions have no hole, and the balance is never negative."""
    found = await prove_deciders(url, writers=6, decides=5, money=20)
    assert (found.withdrawn, found.refused, found.versions, int(found.lowest)) == (20, 10, True, 0)


async def test_a_worker_that_is_stopped_anywhere_has_each_effect_once(url: str) -> None:
    """Before and after each request of an append, a decision and a transaction."""
    assert await prove_crash_points(url) > 6


async def test_a_restored_log_goes_on(url: str) -> None:
    """After the numbers of transactions have begun anew, a reader goes on where it was and misses nothing."""
    assert list(await prove_restore(url)) == [1, 2, 3, 4, 5, 6, 7, 8]


async def test_a_service_that_runs_while_its_database_is_restored_is_not_ready(url: str) -> None:
    """It says what to do, and does it by itself at its next start."""
    app = application(url)
    async with app.router.lifespan_context(app):
        store = app.state.store
        await store.check()
        connection = await connect(url, timeout_seconds=10, command_seconds=60)
        await connection.execute(
            "INSERT INTO account_events (stream_id, version, xid, event_id, event_type, event_version, data,"
            " occurred_at, caller, request_id) VALUES ('a', 1, 1000000000, gen_random_uuid(), 'account.deposited', 1,"
            " '{}', now(), 'test', 'r')"
        )
        await connection.close()
        with pytest.raises(UnavailableError, match="hybridkit streams rebase"):
            await store.check()
    again = application(url)
    async with again.router.lifespan_context(again):
        await again.state.store.check()
