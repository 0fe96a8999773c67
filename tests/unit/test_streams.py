"""Streams through the client, on the fake data service."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from uuid import UUID

import pytest

from hybridkit.clients import PostgresDataClient
from hybridkit.codec import now
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.contract import StreamEvent
from hybridkit.dataservice._store._streams import StreamAppend
from hybridkit.errors import (
    DeadlinePassedError,
    InvalidQueryError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    RejectedError,
    StaleVersionError,
    UnknownEventVersionError,
)
from hybridkit.events import Event
from hybridkit.ids import new_id
from hybridkit.observability import metrics
from hybridkit.retry import Retry
from hybridkit.streams import Loaded
from hybridkit.testing import FakeDataService
from tests.helpers.accounts import ACCOUNTS, Account, Deposited, NotEnoughError, Withdrawal, Withdrawn


@pytest.fixture
def fake() -> FakeDataService:
    return FakeDataService([], streams=[ACCOUNTS])


@pytest.fixture
async def postgres(fake: FakeDataService) -> AsyncIterator[PostgresDataClient]:
    async with fake.postgres_client(service="api_service") as client:
        yield client


def deposit(account: UUID, amount: int) -> Deposited:
    return Deposited(account_id=account, amount=Decimal(amount))


async def both(postgres: PostgresDataClient, *appends: tuple[Loaded[Account] | UUID, UUID]) -> None:
    """Append to two streams, or twice to one, in one transaction."""
    async with postgres.transaction() as tx:
        for loaded_or_id, account in appends:
            tx.append(ACCOUNTS, loaded_or_id, deposit(account, 10))


def balance(loaded: Loaded[Account]) -> tuple[int, int]:
    return int(loaded.state.balance), loaded.version


def snapshots(outcome: str) -> float:
    return metrics.stream_snapshots.labels("accounts", outcome)._value.get()  # type: ignore[no-any-return]


async def test_a_stream_without_events_has_the_first_state(postgres: PostgresDataClient) -> None:
    """Loading what was never appended to gives the model's defaults at version 0."""
    account = new_id()
    loaded = await postgres.load(ACCOUNTS, account)
    assert (loaded.state, loaded.version, loaded.id) == (Account(), 0, str(account))


async def test_what_was_appended_is_loaded(postgres: PostgresDataClient) -> None:
    """A load folds the events, of any version that the stream had."""
    account = new_id()
    assert await postgres.append(ACCOUNTS, account, deposit(account, 10), deposit(account, 5)) == 2
    assert await postgres.append(ACCOUNTS, account, deposit(account, 1), expected=2) == 3
    assert (await postgres.load(ACCOUNTS, account)).state.balance == 16
    assert (await postgres.load(ACCOUNTS, account, at_version=2)).state.balance == 15
    assert (await postgres.load(ACCOUNTS, account, at_version=0)).state.balance == 0
    with pytest.raises(NotFoundError, match="has 3 events"):
        await postgres.load(ACCOUNTS, account, at_version=4)


async def test_another_version_than_the_expected_one_is_refused(postgres: PostgresDataClient) -> None:
    """A loaded stream, or a number, has to be the version of now; the error has that one."""
    account = new_id()
    loaded = await postgres.load(ACCOUNTS, account)
    await postgres.append(ACCOUNTS, loaded, deposit(account, 10))
    for stale in (
        postgres.append(ACCOUNTS, loaded, deposit(account, 1)),
        postgres.append(ACCOUNTS, account, deposit(account, 1), expected=7),
    ):
        with pytest.raises(StaleVersionError) as refused:
            await stale
        assert refused.value.current == "1"
    assert (await postgres.load(ACCOUNTS, account)).version == 1


async def test_events_and_the_log_tell_who_appended_them(postgres: PostgresDataClient) -> None:
    """A recorded event has its place, its identity and the request that caused it."""
    account = new_id()
    event = deposit(account, 3)
    with bind(RequestContext(request_id="req-1", user_id="user-1")):
        await postgres.append(ACCOUNTS, account, event)
    [found] = [each async for each in postgres.events(ACCOUNTS, account)]
    assert (found.event_id, found.timestamp) == (event.event_id, event.timestamp)
    assert (found.request_id, found.user_id, found.caller) == ("req-1", "user-1", "api_service")
    assert (found.version, found.position, found.event) == (1, found.position, event)
    assert found.event.event_id == event.event_id
    page = await postgres.log(ACCOUNTS)
    assert [each.event for each in page.events] == [event]
    assert page.events[0].stream_id == str(account)


