"""The fake data service: what a client makes of its faults, inside the process and over each transport."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.clients import ClientPolicy, PostgresDataClient
from hybridkit.clients._transports._http1 import Http1Transport
from hybridkit.clients._transports._httpx import HttpxTransport, new_client
from hybridkit.errors import (
    ConflictError,
    DeadlinePassedError,
    DeclarationError,
    ForeignKeyError,
    OutcomeUnknownError,
    ResponseError,
    UnavailableError,
    UniqueViolationError,
)
from hybridkit.ids import new_id
from hybridkit.resources import Compare, Record, Resource
from hybridkit.retry import Retry
from hybridkit.testing import FakeDataService, UniqueWhere


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


@pytest.fixture(params=["in_process", "httpx", "http1"])
def connect(request: pytest.FixtureRequest, fake: FakeDataService) -> Connect:
    """Opens a client of the fake, over one of the ways that lead to it."""

    @asynccontextmanager
    async def connected(policy: ClientPolicy = PATIENT) -> AsyncGenerator[PostgresDataClient]:
        if request.param == "in_process":
            async with fake.postgres_client(service="api_service", policy=policy) as client:
                yield client
            return
        transport = (
            Http1Transport() if request.param == "http1" else HttpxTransport(new_client(None), owned=True)
        )
        async with (
            fake.serve() as url,
            PostgresDataClient(url, service="api_service", transport=transport, policy=policy) as client,
        ):
            yield client

    return connected


async def test_it_is_a_data_service(connect: Connect) -> None:
    """Records are created, read, found and refused as on a database."""
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
    """The write has happened, and only a look can tell."""
    fake.faults.lose_reply(matching="POST *")
    async with connect() as client:
        with pytest.raises(OutcomeUnknownError):
            await client.create(USERS, NewUser(email="a@example.com"))
        fake.faults.clear()
        assert [user.email async for user in client.find(USERS)] == ["a@example.com"]


async def test_a_connection_that_went_stale_is_replaced(connect: Connect, fake: FakeDataService) -> None:
    """The call succeeds on another connection."""
    async with connect() as client:
        first = await client.create(USERS, NewUser(email="a@example.com"))
        fake.faults.close_idle(times=1)
        assert await client.get(USERS, first.id) == first


async def test_a_passing_refusal_is_waited_out(connect: Connect, fake: FakeDataService) -> None:
    """The client tries again until the service takes the call."""
    fake.faults.refuse(times=2)
    async with connect() as client:
        await client.create(USERS, NewUser(email="a@example.com"))
    assert fake.requests == ["POST /v1/users"] * 3


@pytest.mark.parametrize("error", [UnavailableError("down"), ConflictError("busy")])
async def test_a_lasting_refusal_is_raised(
    connect: Connect, fake: FakeDataService, error: UnavailableError | ConflictError
) -> None:
    """The caller gets the service's own error once the attempts are used up."""
    fake.faults.refuse(error)
    async with connect() as client:
        with pytest.raises(type(error)):
            await client.find(USERS).page()


async def test_latency_ends_at_the_deadline(connect: Connect, fake: FakeDataService) -> None:
    """The caller waits no longer than its policy says."""
    fake.faults.delay(30)
    async with connect(HURRIED) as client:
        with pytest.raises(DeadlinePassedError):
            await client.find(USERS).page()


async def test_a_drip_ends_at_the_deadline(connect: Connect, fake: FakeDataService) -> None:
    """Bytes that arrive don't extend it."""
    fake.faults.drip(0.1)
    async with connect(HURRIED) as client:
        with pytest.raises(DeadlinePassedError):
            await client.find(USERS).page()


async def test_a_quick_drip_is_a_whole_answer(connect: Connect, fake: FakeDataService) -> None:
    """Slowness alone is no error."""
    fake.faults.drip(0.0001)
    async with connect() as client:
        assert [user async for user in client.find(USERS)] == []


