"""`hybridkit audit` against the fake data service: what it prints, and with which code it ends."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from hybridkit._cli._app import app
from hybridkit.clients import PostgresDataClient
from hybridkit.codec import format_timestamp, now
from hybridkit.context import RequestContext, bind
from hybridkit.resources import Record, Resource
from hybridkit.testing import FakeDataService


class NewUser(BaseModel):
    email: str


class User(NewUser, Record):
    pass


USERS = Resource("users", record=User, create=NewUser, update=NewUser, audited=True)

type Command = Callable[..., Awaitable[Result]]


@pytest.fixture
def fake() -> FakeDataService:
    return FakeDataService([USERS])


@pytest.fixture
async def client(fake: FakeDataService) -> AsyncGenerator[PostgresDataClient]:
    async with fake.postgres_client(service="api_service") as opened:
        yield opened


@pytest.fixture
async def command(fake: FakeDataService) -> AsyncGenerator[Command]:
    async with fake.serve() as url:

        async def call(*arguments: str) -> Result:
            env = {"POSTGRES_SERVICE_URL": url, "SERVICE_NAME": "admin_service"}
            return await asyncio.to_thread(CliRunner().invoke, app, ["audit", *arguments], env=env)

        yield call


async def test_the_changes_of_a_record_are_a_table(client: PostgresDataClient, command: Command) -> None:
    """Each change is a line with time, who and values, the newest at the end; control characters are replaced."""
    with bind(RequestContext(request_id="req-7", user_id="user-1")):
        user = await client.create(USERS, NewUser(email="a"))
        await client.update(USERS, user.id, NewUser(email="b\x1b[31m"))
    done = await command("users", str(user.id))
    assert done.exit_code == 0, done.output
    header, created, updated = done.stdout.splitlines()
    assert header.split() == [
        "TIME",
        "RECORD",
        "VERSION",
        "OPERATION",
        "CALLER",
        "USER",
        "REQUEST",
        "CHANGES",
    ]
    assert 'email: null -> "a"' in created
    assert 'email: "a" -> "b' in updated
    assert "\x1b" not in done.stdout
    assert all(f"users/{user.id}" in line and "user-1" in line for line in (created, updated))


async def test_it_is_filtered_and_limited(client: PostgresDataClient, command: Command) -> None:
    """`--user`, `--since` and `--limit` choose; with `--json` the entries are one document."""
    for user_id in ("one", "two", "two"):
        with bind(RequestContext(user_id=user_id)):
            await client.create(USERS, NewUser(email=user_id))
    done = await command("--user", "two", "--limit", "1", "--json")
    [entry] = json.loads(done.stdout)
    assert (entry["user_id"], entry["changes"]["email"]) == ("two", [None, "two"])
    later = format_timestamp(now() + timedelta(days=1))
    assert (await command("users", "--since", later)).stdout == "there are no such changes\n"
    assert len(json.loads((await command("--since", "2026-01-01", "--json")).stdout)) == 3


async def test_a_wrong_time_is_an_error(command: Command) -> None:
    """Exit code 2, and what a time looks like."""
    done = await command("users", "--since", "yesterday")
    assert (done.exit_code, "2026-01-31" in done.output) == (2, True)