async def test_the_log_goes_on_behind_a_position(postgres: PostgresDataClient) -> None:
    """Pages follow each other without a gap, filtered by type or not, and an empty page keeps the position."""
    one, other = new_id(), new_id()
    for number in range(3):
        await postgres.append(ACCOUNTS, one, deposit(one, number + 1))
        await postgres.append(ACCOUNTS, other, Withdrawn(account_id=other, amount=Decimal(number)))
    first = await postgres.log(ACCOUNTS, page_size=4)
    assert (len(first.events), first.has_more) == (4, True)
    second = await postgres.log(ACCOUNTS, after=first.position)
    assert (len(second.events), second.has_more) == (2, False)
    last = await postgres.log(ACCOUNTS, after=second.position)
    assert (last.events, last.has_more, last.position) == ((), False, second.position)
    only = await postgres.log(ACCOUNTS, types=[Withdrawn])
    assert {each.event_type for each in only.events} == {"account.withdrawn"}
    assert (await postgres.log(ACCOUNTS, after=only.position, types=[Withdrawn])).events == ()


async def test_an_empty_log_has_no_position(postgres: PostgresDataClient) -> None:
    """A reader of an empty log begins at the beginning again."""
    assert await postgres.log(ACCOUNTS) == ((), None, False)


@pytest.mark.parametrize("after", ["7", "a-b-c", "1-2", "1-2-3-4"])
async def test_a_position_that_is_none_is_refused(postgres: PostgresDataClient, after: str) -> None:
    """Positions are opaque: one that no page gave is refused, with a pointer."""
    with pytest.raises(InvalidQueryError) as refused:
        await postgres.log(ACCOUNTS, after=after)
    assert refused.value.pointer == "/after"


async def test_too_many_events_are_refused_before_they_are_sent(
    postgres: PostgresDataClient, fake: FakeDataService
) -> None:
    """An append has 1 to 100 events, each small enough and of this stream."""
    account = new_id()
    with pytest.raises(InvalidRequestError, match="1 to 100 events, not 0"):
        await postgres.append(ACCOUNTS, account)
    with pytest.raises(InvalidRequestError, match="1 to 100 events, not 101"):
        await postgres.append(ACCOUNTS, account, *(deposit(account, 1) for _ in range(101)))
    with pytest.raises(InvalidRequestError, match="the account_id of Deposited"):
        await postgres.append(ACCOUNTS, account, deposit(new_id(), 1))
    huge = Deposited(account_id=account, amount=Decimal("1" * 70_000))
    with pytest.raises(PayloadTooLargeError, match="at most 65536"):
        await postgres.append(ACCOUNTS, account, huge)
    assert fake.requests == []


async def test_a_decision_is_made_on_the_state_of_now(postgres: PostgresDataClient) -> None:
    """A refusal of the decision ends it; no events leave the stream as it is."""
    account = new_id()
    await postgres.append(ACCOUNTS, account, deposit(account, 10))
    done = await postgres.decide(ACCOUNTS, account, Withdrawal(account, 7))
    assert balance(done) == (3, 2)
    with pytest.raises(NotEnoughError):
        await postgres.decide(ACCOUNTS, account, Withdrawal(account, 7))
    same = await postgres.decide(ACCOUNTS, account, lambda _: [])
    assert balance(same) == (3, 2)


async def test_a_decision_that_was_overtaken_is_made_again(
    postgres: PostgresDataClient, fake: FakeDataService
) -> None:
    """Where another append comes first, the function is called again, on what is true then."""
    account = new_id()
    await postgres.append(ACCOUNTS, account, deposit(account, 10))
    rival = StreamEvent(
        event_type="account.deposited",
        event_id=new_id(),
        timestamp=now(),
        data={"account_id": str(account), "amount": "1"},
    )
    seen: list[Decimal] = []

    def decide(state: Account) -> list[Event]:
        if not seen:
            append = StreamAppend(
                stream=ACCOUNTS, id=str(account), expected=None, events=(rival,), request_id="req-2"
            )
            fake._store.streams.append(append, caller="other_service")
        seen.append(state.balance)
        return [Withdrawn(account_id=account, amount=Decimal(7))]

    done = await postgres.decide(ACCOUNTS, account, decide)
    assert seen == [10, 11]
    assert balance(done) == (4, 3)


