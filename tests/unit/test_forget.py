"""Forgetting a person, on the fake data service."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated

import pytest
from pydantic import BaseModel

from hybridkit.clients import PostgresDataClient
from hybridkit.codec import encode_json
from hybridkit.dataservice import Grant
from hybridkit.dataservice._http._callers import Callers
from hybridkit.dataservice._http._streams._erasure_route import ErasureRoute
from hybridkit.errors import AccessDeniedError, InvalidRequestError
from hybridkit.ids import new_id
from hybridkit.resources import AUDIT, Record, Resource
from hybridkit.sagas import SAGAS
from hybridkit.streams import Personal
from hybridkit.testing import FakeDataService
from tests.helpers.people import CANARY, ORDERS, OTHER, PEOPLE, SAGA_DATA, USERS, write_everywhere

PERSON, SOMEBODY = new_id(), new_id()


class PetFields(BaseModel):
    owner: str
    name: str | None = None


class Pet(PetFields, Record[str]):
    name: Annotated[str | None, Personal("owner")] = None


PETS = Resource("pets", record=Pet, create=PetFields, update=PetFields)


@pytest.fixture
def fake() -> FakeDataService:
    return FakeDataService([USERS, ORDERS, SAGAS], streams=[PEOPLE], saga_data=SAGA_DATA)


@pytest.fixture
async def client(fake: FakeDataService) -> AsyncGenerator[PostgresDataClient]:
    async with fake.postgres_client(service="admin_service") as opened:
        await write_everywhere(opened, PERSON, CANARY)
        await write_everywhere(opened, SOMEBODY, OTHER)
        yield opened


async def everything(client: PostgresDataClient) -> bytes:
    """Return all that readers can see."""
    found: list[BaseModel] = [record async for record in client.find(USERS)]
    found += [record async for record in client.find(ORDERS)]
    found += [record async for record in client.find(SAGAS)]
    found += [record async for record in client.find(AUDIT)]
    page = await client.log(PEOPLE)
    states = [(await client.load(PEOPLE, each)).state for each in (PERSON, SOMEBODY)]
    return encode_json([each.model_dump(mode="json") for each in (*found, *page.events, *states)])


async def test_nothing_of_a_person_is_left(client: PostgresDataClient, fake: FakeDataService) -> None:
    """Every marked field is blank afterwards; other fields, and other people's, are as they were."""
    others = (await everything(client)).count(OTHER.encode())
    done = await client.forget("user_id", PERSON)
    assert done.rows == {
        "people": 3,
        "snapshots of people": 1,
        "users": 1,
        "orders": 2,
        "sagas": 2,
        "history of users": 1,
        "history of orders": 5,
    }
    left = await everything(client)
    assert (left.count(CANARY.encode()), left.count(OTHER.encode())) == (0, others)
    assert (await client.get(USERS, PERSON)).city == "Berlin"
    assert [each.event_type for each in fake.emitted] == ["subject.forgotten"]
    assert fake.emitted[0].data == {"subject": "user_id", "id": str(PERSON)}
    assert done.announced


async def test_version_and_order_of_events_are_as_they_were(client: PostgresDataClient) -> None:
    """An erased event stays in its place, and says since when it is erased."""
    before = (await client.log(PEOPLE)).events
    await client.forget("user_id", PERSON)
    after = (await client.log(PEOPLE)).events
    assert [(each.stream_id, each.version, each.position, each.event_id) for each in after] == [
        (each.stream_id, each.version, each.position, each.event_id) for each in before
    ]
    erased = [each for each in after if each.redacted_at is not None]
    assert len(erased) == 3
    assert erased[0].data == {"user_id": str(PERSON), "email": None, "nickname": "", "city": "Berlin"}
    assert (await client.load(PEOPLE, PERSON)).state.email is None


