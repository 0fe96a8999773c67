"""The fake data service: what a client makes of its faults, inside the process and over each transport."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from pydantic import BaseModel

from hybridkit.clients import ClientPolicy, PostgresDataClient
from hybridkit.clients._transport_aiohttp import AiohttpTransport
from hybridkit.clients._transport_httpx import HttpxTransport, new_client
from hybridkit.errors import (
    ConflictError,
    DeadlineExceededError,
    OutcomeUnknownError,
    ResponseError,
    UnavailableError,
    UniqueViolationError,
)
from hybridkit.resources import Record, Resource
from hybridkit.retry import Retry
from hybridkit.testing import FakeDataService


class NewUser(BaseModel):
    email: str


class User(NewUser, Record):
    pass


USERS = Resource("users", record=User, create=NewUser, update=NewUser, filterable=("email",))
AT_ONCE = Retry.exponential(first_seconds=0.001, cap_seconds=0.01, attempts=3)
PATIENT = ClientPolicy(
    read_timeout_seconds=30, write_timeout_seconds=30, connect_timeout_seconds=10, retry=AT_ONCE
)
HURRIED = ClientPolicy(
    read_timeout_seconds=0.3, write_timeout_seconds=0.3, connect_timeout_seconds=10, retry=AT_ONCE
)

type Connect = Callable[..., AbstractAsyncContextManager[PostgresDataClient]]


@pytest.fixture
def fake() -> FakeDataService:
    return FakeDataService({USERS}, unique={USERS: ["email"]})


@pytest.fixture(params=["in_process", "httpx", "aiohttp"])
def connect(request: pytest.FixtureRequest, fake: FakeDataService) -> Connect:
    """Opens a client of the fake, over one of the ways that lead to it."""

    @asynccontextmanager
    async def connected(policy: ClientPolicy = PATIENT) -> AsyncGenerator[PostgresDataClient]:
        if request.param == "in_process":
            async with fake.postgres_client(service="api_service", policy=policy) as client:
                yield client
            return
        transport = (
            AiohttpTransport() if request.param == "aiohttp" else HttpxTransport(new_client(None), owned=True)
        )
        async with (
            fake.serve() as url,
            PostgresDataClient(url, service="api_service", transport=transport, policy=policy) as client,
        ):
            yield client

    return connected


async def test_it_is_a_data_service(connect: Connect) -> None:
    async with connect() as client:
        user = await client.create(USERS, NewUser(email="a@example.com"))
        assert await client.get(USERS, user.id) == user
        found = [one async for one in client.find(USERS).where(USERS["email"].like("a@%"))]
        assert found == [user]
        with pytest.raises(UniqueViolationError):
            await client.create(USERS, NewUser(email="a@example.com"))


async def test_a_lost_reply_is_found_under_its_key(connect: Connect, fake: FakeDataService) -> None:
    """The first try has created the user; the second one, with the same key, gets that answer."""
    fake.faults.lose_reply(times=1, matching="POST /v1/users")
    async with connect() as client:
        user = await client.create(USERS, NewUser(email="a@example.com"))
        assert await client.get(USERS, user.id) == user
    assert fake.requests.count("POST /v1/users") == 2


async def test_a_service_that_never_answers_leaves_the_outcome_open(
    connect: Connect, fake: FakeDataService
) -> None:
    fake.faults.lose_reply(matching="POST *")
    async with connect() as client:
        with pytest.raises(OutcomeUnknownError):
            await client.create(USERS, NewUser(email="a@example.com"))
        fake.faults.clear()
        assert [user.email async for user in client.find(USERS)] == ["a@example.com"]


async def test_a_connection_that_went_stale_is_replaced(connect: Connect, fake: FakeDataService) -> None:
    async with connect() as client:
        first = await client.create(USERS, NewUser(email="a@example.com"))
        fake.faults.close_idle(times=1)
        assert await client.get(USERS, first.id) == first


async def test_a_passing_refusal_is_waited_out(connect: Connect, fake: FakeDataService) -> None:
    fake.faults.refuse(times=2)
    async with connect() as client:
        await client.create(USERS, NewUser(email="a@example.com"))
    assert fake.requests == ["POST /v1/users"] * 3


@pytest.mark.parametrize("error", [UnavailableError("down"), ConflictError("busy")])
async def test_a_lasting_refusal_is_raised(
    connect: Connect, fake: FakeDataService, error: UnavailableError | ConflictError
) -> None:
    fake.faults.refuse(error)
    async with connect() as client:
        with pytest.raises(type(error)):
            await client.find(USERS).page()


async def test_latency_ends_at_the_deadline(connect: Connect, fake: FakeDataService) -> None:
    fake.faults.delay(30)
    async with connect(HURRIED) as client:
        with pytest.raises(DeadlineExceededError):
            await client.find(USERS).page()


async def test_a_drip_ends_at_the_deadline(connect: Connect, fake: FakeDataService) -> None:
    fake.faults.drip(0.1)
    async with connect(HURRIED) as client:
        with pytest.raises(DeadlineExceededError):
            await client.find(USERS).page()


async def test_a_quick_drip_is_a_whole_answer(connect: Connect, fake: FakeDataService) -> None:
    fake.faults.drip(0.0001)
    async with connect() as client:
        assert [user async for user in client.find(USERS)] == []


@pytest.mark.parametrize("kind", ["html", "cut_json", "wrong_schema"])
async def test_garbage_is_a_typed_error(connect: Connect, fake: FakeDataService, kind: str) -> None:
    fake.faults.garble(kind)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    async with connect() as client:
        with pytest.raises(ResponseError):
            await client.find(USERS).page()


async def test_a_huge_answer_is_given_up_on(connect: Connect, fake: FakeDataService) -> None:
    fake.faults.inflate(PATIENT.max_response_bytes + 1)
    async with connect() as client:
        with pytest.raises(ResponseError):
            await client.find(USERS).page()


async def test_a_fault_only_meets_what_it_matches(fake: FakeDataService) -> None:
    fake.faults.refuse(matching="POST /v1/users")
    async with fake.postgres_client(service="api_service", policy=HURRIED) as client:
        assert [user async for user in client.find(USERS)] == []
        with pytest.raises(UnavailableError):
            await client.create(USERS, NewUser(email="a@example.com"))


async def test_both_clients_reach_it(fake: FakeDataService) -> None:
    async with fake.mongo_client(service="api_service") as client:
        await client.create(USERS, NewUser(email="a@example.com"))
    assert "users" in repr(fake)
