"""The audit trail over the contract's routes, on records in memory."""

from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from hybridkit.clients import PostgresDataClient
from hybridkit.codec import Timestamp, now
from hybridkit.context import RequestContext, bind
from hybridkit.dataservice import CallContext, Grant
from hybridkit.dataservice._http._audit._routes import AuditRoutes
from hybridkit.dataservice._http._callers import Callers, check_grants
from hybridkit.dataservice._memory._audit import MemoryAudit
from hybridkit.errors import (
    AccessDeniedError,
    DeclarationError,
    InvalidRequestError,
    ResponseError,
    StaleVersionError,
)
from hybridkit.resources import AUDIT, AuditEntry, Call, Change, Record, Resource
from hybridkit.testing import FakeDataService, VirtualClock


class NewAccount(BaseModel):
    email: str
    password_hash: str = "hash"
    pin: int = 0
    balance: Decimal = Decimal(0)
    big: int = 0
    due_at: Timestamp | None = None
    token: bytes | None = None


class Account(NewAccount, Record):
    pass


class AccountChanges(BaseModel):
    email: str | None = None
    password_hash: str | None = None
    pin: int | None = None
    balance: Decimal | None = None
    big: int | None = None
    due_at: Timestamp | None = None
    token: bytes | None = None


class Renamed(BaseModel):
    email: str


def accounts(name: str, **options: Any) -> Resource[Account, NewAccount, AccountChanges]:
    return Resource(name, record=Account, create=NewAccount, update=AccountChanges, **options)


HIDING: dict[str, Any] = {"audited": True, "audit_hide": ("password_hash", "pin")}
ACCOUNTS = accounts("accounts", **HIDING)
SOFT = accounts("soft_accounts", soft_delete=True, **HIDING)
PLAIN = accounts("plain_accounts")
RENAME = Call("rename", resource=ACCOUNTS, request=Renamed, response=Renamed)


async def rename(body: Renamed, work: CallContext[Any]) -> Renamed:
    table = work.database._tables["accounts"]
    for record_id, row in table.rows.items():
        values = {**row.values, "email": body.email, "version": row.version + 1}
        table.rows[record_id] = type(row)(values, row.incarnation)
    return body


@pytest.fixture
def fake() -> FakeDataService:
    return FakeDataService([ACCOUNTS, SOFT, PLAIN], calls={RENAME: rename})


@pytest.fixture
async def client(fake: FakeDataService) -> AsyncIterator[PostgresDataClient]:
    async with fake.postgres_client(service="api_service") as client:
        yield client


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with VirtualClock() as clock:
        yield clock


async def history(client: PostgresDataClient, resource: Any, record: Record) -> list[AuditEntry]:
    return [entry async for entry in client.history(resource, record.id)]


async def test_each_change_has_an_entry_with_who_and_typed_values(client: PostgresDataClient) -> None:
    """Create, update and delete leave an entry each, with the fields' types, the caller, user and request."""
    with bind(RequestContext(request_id="req-1", user_id="user-1")):
        account = await client.create(
            ACCOUNTS, NewAccount(email="a", balance=Decimal("1.10"), big=2**62 + 1, due_at=now())
        )
        await client.update(
            ACCOUNTS, account.id, AccountChanges(balance=Decimal("2.20"), token=b"\x01", due_at=None)
        )
        await client.delete(ACCOUNTS, account.id)
    created, updated, deleted = await history(client, ACCOUNTS, account)
    assert [each.operation for each in (created, updated, deleted)] == ["create", "update", "delete"]
    assert created.changes["balance"] == Change(None, Decimal("1.10"))
    assert created.changes["big"].after == 2**62 + 1
    assert created.changes["password_hash"].is_hidden
    assert updated.changes == {
        "balance": Change(Decimal("1.10"), Decimal("2.20")),
        "token": Change(None, b"\x01"),
        "due_at": Change(account.due_at, None),
    }
    assert deleted.changes["email"] == Change("a", None)
    assert (updated.caller, updated.user_id, updated.request_id) == ("api_service", "user-1", "req-1")
    assert [each.record_version for each in (created, updated, deleted)] == [1, 2, 3]


async def test_a_history_is_an_ordinary_query(client: PostgresDataClient) -> None:
    """It filters, orders, selects, pages and exports as `find` does."""
    account = await client.create(ACCOUNTS, NewAccount(email="a"))
    for email in ("b", "c"):
        await client.update(ACCOUNTS, account.id, AccountChanges(email=email))
    found = client.history(ACCOUNTS, account.id)
    updates = found.where(AUDIT["operation"] == "update").order_by("id", descending=True)
    assert [entry.changes["email"].after async for entry in updates] == ["c", "b"]
    assert await found.count() == 3
    page = await found.page_size(2).page()
    assert [entry.changes["email"].after for entry in page.items] == ["a", "b"]
    assert len((await found.page_size(2).page(page.next_page_token)).items) == 1
    assert [
        entry.changes["balance"].after async for entry in found.export() if "balance" in entry.changes
    ] == [Decimal(0)]

    class Only(BaseModel):
        caller: str

    assert [entry.caller async for entry in found.select(Only)] == ["api_service"] * 3