async def test_a_running_saga_can_go_on_and_an_ended_one_keeps_nothing(client: PostgresDataClient) -> None:
    """The commands of a saga that runs lose personal fields only; one that has ended keeps no commands."""
    await client.forget("user_id", PERSON)
    mine = [row async for row in client.find(SAGAS) if row.data["user_id"] == str(PERSON)]
    running, ended = sorted(mine, key=lambda row: row.status, reverse=True)
    assert running.data == ended.data == {"user_id": str(PERSON), "address": None, "total": 5}
    assert running.undo[0].command.data == {"user_id": str(PERSON), "account": None}
    assert [len(running.sent), len(ended.sent), len(ended.undo), len(ended.notes)] == [1, 0, 0, 0]


async def test_a_dry_run_counts_and_changes_nothing(
    client: PostgresDataClient, fake: FakeDataService
) -> None:
    """A dry run has the same numbers as the run, and leaves all as it is."""
    before = await everything(client)
    counted = await client.forget("user_id", PERSON, dry_run=True)
    assert await everything(client) == before
    assert (counted.announced, list(fake.emitted)) == (False, [])
    done = (await client.forget("user_id", PERSON)).rows
    assert {name: count for name, count in done.items() if not name.startswith("history")} == counted.rows


async def test_forgetting_again_finds_nothing(client: PostgresDataClient) -> None:
    """A second run has nothing to do, so one that was interrupted may be repeated; an upper-case id is the same."""
    await client.forget("user_id", PERSON)
    again = await client.forget("user_id", str(PERSON).upper())
    assert set(again.rows.values()) == {0}


async def test_what_comes_between_two_batches_does_no_harm(client: PostgresDataClient) -> None:
    """Erasures of two people at the same time leave nothing of either."""
    await asyncio.gather(client.forget("user_id", PERSON), client.forget("user_id", SOMEBODY))
    left = await everything(client)
    assert (left.count(CANARY.encode()), left.count(OTHER.encode())) == (0, 0)


async def test_an_unknown_kind_of_id_is_refused(client: PostgresDataClient) -> None:
    """A typing error doesn't pass for a person without data."""
    with pytest.raises(
        InvalidRequestError, match=r"no field is marked with Personal\('user'\); there are user_id"
    ):
        await client.forget("user", PERSON)
    assert set((await client.forget("user_id", "nobody")).rows.values()) == {0}


async def test_a_place_of_another_erasure_is_refused(client: PostgresDataClient) -> None:
    """An invented place is refused, and not taken for the end."""
    from hybridkit.clients._pipeline._attempt import Intent
    from hybridkit.clients._requests import JSON

    for after in ("9:", "x:", "1", "²:"):
        body = encode_json({"subject": "user_id", "id": "u", "after": after})
        with pytest.raises(InvalidRequestError):
            await client._send(Intent(method="POST", path="/v1:forget", headers=JSON, body=body, key="k"))


async def test_it_needs_a_grant_of_its_own(client: PostgresDataClient, fake: FakeDataService) -> None:
    """A caller that may write everything may not forget a person."""
    fake._app.state.callers = Callers(None, {"admin_service": Grant(write="*", emit=True)})  # type: ignore[attr-defined]
    with pytest.raises(AccessDeniedError, match="admin_service may not forget a person here"):
        await client.forget("user_id", PERSON)
    fake._app.state.callers = Callers(None, {"admin_service": Grant(forget=True)})  # type: ignore[attr-defined]
    assert (await client.forget("user_id", PERSON)).announced


async def test_a_service_without_sagas_and_streams_of_people_has_fewer_steps() -> None:
    """Only what the service has, and marks with this kind of id, is worked through."""
    async with FakeDataService([USERS, PETS]).postgres_client(service="admin_service") as client:
        await client.create(PETS, PetFields(owner="o1", name=CANARY), id="p1")
        assert (await client.forget("owner", "o1")).rows == {"pets": 1}
        assert (await client.get(PETS, "p1")).name is None


def test_a_mark_has_a_readable_form() -> None:
    """A mark in an error message says what it marks."""
    assert repr(ErasureRoute([], [], {})) == "ErasureRoute([])"
    assert repr(Personal("user_id", field="id")) == "Personal(subject='user_id', field='id', formerly=())"