@pytest.mark.parametrize("kind", ["html", "cut_json", "wrong_schema"])
async def test_garbage_is_a_typed_error(connect: Connect, fake: FakeDataService, kind: str) -> None:
    """A proxy's page, half an answer and another schema blame the other side."""
    fake.faults.garble(kind)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    async with connect() as client:
        with pytest.raises(ResponseError):
            await client.find(USERS).page()


async def test_a_huge_answer_is_given_up_on(connect: Connect, fake: FakeDataService) -> None:
    """The client stops reading before it fills the caller's memory."""
    fake.faults.inflate(PATIENT.max_response_bytes + 1)
    async with connect() as client:
        with pytest.raises(ResponseError):
            await client.find(USERS).page()


async def test_a_fault_only_meets_what_it_matches(fake: FakeDataService) -> None:
    """Other routes go on as before."""
    fake.faults.refuse(matching="POST /v1/users")
    async with fake.postgres_client(service="api_service", policy=HURRIED) as client:
        assert [user async for user in client.find(USERS)] == []
        with pytest.raises(UnavailableError):
            await client.create(USERS, NewUser(email="a@example.com"))


async def test_both_clients_reach_it(fake: FakeDataService) -> None:
    """MongoDB's client speaks the same contract."""
    async with fake.mongo_client(service="api_service") as client:
        await client.create(USERS, NewUser(email="a@example.com"))
    assert "users" in repr(fake)


async def test_on_a_port_it_is_ready(fake: FakeDataService) -> None:
    """A process that waits for it starts, and a client's probe finds it, inside the process too."""
    async with fake.serve() as url, PostgresDataClient(url, service="api_service") as client:
        assert await client.probe() is None
    async with fake.postgres_client(service="api_service") as client:
        assert await client.probe() is None


async def asked_by_bytes(fake: FakeDataService, *pieces: bytes) -> AsyncGenerator[bytes]:
    """The first line of what each piece is answered with, on one connection."""
    async with fake.serve() as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        for piece in pieces:
            writer.write(piece)
            async with asyncio.timeout(60):
                yield await reader.readline()
                await reader.readuntil(b"\r\n")
        writer.close()


HEAD = b"POST /v1/users HTTP/1.1\r\nHost: data\r\nidempotency-key: k\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"garbage\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (HEAD + b"content-length: -1\r\n\r\n", b"400"),
        (HEAD + b"content-length: %b\r\n\r\n" % (b"9" * 5000), b"400"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nno size\r\n", b"400"),
        (HEAD + b"x-a: %b\r\n\r\n" % (b"b" * 70_000), b"431"),
    ],
    ids=["no request", "no field", "negative length", "endless length", "no chunk", "large head"],
)
async def test_on_a_port_it_refuses_what_is_no_http(
    fake: FakeDataService, request_: bytes, status: bytes
) -> None:
    """It answers with a status, like a data service, instead of closing without a word."""
    lines = [line async for line in asked_by_bytes(fake, request_)]
    assert [line.split()[1] for line in lines] == [status]


async def test_on_a_port_it_tells_a_client_to_go_on(fake: FakeDataService) -> None:
    """Large bodies are sent after an answer only; trailers behind them are no next request."""
    head = HEAD + b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b'1a\r\n{"email":"a@example.com"}\n\r\n0\r\nx-checksum: 1\r\n\r\n'
    lines = [line async for line in asked_by_bytes(fake, head, body)]
    assert [line.split()[1] for line in lines] == [b"100", b"201"]


class NewOrder(BaseModel):
    user_id: UUID | None = None
    number: int = 0
    is_open: bool = True


class Order(NewOrder, Record):
    pass


class OrderChanges(BaseModel):
    user_id: UUID | None = None
    is_open: bool | None = None


ORDERS = Resource(
    "orders",
    record=Order,
    create=NewOrder,
    update=OrderChanges,
    filterable=("is_open",),
    soft_delete=True,
)


