"""The audit trail over the contract's routes, on records in memory."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from hybridkit.clients import PostgresDataClient
from hybridkit.codec import Timestamp
from hybridkit.context import RequestContext, bind
from hybridkit.resources import Change, Record, Resource
from hybridkit.testing import FakeDataService


class NewAccount(BaseModel):
    email: str
    password_hash: str = "hash"
    balance: Decimal = Decimal(0)
    big: int = 0
    due_at: Timestamp | None = None
    token: bytes | None = None


class Account(NewAccount, Record):
    pass


class AccountChanges(BaseModel):
    email: str | None = None
    password_hash: str | None = None
    balance: Decimal | None = None
    big: int | None = None
    due_at: Timestamp | None = None
    token: bytes | None = None


def _accounts(name: str, **options: Any) -> Resource[Account, NewAccount, AccountChanges]:
    return Resource(
        name,
        record=Account,
        create=NewAccount,
        update=AccountChanges,
        audited=True,
        audit_hide=("password_hash",),
        **options,
    )


ACCOUNTS = _accounts("accounts")
SOFT = _accounts("soft_accounts", soft_delete=True)


@pytest.fixture
async def client() -> AsyncIterator[PostgresDataClient]:
    async with FakeDataService({ACCOUNTS, SOFT}).postgres_client(service="api_service") as client:
        yield client


async def test_each_change_has_an_entry_with_who_and_typed_values(client: PostgresDataClient) -> None:
    """Create, update and delete leave an entry each, with the fields' types, the caller, user and request."""
    context = RequestContext(request_id="req-1", user_id="user-1")
    with bind(context):
        account = await client.create(ACCOUNTS, NewAccount(email="a", balance=Decimal("1.10"), big=2**62 + 1))
        await client.update(ACCOUNTS, account.id, AccountChanges(balance=Decimal("2.20"), token=b"\x01"))
        await client.delete(ACCOUNTS, account.id)
    created, updated, deleted = [entry async for entry in client.history(ACCOUNTS, account.id)]
    assert [each.operation for each in (created, updated, deleted)] == ["create", "update", "delete"]
    assert created.changes["balance"] == Change(None, Decimal("1.10"))
    assert created.changes["big"].after == 2**62 + 1
    assert created.changes["password_hash"].is_hidden
    assert updated.changes == {
        "balance": Change(Decimal("1.10"), Decimal("2.20")),
        "token": Change(None, b"\x01"),
    }
    assert deleted.changes["email"] == Change("a", None)
    assert (updated.caller, updated.user_id, updated.request_id) == ("api_service", "user-1", "req-1")
    assert [each.record_version for each in (created, updated, deleted)] == [1, 2, 3]


async def test_a_record_is_told_as_it_was(client: PostgresDataClient) -> None:
    """`as_of` undoes later changes, and says None before the create."""
    soft = await client.create(SOFT, NewAccount(email="a", balance=Decimal(1)))
    first = await client.update(SOFT, soft.id, AccountChanges(email="b"))
    await client.delete(SOFT, soft.id)
    back = await client.undelete(SOFT, soft.id)
    entries = [entry async for entry in client.history(SOFT, soft.id)]
    assert [each.operation for each in entries] == ["create", "update", "delete", "undelete"]
    assert await client.as_of(SOFT, soft.id, datetime.now(UTC) + timedelta(days=1)) == back
    assert await client.as_of(SOFT, soft.id, soft.created_at - timedelta(days=1)) is None
    assert first.email == "b"