async def test_an_own_call_is_seen(client: PostgresDataClient) -> None:
    """What a service's own call changes has its entries as well."""
    account = await client.create(ACCOUNTS, NewAccount(email="a"))
    await client.call(RENAME, Renamed(email="z"))
    *_, renamed = await history(client, ACCOUNTS, account)
    assert renamed.changes == {"email": Change("a", "z")}


async def test_a_record_is_told_as_it_was(clock: VirtualClock, client: PostgresDataClient) -> None:
    """`as_of` undoes changes since a moment, over a soft delete and its return, and says None where it was away."""
    moments: list[datetime] = [now()]
    states: list[Account | None] = [None]

    def passes(record: Account | None) -> None:
        clock.advance(timedelta(hours=1))
        moments.append(now())
        states.append(record)
        clock.advance(timedelta(hours=1))

    clock.advance(timedelta(hours=1))
    soft = await client.create(SOFT, NewAccount(email="a", balance=Decimal("1.5"), token=b"t"))
    passes(soft)
    changed = await client.update(SOFT, soft.id, AccountChanges(email="b", password_hash="other", pin=7))
    passes(changed)
    await client.delete(SOFT, soft.id)
    passes(None)
    back = await client.undelete(SOFT, soft.id)
    passes(back)
    for moment, state in zip(moments, states, strict=True):
        found = await client.as_of(SOFT, soft.id, moment)
        if state is None or state is back:
            assert found == state
            continue
        assert found is not None
        hidden = {"password_hash": "***", "pin": 0}
        assert found.model_dump(exclude={"etag"}) == state.model_dump(exclude={"etag"}) | hidden
        with pytest.raises(StaleVersionError):
            await client.update(SOFT, found, AccountChanges(email="x"))


async def test_a_hard_delete_and_a_new_record_are_told_apart(
    clock: VirtualClock, client: PostgresDataClient
) -> None:
    """Of a record that was removed and made again, `as_of` gives the one of the moment."""
    first = await client.create(ACCOUNTS, NewAccount(email="first", due_at=now()))
    clock.advance(timedelta(hours=1))
    moment = now()
    clock.advance(timedelta(hours=1))
    await client.delete(ACCOUNTS, first.id)
    await client.create(ACCOUNTS, NewAccount(email="second"), id=first.id)
    found = await client.as_of(ACCOUNTS, first.id, moment)
    assert found is not None
    assert (found.email, found.due_at, found.version) == ("first", first.due_at, 1)
    assert (found.created_at, found.updated_at) == (first.created_at, first.created_at)


async def test_a_record_that_is_gone_is_told_as_it_was(
    clock: VirtualClock, client: PostgresDataClient
) -> None:
    """Of a removed record the history alone has all values."""
    made = await client.create(ACCOUNTS, NewAccount(email="a", balance=Decimal("1.5")))
    moment = clock.advance(timedelta(hours=1))
    clock.advance(timedelta(hours=1))
    await client.delete(ACCOUNTS, made.id)
    found = await client.as_of(ACCOUNTS, made.id, moment)
    assert found is not None
    assert found.model_dump(exclude={"etag", "password_hash"}) == made.model_dump(
        exclude={"etag", "password_hash"}
    )
    assert await client.as_of(ACCOUNTS, made.id, clock.advance(timedelta(hours=1))) is None


async def test_a_resource_without_a_trail_has_no_history(client: PostgresDataClient) -> None:
    """`history` and `as_of` say so, before anything is sent."""
    with pytest.raises(InvalidRequestError, match="audited=True"):
        client.history(PLAIN, "018e0d6c-0000-6000-8000-000000000000")
    with pytest.raises(InvalidRequestError, match="audited=True"):
        await client.as_of(PLAIN, "018e0d6c-0000-6000-8000-000000000000", now())


async def test_values_of_an_earlier_type_are_shown_as_they_are(fake: FakeDataService) -> None:
    """A value that its field doesn't take any more is in the history as JSON; `as_of` names the field."""
    async with fake.postgres_client(service="api_service") as client:
        account = await client.create(ACCOUNTS, NewAccount(email="a"))
        moment = now() + timedelta(milliseconds=1)
        trail = fake._store._tables["audit"]
        number, row = next(iter(trail.rows.items()))
        changes = {**row.values["changes"], "big": [None, "many"], "gone": [1, 2]}
        trail.rows[number] = type(row)({**row.values, "changes": changes}, 0)
        [entry] = await history(client, ACCOUNTS, account)
        assert (entry.changes["big"].after, entry.changes["gone"]) == ("many", Change(1, 2))
        late = {
            **row.values,
            "id": number + 1,
            "operation": "update",
            "changes": {"big": ["many", 0]},
            "created_at": moment + timedelta(days=1),
        }
        trail.rows[number + 1] = type(row)(late, 0)
        with pytest.raises(ResponseError, match="doesn't take: big"):
            await client.as_of(ACCOUNTS, account.id, moment)


