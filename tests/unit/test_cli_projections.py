"""`hybridkit projections` against the fake data service: what it prints, and with which code it ends."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from decimal import Decimal
from uuid import UUID

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from hybridkit._cli._app import app
from hybridkit.clients import PostgresDataClient
from hybridkit.clients._projections._follower import Follower
from hybridkit.clients._projections._runner import log_reader
from hybridkit.resources import Record, Resource
from hybridkit.streams import PROJECTIONS, Changes, Projection
from hybridkit.testing import FakeDataService
from tests.helpers.accounts import ACCOUNTS, Deposited


class NewBalance(BaseModel):
    balance: Decimal = Decimal(0)


class Balance(NewBalance, Record):
    pass


BALANCES = Resource("balances", record=Balance, create=NewBalance, update=NewBalance)
BALANCES_V2 = Resource("balances_v2", record=Balance, create=NewBalance, update=NewBalance)
ACCOUNT = UUID(int=1)

balances = Projection("balances", source=ACCOUNTS)
balances_v2 = Projection("balances", source=ACCOUNTS, version=2)


@balances.on(Deposited)
def deposited(event: Deposited, to: Changes) -> None:
    if event.amount == 13:
        raise ValueError("unlucky\x1b[31m")
    to.increment(BALANCES, event.account_id, balance=event.amount)


@balances_v2.on(Deposited)
def deposited_v2(event: Deposited, to: Changes) -> None:
    to.increment(BALANCES_V2, event.account_id, balance=event.amount)


type Command = Callable[..., Awaitable[Result]]


@pytest.fixture
def fake() -> FakeDataService:
    return FakeDataService([BALANCES, BALANCES_V2, PROJECTIONS], streams=[ACCOUNTS])


@pytest.fixture
async def client(fake: FakeDataService) -> AsyncGenerator[PostgresDataClient]:
    async with fake.postgres_client(service="worker_service") as opened:
        yield opened


@pytest.fixture
async def command(fake: FakeDataService) -> AsyncGenerator[Command]:
    async with fake.serve() as url:

        async def call(*arguments: str) -> Result:
            env = {"POSTGRES_SERVICE_URL": url, "SERVICE_NAME": "admin_service"}
            return await asyncio.to_thread(CliRunner().invoke, app, ["projections", *arguments], env=env)

        yield call


async def deposit(client: PostgresDataClient, *amounts: int) -> None:
    for amount in amounts:
        await client.append(ACCOUNTS, ACCOUNT, Deposited(account_id=ACCOUNT, amount=Decimal(amount)))


async def look(client: PostgresDataClient) -> None:
    follower = Follower(balances, client, log_reader(client, balances))
    await follower.look()


async def test_there_is_nothing_to_show_at_first(command: Command) -> None:
    """A data service without positions has an empty list."""
    result = await command("list")
    assert (result.exit_code, result.output) == (0, "there are no projections\n")
    assert json.loads((await command("list", "--json")).output) == []


async def test_a_projection_is_shown_skipped_and_goes_on(
    client: PostgresDataClient, command: Command
) -> None:
    """A failed one ends the list with 1; skipped by a person with a reason, it counts what follows."""
    await deposit(client, 1, 13, 5)
    await look(client)
    listed = await command("list")
    assert listed.exit_code == 1
    assert "ValueError: unlucky\N{REPLACEMENT CHARACTER}[31m" in listed.output
    [found] = json.loads((await command("list", "--json")).output)
    position = found["failed_position"]
    refused = await command("skip", "balances", found["position"], "--note", "why not", "--by", "ann")
    assert (refused.exit_code, f"it has failed at {position}" in refused.output) == (1, True)
    assert (await command("skip", "balances", position, "--note", " ")).exit_code == 2
    skipped = await command("skip", "balances", position, "--note", "a test deposit", "--by", "ann")
    assert (skipped.exit_code, skipped.output) == (0, f"balances.1 goes on behind {position}\n")
    await look(client)
    shown = await command("show", "balances.1")
    assert "by ann at" in shown.output
    assert "a test deposit (ValueError: unlucky" in shown.output
    assert json.loads((await command("show", "balances", "--json")).output)["events"] == 3
    assert (await client.get(BALANCES, ACCOUNT)).balance == 6


async def test_a_failed_projection_is_retried(client: PostgresDataClient, command: Command) -> None:
    """Only one that has failed has something to retry."""
    await deposit(client, 13)
    await look(client)
    assert (await command("retry", "balances")).exit_code == 0
    assert (await client.get(PROJECTIONS, "balances.1")).status == "running"
    again = await command("retry", "balances")
    assert (again.exit_code, "nothing to retry" in again.output) == (1, True)


async def test_a_version_is_filled_beside_the_one_that_is_read(
    client: PostgresDataClient, command: Command
) -> None:
    """A rebuild counts all events into the new version's own records, and says when it has caught up."""
    await deposit(client, 1, 2)
    await look(client)
    module = f"{__name__}:balances_v2"
    result = await command("rebuild", module)
    assert (result.exit_code, result.output) == (0, "balances.2 has caught up, with 2 events\n")
    assert (await client.get(BALANCES_V2, ACCOUNT)).balance == 3
    several = await command("rebuild", __name__)
    assert (several.exit_code, "several" in several.output) == (2, True)
    assert (await command("show", "balances")).exit_code == 2
    assert (await command("show", "absent")).exit_code == 2


async def test_a_version_that_fails_while_it_is_filled_ends_the_command(
    client: PostgresDataClient, command: Command
) -> None:
    """A rebuild that meets an event which fails ends with 1, and names the event."""
    await deposit(client, 13)
    result = await command("rebuild", f"{__name__}:balances")
    assert result.exit_code == 1
    assert "failed at account.deposited version 1" in result.output
