"""`hybridkit outbox` against a real PostgreSQL: what it prints, with which code it ends, and what it refuses."""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner, Result

from hybridkit._cli import _outbox as module
from hybridkit._cli._app import app
from hybridkit.codec import now
from hybridkit.contract import Emission
from hybridkit.dataservice import DocumentCollection, migrate
from hybridkit.dataservice._mongo._collection import ResourceCollection
from hybridkit.dataservice._mongo._store import open_mongo_store
from hybridkit.dataservice._outbox._protocol import ParkedRow
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._outbox import PostgresOutbox, add_emissions
from hybridkit.dataservice._store._operations import Upsert, Write
from hybridkit.dev import Server
from hybridkit.resources import Record, Resource

pytestmark = pytest.mark.real_server


class NewThing(BaseModel):
    name: str


class Thing(NewThing, Record[str]):
    pass


THINGS = Resource("things", record=Thing, create=NewThing, update=NewThing)

type Outbox = Callable[..., Result]

NOBODY = "UNROUTABLE: no queue wants it\x1b[31m"


@pytest.fixture
def outbox(postgres_url: str) -> Outbox:
    def call(*arguments: str, answer: str | None = None) -> Result:
        return CliRunner().invoke(
            app, ["outbox", *arguments], input=answer, env={"DATABASE_URL": postgres_url}
        )

    return call


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is somebody to ask."""
    monkeypatch.setattr(module, "is_terminal", lambda: True)


@pytest.fixture(autouse=True)
def ids(postgres_url: str) -> list[UUID]:
    """Of an outbox with two parked events of one type, one of another, and two that wait, one for its time."""

    async def fill() -> list[UUID]:
        await migrate(postgres_url)
        pool = Pool(postgres_url, pool_size=1, application_name="the test")
        store = PostgresOutbox(pool)
        emissions = [
            emission("item.sold"),
            emission("item.sold"),
            emission("item.lost", key=None),
            emission("item.found"),
            emission("item.found", not_before=now() + timedelta(hours=1)),
        ]
        async with pool.session() as session:
            await add_emissions(session, emissions, service="api_service")
        leases = (await store.renew_leases("the test")).leases
        rows = await store.waiting(range(16), without=(), limit=3)
        await store.mark(leases, published=(), parked=[ParkedRow(row, NOBODY) for row in rows])
        await store.release_leases("the test")
        await pool.close()
        return [each.event_id for each in emissions]

    return asyncio.run(fill())


def emission(event_type: str, **more: Any) -> Emission:
    fields: dict[str, Any] = {"event_type": event_type, "event_id": uuid4(), "key": "k", "timestamp": now()}
    return Emission(request_id="the-request", data={}, **{**fields, **more})


async def fill_mongo(url: str) -> list[UUID]:
    """One parked event and one that waits, in MongoDB."""
    collections = {"things": ResourceCollection(THINGS, DocumentCollection())}
    emissions = [emission("item.sold"), emission("item.sold")]
    async with open_mongo_store(url, collections, name="test") as store:
        thing = Upsert(resource=THINGS, id="a", values={"name": "a"})
        await store.write(
            Write(caller="test", key="1", fingerprint=b"1", operations=(thing,), emit=tuple(emissions))
        )
        leases = (await store.outbox.renew_leases("the test")).leases
        rows = await store.outbox.waiting(range(16), without=(), limit=3)
        await store.outbox.mark(leases, published=(), parked=[ParkedRow(rows[0], NOBODY)])
        return [row.event_id for row in rows]


def listed(outbox: Outbox, *arguments: str) -> list[dict[str, Any]]:
    done = outbox("list", "--json", *arguments)
    assert done.exit_code == 0, done.output
    return list(json.loads(done.stdout))


def test_what_is_parked_is_listed_with_its_reason(outbox: Outbox, ids: list[UUID]) -> None:
    """The oldest event is the first row."""
    done = outbox("list")
    lines = done.stdout.splitlines()
    assert done.exit_code == 0
    assert lines[0].split() == ["SEQUENCE", "EVENT", "ID", "TYPE", "KEY", "AGE", "REASON"]
    assert [str(event_id) in line for event_id, line in zip(ids[:3], lines[1:], strict=True)] == [True] * 3
    assert "no queue wants it" in lines[1]
    assert "\x1b" not in done.stdout
    assert [entry["event_id"] for entry in listed(outbox, "--type", "item.lost")] == [str(ids[2])]


def test_what_waits_is_listed_with_its_time(outbox: Outbox, ids: list[UUID]) -> None:
    """`--waiting` shows when each event may be published."""
    done = outbox("list", "--waiting")
    assert "NOT BEFORE" in done.stdout
    assert [line.split()[1] for line in done.stdout.splitlines()[1:]] == [str(each) for each in ids[3:]]
    soon, later = listed(outbox, "--waiting")
    assert (soon["not_before"], later["not_before"] is None) == (None, False)
    assert outbox("list", "--waiting", "--type", "none").stdout == "nothing waits\n"
    assert outbox("list", "--type", "none").stdout == "nothing is parked\n"


def test_a_document_has_all_of_an_entry(outbox: Outbox, ids: list[UUID]) -> None:
    """The JSON has ids, times, the reason and the age."""
    [entry] = listed(outbox, "--type", "item.lost")
    assert entry["event_id"] == str(ids[2])
    assert (entry["sequence"], entry["key"], entry["queue"], entry["reason"]) == (3, None, None, NOBODY)
    assert (entry["request_id"], entry["not_before"]) == ("the-request", None)
    assert 0 <= entry["age_seconds"] < 600
    assert entry["created_at"] <= entry["parked_at"]


def test_a_limit_is_said(outbox: Outbox) -> None:
    """The hint goes to standard error."""
    done = outbox("list", "--limit", "2")
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == "only the first 2; --limit shows more\n"


@pytest.mark.parametrize(
    ("arguments", "left"),
    [(["--all"], 0), (["--type", "item.sold"], 1), (["--type", "none"], 3)],
)
def test_parked_events_wait_again(outbox: Outbox, arguments: list[str], left: int) -> None:
    """All, those of a type, or those with an id are retried, and the others stay parked."""
    done = outbox("retry", "--yes", *arguments)
    assert done.exit_code == 0
    assert len(listed(outbox)) == left
    assert len(listed(outbox, "--waiting")) == 5 - left
    assert done.stdout.endswith(f"{3 - left} events will be tried again\n")


def test_one_event_is_tried_again_by_its_id(outbox: Outbox, ids: list[UUID]) -> None:
    """The exit code is 1 for an id that is not parked."""
    done = outbox("retry", str(ids[1]), str(ids[4]), "--yes")
    assert done.exit_code == 1
    assert done.stdout.endswith("1 event will be tried again\n")
    assert done.stderr == f"error: {ids[4]} is not parked\n"
    assert [entry["event_id"] for entry in listed(outbox)] == [str(ids[0]), str(ids[2])]


def test_a_dry_run_changes_nothing(outbox: Outbox) -> None:
    """It prints the groups and the count, as a table or JSON."""
    done = outbox("retry", "--all", "--dry-run")
    assert done.stdout.splitlines()[1].split()[:2] == ["2", "item.sold"]
    assert done.stdout.endswith("3 events would be tried again\n")
    document = json.loads(outbox("retry", "--all", "--dry-run", "--json").stdout)
    assert document == {"parked": 3, "retried": 0, "dry_run": True, "not_parked": []}
    assert len(listed(outbox)) == 3


def test_a_document_of_a_retry(outbox: Outbox, ids: list[UUID]) -> None:
    """The JSON names the ids that are not parked."""
    done = outbox("retry", str(ids[0]), str(ids[3]), "--yes", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {
        "parked": 1,
        "retried": 1,
        "dry_run": False,
        "not_parked": [str(ids[3])],
    }


@pytest.mark.usefixtures("terminal")
def test_somebody_is_asked_first(outbox: Outbox) -> None:
    """Nothing is retried after a no."""
    refused = outbox("retry", "--all", answer="n\n")
    assert refused.exit_code == 1
    assert len(listed(outbox)) == 3
    agreed = outbox("retry", "--all", answer="y\n")
    assert (agreed.exit_code, listed(outbox)) == (0, [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["retry", "--yes"], "which events?"),
        (["retry", "--yes", "--all", "--type", "x"], "which events?"),
        (["retry", "7", "--yes"], "not the id of an event: '7'"),
        (["retry", "--all"], "there is nobody to ask"),
        (["retry", "--all", "--json"], "there is nobody to ask"),
    ],
)
def test_wrong_use_is_explained(outbox: Outbox, arguments: list[str], said: str) -> None:
    """The exit code is 2, and nothing is retried."""
    done = outbox(*arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert len(listed(outbox)) == 3


@pytest.mark.parametrize("scheme", ["postgresql", "mongodb"])
def test_a_database_that_is_away_is_one_line(outbox: Outbox, scheme: str) -> None:
    """The line does not have the password."""
    done = outbox("list", "--database-url", f"{scheme}://user:s3cret@127.0.0.1:1/app")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "error: " in done.stderr
    assert "s3cret" not in done.output


def test_a_url_of_something_else_is_wrong_use(outbox: Outbox) -> None:
    """The message names the accepted kinds, and not the password."""
    done = outbox("list", "--database-url", "mysql://user:s3cret@127.0.0.1:1/app")
    assert done.exit_code == 2
    assert "postgresql" in done.stderr
    assert "s3cret" not in done.output


def test_a_database_of_something_else_is_named(
    own_postgres_server: Server, mongo_url: str, outbox: Outbox
) -> None:
    """A database without an outbox is an error that asks whether it is a data service's."""
    for url in (own_postgres_server.url, mongo_url):
        done = outbox("list", "--database-url", url)
        assert done.exit_code == 1
        assert "is it a data service's" in done.stderr


def test_an_outbox_in_mongodb_is_read_as_well(mongo_url: str, outbox: Outbox) -> None:
    """Its events are listed and retried by the same commands."""
    first, second = asyncio.run(fill_mongo(mongo_url))
    arguments = ["--database-url", mongo_url]
    [entry] = listed(outbox, *arguments)
    assert (entry["event_id"], entry["reason"]) == (str(first), NOBODY)
    assert outbox("retry", "--all", "--yes", *arguments).exit_code == 0
    waiting = listed(outbox, "--waiting", *arguments)
    assert [each["event_id"] for each in waiting] == [str(first), str(second)]


def test_an_age_is_told_in_its_unit() -> None:
    """A unit is used from two of it on."""
    assert [module._age(seconds) for seconds in (0, 119, 121, 7300, 200_000)] == [
        "0 s",
        "119 s",
        "2 min",
        "2 h",
        "2 d",
    ]