async def test_tasks_of_one_process_do_not_overtake_each_other(
    postgres: PostgresDataClient, fake: FakeDataService
) -> None:
    """Each decides in its turn, with one read and one append; what waits for its turn has a deadline."""
    account = new_id()
    decisions = [postgres.decide(ACCOUNTS, account, lambda _: [deposit(account, 1)]) for _ in range(10)]
    assert sorted(loaded.version for loaded in await asyncio.gather(*decisions)) == list(range(1, 11))
    assert len(fake.requests) == 20
    async with postgres._stream_calls._turn("accounts", str(account)):
        with pytest.raises(DeadlinePassedError, match="others decided"), bind(RequestContext().within(0.01)):
            await postgres.decide(ACCOUNTS, account, Withdrawal(account, 1))


async def test_a_decision_that_always_loses_ends(
    postgres: PostgresDataClient, fake: FakeDataService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last try its refusal is raised, and says how often it was tried."""
    quick = Retry.exponential(first_seconds=0.001, cap_seconds=0.001, attempts=3)
    monkeypatch.setattr("hybridkit.clients._streams._calls.LOST_RACES", quick)
    fake.faults.refuse(StaleVersionError("the stream has another version", current="9"), matching="*:append")
    account = new_id()
    with pytest.raises(StaleVersionError) as refused:
        await postgres.decide(ACCOUNTS, account, lambda _: [deposit(account, 1)])
    assert refused.value.__notes__ == ["given up after 3 tries"]
    assert sum(":append" in request for request in fake.requests) == 3


async def test_a_rerun_in_a_claim_finds_its_decision(postgres: PostgresDataClient) -> None:
    """The same work again gets the stream as its first run left it, although it could not decide so any more."""
    account = new_id()
    await postgres.append(ACCOUNTS, account, deposit(account, 10))
    calls = 0
    for _ in range(2):
        withdrawal = Withdrawal(account, 10)
        with bind(RequestContext(claim=Claim("worker:event:7"))):
            done = await postgres.decide(ACCOUNTS, account, withdrawal)
        assert balance(done) == (0, 2)
        calls += withdrawal.calls
        await postgres.append(ACCOUNTS, account, deposit(account, 1))
    assert calls == 1
    assert (await postgres.load(ACCOUNTS, account)).state.balance == 2


async def test_a_rerun_of_an_append_appends_nothing(postgres: PostgresDataClient) -> None:
    """In a claim an append has a derived key, and events without an identity get derived ids."""
    account = new_id()
    for _ in range(2):
        with bind(RequestContext(claim=Claim("worker:event:8"))):
            assert await postgres.append(ACCOUNTS, account, deposit(account, 10)) == 1
    assert (await postgres.load(ACCOUNTS, account)).version == 1


async def test_a_transaction_appends_with_other_operations(
    postgres: PostgresDataClient, fake: FakeDataService
) -> None:
    """The append of a transaction expects the loaded version, and tells the stream as the commit leaves it."""
    account, other = new_id(), new_id()
    loaded = await postgres.load(ACCOUNTS, account)
    async with postgres.transaction() as tx:
        after = tx.append(ACCOUNTS, loaded, deposit(account, 10))
        assert tx.append(ACCOUNTS, other, deposit(other, 1)) is None
    assert after is not None
    assert balance(after) == (10, 1)
    assert await postgres.load(ACCOUNTS, account) == after
    assert [each.event_type for each in fake.emitted] == ["account.deposited"] * 2
    with pytest.raises(StaleVersionError):
        await both(postgres, (loaded, account), (other, other))
    assert (await postgres.load(ACCOUNTS, other)).version == 1
    assert len((await postgres.log(ACCOUNTS)).events) == 2


async def test_a_transaction_appends_once_to_a_stream(postgres: PostgresDataClient) -> None:
    """Two appends to one stream are one operation with all events."""
    account = new_id()
    with pytest.raises(InvalidRequestError, match="put all events into one"):
        await both(postgres, (account, account), (account, account))


async def test_appended_events_are_published_in_the_order_of_their_stream(
    postgres: PostgresDataClient, fake: FakeDataService
) -> None:
    """Each event is emitted with the stream as its key, and with its version."""
    account = new_id()
    await postgres.append(ACCOUNTS, account, deposit(account, 1), deposit(account, 2))
    found = [(each.key, each.data["amount"], getattr(each, "stream_version", 0)) for each in fake.emitted]
    assert found == [(str(account), "1", 1), (str(account), "2", 2)]


async def test_a_snapshot_is_written_by_the_append_that_is_due(
    postgres: PostgresDataClient, fake: FakeDataService
) -> None:
    """After `snapshot_every` events a load begins with a snapshot; earlier versions are still computed."""
    account = new_id()
    for _ in range(7):
        await postgres.decide(ACCOUNTS, account, lambda _: [deposit(account, 1)])
    loaded = await postgres.load(ACCOUNTS, account)
    assert (*balance(loaded), loaded.snapshot_version) == (7, 7, 5)
    early = await postgres.load(ACCOUNTS, account, at_version=3)
    assert (*balance(early), early.snapshot_version) == (3, 3, 0)


@pytest.mark.parametrize("change", ["state", "digest", "foreign", "state_version"])
async def test_a_snapshot_that_does_not_fit_is_ignored_and_written_anew(
    postgres: PostgresDataClient, fake: FakeDataService, change: str
) -> None:
    """A changed, truncated, foreign or older snapshot costs time, never truth; the next append replaces it."""
    account, other = new_id(), new_id()
    kept = fake._store.streams.snapshots
    for each in (other, account):
        for number in range(6):
            loaded = await postgres.load(ACCOUNTS, each)
            await postgres.append(ACCOUNTS, loaded, deposit(each, number + 1))
    name = ("accounts", str(account))
    snapshot = kept[name].snapshot
    match change:
        case "state":
            snapshot = snapshot.model_copy(update={"state": '{"balance":"999","movements":5}'})
        case "digest":
            snapshot = snapshot.model_copy(update={"state": snapshot.state[:-4]})
        case "foreign":
            snapshot = kept["accounts", str(other)].snapshot
        case _:
            snapshot = snapshot.model_copy(update={"state_version": 2})
    kept[name] = kept[name]._replace(snapshot=snapshot)
    before = snapshots("ignored")
    loaded = await postgres.load(ACCOUNTS, account)
    assert (int(loaded.state.balance), loaded.snapshot_version) == (21, 0)
    assert snapshots("ignored") - before == (0 if change == "state_version" else 1)  # not even sent
    await postgres.append(ACCOUNTS, loaded, deposit(account, 1))
    assert (await postgres.load(ACCOUNTS, account)).snapshot_version == 7


async def test_an_event_of_newer_code_stops_the_reader(
    postgres: PostgresDataClient, fake: FakeDataService
) -> None:
    """An unknown version is never skipped: a load ends with it, and the log shows which event it is."""
    account = new_id()
    await postgres.append(ACCOUNTS, account, deposit(account, 1), deposit(account, 2))
    fake._store.streams.logs["accounts"][1]["event_version"] = 9
    with pytest.raises(UnknownEventVersionError, match="version 9"):
        await postgres.load(ACCOUNTS, account)
    page = await postgres.log(ACCOUNTS)
    assert page.events[0].event == deposit(account, 1)
    with pytest.raises(UnknownEventVersionError):
        _ = page.events[1].event


async def test_long_streams_are_read_in_pages(postgres: PostgresDataClient, fake: FakeDataService) -> None:
    """A load and an iteration over 1,050 events take two requests each, and miss none."""
    account = new_id()
    for _ in range(21):
        await postgres.append(ACCOUNTS, account, *(deposit(account, 1) for _ in range(50)))
    fake.requests.clear()
    assert (await postgres.load(ACCOUNTS, account)).state.balance == 1050
    assert len(fake.requests) == 2
    versions = [each.version async for each in postgres.events(ACCOUNTS, account)]
    assert versions == list(range(1, 1051))


async def test_a_mongo_service_refuses_streams() -> None:
    """A data service that keeps no streams says so, whoever asks."""
    fake = FakeDataService([])
    account = new_id()
    async with fake.postgres_client(service="api_service") as client:
        with pytest.raises(RejectedError):
            await client.append(ACCOUNTS, account, deposit(account, 1))
        with pytest.raises(InvalidRequestError, match="no such stream"):
            async with client.transaction() as tx:
                tx.append(ACCOUNTS, account, deposit(account, 1))
