"""`hybridkit forget` against the fake data service: it counts, asks, erases, and says what it has touched."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
from typer.testing import CliRunner, Result

from hybridkit._cli import _forget as module
from hybridkit._cli._app import app
from hybridkit.clients import PostgresDataClient
from hybridkit.ids import new_id
from hybridkit.sagas import SAGAS
from hybridkit.testing import FakeDataService
from tests.helpers.people import CANARY, ORDERS, PEOPLE, SAGA_DATA, USERS, write_everywhere

PERSON = new_id()

type Command = Callable[..., Awaitable[Result]]


@pytest.fixture
def fake() -> FakeDataService:
    return FakeDataService([USERS, ORDERS, SAGAS], streams=[PEOPLE], saga_data=SAGA_DATA)


@pytest.fixture
async def client(fake: FakeDataService) -> AsyncGenerator[PostgresDataClient]:
    async with fake.postgres_client(service="admin_service") as opened:
        await write_everywhere(opened, PERSON, CANARY)
        yield opened


@pytest.fixture
async def command(fake: FakeDataService) -> AsyncGenerator[Command]:
    async with fake.serve() as url:

        async def call(*arguments: str, answer: str | None = None) -> Result:
            env = {"POSTGRES_SERVICE_URL": url, "SERVICE_NAME": "admin_service"}
            return await asyncio.to_thread(
                CliRunner().invoke, app, ["forget", *arguments], env=env, input=answer
            )

        yield call


async def test_it_counts_asks_and_erases(
    client: PostgresDataClient, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a yes nothing is erased; with it, the numbers are those that were shown before."""
    monkeypatch.setattr(module, "is_terminal", lambda: True)
    refused = await command(f"user_id={PERSON}", answer="n\n")
    assert refused.exit_code == 1
    assert (await client.get(USERS, PERSON)).email == CANARY
    done = await command(f"user_id={PERSON}", answer="y\n")
    assert done.exit_code == 0
    assert "users                1 rows would be erased" in done.output
    assert "users                1 rows erased" in done.output
    assert "subject.forgotten is emitted" in done.output
    assert (await client.get(USERS, PERSON)).email is None


async def test_a_machine_says_yes_and_reads_json(client: PostgresDataClient, command: Command) -> None:
    """With --json there is nobody to ask: a dry run changes nothing, --yes erases."""
    counted = json.loads((await command(f"user_id={PERSON}", "--dry-run", "--json")).output)
    assert (counted["rows"]["orders"], counted["dry_run"]) == (2, True)
    assert (await client.get(USERS, PERSON)).email == CANARY
    done = json.loads((await command(f"user_id={PERSON}", "--yes", "--json")).output)
    assert (done["rows"] | counted["rows"], done["announced"], done["dead_letters"]) == (
        done["rows"],
        True,
        [],
    )


async def test_wrong_use_is_refused_before_anything_is_done(
    client: PostgresDataClient, command: Command
) -> None:
    """Without an id, without a yes, and without the broker that a search needs, the command ends with 2."""
    for arguments in (
        [str(PERSON)],
        [f"user_id={PERSON}"],
        [f"user_id={PERSON}", "--yes", "--dead-letters", "q.dlq"],
    ):
        assert (await command(*arguments)).exit_code == 2
    assert (await command("order_id=1", "--yes")).exit_code == 1
    assert (await client.get(USERS, PERSON)).email == CANARY
