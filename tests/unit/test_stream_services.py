"""Data services that keep streams: what they refuse at import, grants, brokers, versions of events, their document."""

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase

from hybridkit.clients import PostgresDataClient
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.dataservice import Grant, StreamColumns, create_data_service
from hybridkit.dataservice._http._callers import Callers
from hybridkit.dataservice._postgres._streams._table import StreamTable
from hybridkit.dataservice._traced_store import TracedStore
from hybridkit.errors import (
    AccessDeniedError,
    DeclarationError,
    InvalidQueryError,
    InvalidRequestError,
    NotSupportedError,
)
from hybridkit.events import Event
from hybridkit.ids import new_id
from hybridkit.settings import MongoSettings, PostgresSettings
from hybridkit.streams import Stream
from hybridkit.testing import FakeDataService
from tests.helpers.accounts import ACCOUNTS, Account, Deposited


class Base(DeclarativeBase):
    pass


class AccountEvents(StreamColumns, Base):
    __tablename__ = "unit_account_events"


class Unindexed(StreamColumns, Base):
    __tablename__ = "unit_unindexed_events"
    __table_args__ = ()  # pyright: ignore[reportAssignmentType] # as who replaces the arguments would do


class Plain:
    """No table."""


@pytest.fixture
def fake() -> FakeDataService:
    return FakeDataService([], streams=[ACCOUNTS])


@pytest.fixture
async def postgres(fake: FakeDataService) -> AsyncIterator[PostgresDataClient]:
    async with fake.postgres_client(service="api_service") as client:
        yield client


def deposit(account: UUID) -> Deposited:
    return Deposited(account_id=account, amount=Decimal(1))


def test_mongo_keeps_no_streams() -> None:
    """A service on MongoDB says at import which database they need."""
    with pytest.raises(DeclarationError, match="accounts: streams of events need PostgreSQL"):
        create_data_service(MongoSettings, {}, streams={ACCOUNTS: AccountEvents})


@pytest.mark.parametrize(
    ("table", "said"),
    [(Plain, "no declarative class"), (Unindexed, "no index on"), (StreamColumns, "no decl")],
)
def test_a_table_that_does_not_fit_is_refused(table: Any, said: str) -> None:
    """The class has the columns, and the index that readers of the log follow."""
    with pytest.raises(DeclarationError, match=said):
        StreamTable(ACCOUNTS, table)


def test_a_stream_has_a_name_of_its_own() -> None:
    """Two streams of one name would have the same routes."""
    twin = Stream("accounts", state=Account, key="account_id")
    with pytest.raises(DeclarationError, match="declared twice"):
        FakeDataService([], streams=[ACCOUNTS, twin])


def test_a_grant_names_what_is_served() -> None:
    """A stream that the service doesn't have, and an `update` of one, can't be granted."""
    streams = {ACCOUNTS: AccountEvents}
    create_data_service(
        PostgresSettings, {}, streams=streams, grants={"a": Grant(read=[ACCOUNTS], append=[ACCOUNTS])}
    )
    create_data_service(PostgresSettings, {}, streams=streams, grants={"a": Grant(write=[ACCOUNTS])})
    for grant in (Grant(update=[ACCOUNTS]), Grant(append=[Stream("other", state=Account, key="account_id")])):
        with pytest.raises(DeclarationError, match="doesn't have"):
            create_data_service(PostgresSettings, {}, streams=streams, grants={"a": grant})


@pytest.mark.parametrize(
    ("grant", "may_read", "may_append"),
    [
        (Grant(read=[ACCOUNTS]), True, False),
        (Grant(append=[ACCOUNTS]), False, True),
        (Grant(write=[ACCOUNTS]), True, True),
        (Grant(write="*"), True, True),
        (Grant(create="*", emit=True), False, False),
    ],
)
async def test_readers_and_writers_need_their_grants(
    fake: FakeDataService, postgres: PostgresDataClient, grant: Grant, *, may_read: bool, may_append: bool
) -> None:
    """Appending, alone or in a transaction, and reading are granted separately."""
    fake._app.state.callers = Callers(None, {"api_service": grant})  # type: ignore[attr-defined]
    account = new_id()

    async def transact() -> None:
        async with postgres.transaction() as tx:
            tx.append(ACCOUNTS, account, deposit(account))

    for call in (lambda: postgres.append(ACCOUNTS, account, deposit(account)), transact):
        if may_append:
            await call()
        else:
            with pytest.raises(AccessDeniedError):
                await call()
    for read in (lambda: postgres.load(ACCOUNTS, account), lambda: postgres.log(ACCOUNTS)):
        if may_read:
            await read()
        else:
            with pytest.raises(AccessDeniedError):
                await read()


async def test_without_a_broker_published_streams_take_nothing(
    fake: FakeDataService, postgres: PostgresDataClient
) -> None:
    """Events that nothing would publish are refused, not kept in silence."""
    fake._app.state.can_emit = False  # type: ignore[attr-defined]
    account = new_id()
    with pytest.raises(NotSupportedError, match="publish=False"):
        await postgres.append(ACCOUNTS, account, deposit(account))