@pytest.fixture
async def shop() -> AsyncGenerator[PostgresDataClient]:
    fake = FakeDataService(
        [USERS, ORDERS],
        unique={
            ORDERS: [
                UniqueWhere("user_id", where=ORDERS["is_open"] == True),  # noqa: E712  # a filter
                UniqueWhere("number", where=Compare("deleted_at", "is", None)),
            ]
        },
        references={ORDERS: {"user_id": USERS}},
    )
    async with fake.postgres_client(service="api_service") as client:
        yield client


async def test_a_reference_leads_to_a_record_that_is_there(shop: PostgresDataClient) -> None:
    """Every kind of write is checked, a refused transaction does nothing, and null refers to nothing."""
    order = await shop.create(ORDERS, NewOrder())
    nobody = NewOrder(user_id=new_id(), number=1)
    for attempt in (
        lambda: shop.create(ORDERS, nobody),
        lambda: shop.upsert(ORDERS, new_id(), nobody),
        lambda: shop.replace(ORDERS, order, nobody),
        lambda: shop.update(ORDERS, order, OrderChanges(user_id=new_id())),
        lambda: shop.create_many(ORDERS, [nobody]),
    ):
        with pytest.raises(ForeignKeyError):
            await attempt()
    with pytest.raises(ForeignKeyError, match="operations/1"):  # noqa: PT012  # it is sent at the block's end
        async with shop.transaction() as tx:
            tx.create(USERS, NewUser(email="a@example.com"))
            tx.create(ORDERS, nobody)
    assert await shop.find(USERS).count() == 0
    async with shop.transaction() as tx:
        user = tx.create(USERS, NewUser(email="a@example.com"))
        tx.create(ORDERS, NewOrder(user_id=user.id, number=1))


async def test_what_is_referred_to_is_not_deleted(shop: PostgresDataClient) -> None:
    """A record that is only hidden still refers to it: its row is there, as in a database."""
    user = await shop.create(USERS, NewUser(email="a@example.com"))
    order = await shop.create(ORDERS, NewOrder(user_id=user.id))
    await shop.delete(ORDERS, order)
    with pytest.raises(ForeignKeyError):
        await shop.delete(USERS, user)
    order = await shop.undelete(ORDERS, order.id)
    await shop.update(ORDERS, order, OrderChanges(user_id=None))
    await shop.delete(USERS, user)


async def test_an_index_over_some_records_looks_at_these_only(shop: PostgresDataClient) -> None:
    """A record that leaves the index makes room for another one."""
    user = await shop.create(USERS, NewUser(email="a@example.com"))
    first = await shop.create(ORDERS, NewOrder(user_id=user.id, number=1))
    with pytest.raises(UniqueViolationError) as taken:
        await shop.create(ORDERS, NewOrder(user_id=user.id, number=2))
    assert taken.value.fields == ("user_id",)
    second = await shop.create(ORDERS, NewOrder(user_id=user.id, number=2, is_open=False))
    with pytest.raises(UniqueViolationError):
        await shop.update(ORDERS, second, OrderChanges(is_open=True))
    await shop.update(ORDERS, first, OrderChanges(is_open=False))
    await shop.update(ORDERS, second, OrderChanges(is_open=True))


async def test_an_index_may_leave_out_what_a_soft_delete_has_hidden(shop: PostgresDataClient) -> None:
    """The value is free until the record is undeleted."""
    first = await shop.create(ORDERS, NewOrder(number=1))
    await shop.delete(ORDERS, first)
    await shop.create(ORDERS, NewOrder(number=1))
    with pytest.raises(UniqueViolationError):
        await shop.undelete(ORDERS, first.id)


def test_what_a_fake_is_told_of_unknown_fields_and_resources_is_refused() -> None:
    """A misspelt index would enforce nothing."""
    with pytest.raises(DeclarationError, match="colour"):
        FakeDataService([USERS], unique={USERS: ["colour"]})
    with pytest.raises(DeclarationError, match="owner"):
        FakeDataService([USERS], references={USERS: {"owner": USERS}})
    with pytest.raises(DeclarationError, match="orders"):
        FakeDataService([USERS], references={ORDERS: {"user_id": USERS}})