async def test_the_state_before_the_trail_began_has_the_version_before(fake: FakeDataService) -> None:
    """Where the trail has no entry before the moment, the version is the one before the first change after it."""
    async with fake.postgres_client(service="api_service") as client:
        account = await client.create(ACCOUNTS, NewAccount(email="a"))
        await client.update(ACCOUNTS, account.id, AccountChanges(email="b"))
        trail = fake._store._tables["audit"]
        del trail.rows[1]
        found = await client.as_of(ACCOUNTS, account.id, account.created_at - timedelta(seconds=1))
        assert found is not None
        assert (found.email, found.version, found.updated_at) == ("a", 1, account.created_at)


async def test_erased_values_are_gone_and_the_entries_stay(fake: FakeDataService) -> None:
    """Blanking keeps who, when and which field; it says how many entries it changed, and a second time none."""
    async with fake.postgres_client(service="api_service") as client:
        account = await client.create(ACCOUNTS, NewAccount(email="secret@example.com"))
        other = await client.create(ACCOUNTS, NewAccount(email="other"))
        await client.update(ACCOUNTS, account.id, AccountChanges(balance=Decimal(1)))
        await client.delete(ACCOUNTS, account.id)
        store = fake._store
        assert await store.deleted_ids(ACCOUNTS, "email", "secret@example.com") == [str(account.id)]
        assert await store.blank_audit(ACCOUNTS, ["email"], [account.id]) == 2
        assert await store.blank_audit(ACCOUNTS, ["email"], [account.id]) == 0
        created, updated, deleted = await history(client, ACCOUNTS, account)
        assert created.changes["email"].is_hidden
        assert deleted.changes["email"].is_hidden
        assert (created.version, updated.version, deleted.version) == (2, 1, 2)
        assert (await history(client, ACCOUNTS, other))[0].changes["email"].after == "other"
        assert "secret@" not in repr([row.values for row in store._tables["audit"].rows.values()])


async def test_a_store_without_a_trail_has_nothing_to_erase() -> None:
    """Without audited resources nothing is blanked, and no record is found."""
    store = FakeDataService([PLAIN])._store
    assert await store.blank_audit(PLAIN, ["email"], []) == 0
    assert await store.deleted_ids(PLAIN, "email", "a") == []


# ── who may read it ──────────────────────────────────────────────────────────────────────────────


def granted(fake: FakeDataService, grant: Grant) -> None:
    app: Any = fake._app
    app.state.callers = Callers(None, {"api_service": grant})


async def test_only_a_grant_of_its_own_reads_the_trail(
    fake: FakeDataService, client: PostgresDataClient
) -> None:
    """Not even the right to write everything includes the history."""
    granted(fake, Grant(write="*"))
    account = await client.create(ACCOUNTS, NewAccount(email="a"))
    with pytest.raises(AccessDeniedError, match="audit accounts"):
        await history(client, ACCOUNTS, account)
    with pytest.raises(AccessDeniedError, match="audit trail"):
        await client.find(AUDIT).page()
    granted(fake, Grant(audit="*"))
    assert len(await history(client, ACCOUNTS, account)) == 1
    assert len((await client.find(AUDIT).page()).items) == 1
    with pytest.raises(AccessDeniedError):
        await client.get(ACCOUNTS, account.id)


async def test_a_grant_for_some_resources_shows_only_their_changes(
    fake: FakeDataService, client: PostgresDataClient
) -> None:
    """The whole trail has what the grant names, however the query asks."""
    account = await client.create(ACCOUNTS, NewAccount(email="a"))
    soft = await client.create(SOFT, NewAccount(email="b"))
    granted(fake, Grant(audit=[SOFT]))
    assert [entry.resource async for entry in client.find(AUDIT)] == ["soft_accounts"]
    assert (await client.find(AUDIT).where(AUDIT["record_id"] == str(account.id)).page()).items == ()
    assert len(await history(client, SOFT, soft)) == 1
    with pytest.raises(AccessDeniedError):
        await history(client, ACCOUNTS, account)


def test_declarations_that_cannot_be_kept_are_refused() -> None:
    """A hidden field that no record has or that no trail needs, a grant without a trail, and a second `audit`."""
    with pytest.raises(DeclarationError, match="has no field 'nothing'"):
        accounts("others", audited=True, audit_hide=("nothing",))
    with pytest.raises(DeclarationError, match="needs audited=True"):
        accounts("others", audit_hide=("email",))
    with pytest.raises(DeclarationError, match="isn't declared with audited=True"):
        check_grants({"a": Grant(audit=[PLAIN])}, [PLAIN], [])
    with pytest.raises(DeclarationError, match="doesn't have"):
        check_grants({"a": Grant(audit=[SOFT])}, [PLAIN], [])
    with pytest.raises(DeclarationError, match="can't have one called 'audit'"):
        FakeDataService([accounts("audit"), ACCOUNTS])
    FakeDataService([accounts("audit")])


def test_they_say_what_they_are() -> None:
    """What a debugger shows names resources, and no values."""
    assert repr(AuditRoutes([SOFT, PLAIN])) == "AuditRoutes(['soft_accounts'])"
    assert repr(MemoryAudit()) == "MemoryAudit(MemoryTable('audit', 0 rows))"