async def test_a_store_without_streams_says_so(fake: FakeDataService, postgres: PostgresDataClient) -> None:
    """Whatever is asked of it."""
    fake._store.streams = None  # type: ignore[assignment]
    account = new_id()
    for call in (postgres.load(ACCOUNTS, account), postgres.append(ACCOUNTS, account, deposit(account))):
        with pytest.raises(NotSupportedError, match="keeps no streams"):
            await call


async def test_the_log_is_read_by_a_hundred_types(
    postgres: PostgresDataClient, fake: FakeDataService
) -> None:
    """More are refused, and so is a parameter that is given twice."""
    types = ",".join(f"many.t{number}" for number in range(101))
    with pytest.raises(InvalidQueryError, match="at most 100 types"):
        await postgres._send(Intent(method="GET", path=f"/v1/accounts?types={types}", safe=True))
    with pytest.raises(InvalidQueryError, match="once"):
        await postgres._send(Intent(method="GET", path="/v1/accounts?types=a.b&types=a.c", safe=True))


async def test_a_traced_store_names_the_stream(fake: FakeDataService, postgres: PostgresDataClient) -> None:
    """Its span is that of an insert; reads have that of their request."""
    fake._app.state.store = TracedStore(  # type: ignore[attr-defined]
        fake._store, "postgresql://h:5432/d", {"accounts": "account_events"}
    )
    account = new_id()
    await postgres.append(ACCOUNTS, account, deposit(account))
    assert (await postgres.load(ACCOUNTS, account)).version == 1


class Moved1(Event, type="unit.moved", version=1, key="truck_id"):
    truck_id: str
    miles: int


class Moved2(Event, type="unit.moved", version=2, key="truck_id"):
    truck_id: str
    kilometres: float


class Moved(Event, type="unit.moved", version=3, key="truck_id"):
    truck_id: str
    metres: int


@Moved.upcast(from_version=1)
def in_kilometres(data: dict[str, Any]) -> dict[str, Any]:
    return {"truck_id": data["truck_id"], "kilometres": data["miles"] * 1.6}


@Moved.upcast(from_version=2)
def in_metres(data: dict[str, Any]) -> dict[str, Any]:
    return {"truck_id": data["truck_id"], "metres": int(data["kilometres"] * 1000)}


class Truck(BaseModel):
    metres: int = 0


async def test_three_versions_of_an_event_are_one_stream() -> None:
    """Older ones are brought to the newest by their upcasters, whatever code appended them."""
    old, newer, new = (Stream("trucks", state=Truck, key="truck_id") for _ in range(3))
    old.apply(Moved1)(lambda truck, _: truck)
    newer.apply(Moved2)(lambda truck, _: truck)
    new.apply(Moved)(lambda truck, event: Truck(metres=truck.metres + event.metres))
    async with FakeDataService([], streams=[new]).postgres_client(service="api_service") as client:
        await client.append(old, "t", Moved1(truck_id="t", miles=10))
        await client.append(newer, "t", Moved2(truck_id="t", kilometres=2.5))
        await client.append(new, "t", Moved(truck_id="t", metres=7))
        assert (await client.load(new, "t")).state.metres == 18_507
        versions = [event.event_version async for event in client.events(new, "t")]
    assert versions == [1, 2, 3]


async def test_a_state_that_is_too_large_is_no_snapshot(postgres: PostgresDataClient) -> None:
    """It is computed from its events each time."""

    class Noted(BaseModel):
        text: str = ""

    class Written(Event, type="unit.written", key="note_id"):
        note_id: str

    notes = Stream("notes", state=Noted, key="note_id", snapshot_every=1)
    notes.apply(Written)(lambda note, _: Noted(text="x" * 300_000))
    async with FakeDataService([], streams=[notes]).postgres_client(service="api_service") as client:
        await client.append(notes, await client.load(notes, "n"), Written(note_id="n"))
        assert (await client.load(notes, "n")).snapshot_version == 0


async def test_an_id_that_no_stream_has_is_refused_before_it_is_sent(
    postgres: PostgresDataClient, fake: FakeDataService
) -> None:
    """Whichever call it is given to."""
    for call in (postgres.load(ACCOUNTS, ""), postgres.append(ACCOUNTS, "..", deposit(new_id()))):
        with pytest.raises(InvalidRequestError, match="no id of a stream"):
            await call
    assert fake.requests == []


def test_the_document_describes_streams() -> None:
    """Every path of a stream is described, by schemas that exist and are valid."""
    app = create_data_service(PostgresSettings, {}, streams={ACCOUNTS: AccountEvents})
    document = app.openapi()
    assert {"/v1/accounts", "/v1/accounts/{id}", "/v1/accounts/{id}:append"} <= document["paths"].keys()
    schemas = document["components"]["schemas"]
    for name in ("StreamPage", "StreamLog", "RecordedEvent", "Append", "AppendResult"):
        Draft202012Validator.check_schema(schemas[name])
