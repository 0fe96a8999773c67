"""What the clients send and how they read the answers, against an application in the same process (ASGI)."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

import httpx
import pytest
from pydantic import BaseModel

from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.contract import Problem
from hybridkit.errors import (
    DeclarationError,
    HybridkitError,
    MisuseError,
    NotFoundError,
    NotSupportedError,
    PayloadTooLargeError,
    ResponseError,
    StaleVersionError,
    UnavailableError,
    UniqueViolationError,
)
from hybridkit.events import Event
from hybridkit.resources import Query, Record, Resource

ID = UUID("1f1e5477-3fd3-6f83-be8e-f44fe982b401")


class NewUser(BaseModel):
    email: str


class User(NewUser, Record):
    is_active: bool = True


class UserChanges(BaseModel):
    email: str | None = None
    is_active: bool | None = None


class Place(BaseModel):
    name: str


class Country(Place, Record[str]):
    pass


USERS = Resource(
    "users",
    record=User,
    create=NewUser,
    update=UserChanges,
    filterable=("email", "is_active"),
    sortable=("created_at",),
)
COUNTRIES = Resource("countries", record=Country, create=Place, update=Place)


class Registered(Event, type="client_calls_test.registered", key="user_id"):
    user_id: UUID


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the application got it."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


type Answer = tuple[int, object] | HybridkitError


class Application:
    """A data service that answers what it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answers: list[Answer] = []

    async def __call__(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[Mapping[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.seen.append(
            Seen(
                scope["method"],
                scope["raw_path"].decode(),
                parse_qsl(scope["query_string"].decode(), strict_parsing=bool(scope["query_string"])),
                {name.decode(): value.decode() for name, value in scope["headers"]},
                body,
            )
        )
        answer = self.answers.pop(0)
        media_type = b"application/json"
        if isinstance(answer, HybridkitError):
            problem = Problem.from_error(answer, instance=scope["path"], request_id="r")
            answer, media_type = (
                (problem.status, problem.model_dump(mode="json")),
                b"application/problem+json",
            )
        status, content = answer
        payload = b"" if status == 204 else json.dumps(content).encode()
        headers = [(b"content-type", media_type)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    def answer(self, *answers: Answer) -> None:
        self.answers.extend(answers)

    def only(self) -> Seen:
        (seen,) = self.seen
        return seen

    def transport(self) -> httpx.ASGITransport:
        return httpx.ASGITransport(self)


def stored(id: object = ID, **fields: Any) -> dict[str, Any]:
    moment = "2026-01-15T10:30:00Z"
    system = {"id": str(id), "version": 1, "created_at": moment, "updated_at": moment, "etag": '"1-a"'}
    return {**system, "email": "a@example.com", "is_active": True, **fields}


@pytest.fixture
def app() -> Application:
    return Application()


@pytest.fixture
async def postgres(app: Application) -> AsyncIterator[PostgresDataClient]:
    async with PostgresDataClient("http://users:8001/", service="api", transport=app.transport()) as client:
        yield client


@pytest.fixture(params=[PostgresDataClient, MongoDataClient])
async def client(
    app: Application, request: pytest.FixtureRequest
) -> AsyncIterator[PostgresDataClient | MongoDataClient]:
    """Both clients: what they share is tested on both."""
    async with request.param("http://users:8001/", service="api", transport=app.transport()) as client:
        yield client


type AnyClient = PostgresDataClient | MongoDataClient


# ── reads ────────────────────────────────────────────────────────────────────────────────────────


async def test_get(app: Application, client: AnyClient) -> None:
    """A read asks for the record's path, says who calls, and has no idempotency key."""
    app.answer((200, stored()))
    user = await client.get(USERS, ID)
    assert (user.id, user.email, user.etag) == (ID, "a@example.com", '"1-a"')
    seen = app.only()
    assert (seen.method, seen.path, seen.body) == ("GET", f"/v1/users/{ID}", b"")
    assert seen.headers["x-service-name"] == "api"
    assert "idempotency-key" not in seen.headers


async def test_get_by_a_natural_key(app: Application, client: AnyClient) -> None:
    """A key stays one segment of the path, with any characters in it."""
    app.answer((200, stored("a/b", name="?")))
    assert (await client.get(COUNTRIES, "a/b")).id == "a/b"
    assert app.only().path == "/v1/countries/a%2Fb"


async def test_a_missing_record(app: Application, client: AnyClient) -> None:
    """`get` raises, `get_or_none` answers None."""
    app.answer(NotFoundError("no such user"), NotFoundError("no such user"), (200, stored()))
    with pytest.raises(NotFoundError, match="no such user"):
        await client.get(USERS, ID)
    assert await client.get_or_none(USERS, ID) is None
    assert await client.get_or_none(USERS, ID) is not None


async def test_find_sends_the_url_form(app: Application, client: AnyClient) -> None:
    """Conditions, order and page size are parameters, and the next page adds only its token."""
    app.answer((200, {"items": [stored()], "next_page_token": "t"}), (200, {"items": [stored()]}))
    query = client.find(USERS).where(USERS["email"] == "a&b=c d@example.com", USERS["is_active"] == True)  # noqa: E712 - a filter
    found = [user async for user in query.order_by("created_at", descending=True).page_size(1)]
    assert len(found) == 2
    first, second = app.seen
    assert (first.method, first.path) == ("GET", "/v1/users")
    assert first.query == [
        ("email", "eq.a&b=c d@example.com"),
        ("is_active", "eq.true"),
        ("order", "created_at.desc"),
        ("page_size", "1"),
    ]
    assert second.query == [*first.query, ("page_token", "t")]


async def test_a_long_query_goes_into_a_body(app: Application, client: AnyClient) -> None:
    """URLs have limits on the way; it is still a read, so it needs no key and may be repeated."""
    emails = [f"user-{number}@example.com" for number in range(200)]
    app.answer(UnavailableError("busy"), (200, {"items": []}))
    page = await client.find(USERS).where(USERS["email"].in_(emails)).page()
    assert page.items == ()
    first, second = app.seen
    assert (first.method, first.path) == ("POST", "/v1/users:query")
    assert "idempotency-key" not in first.headers
    assert Query.from_json(USERS, first.json()) == Query(where=USERS["email"].in_(emails))
    assert first.body == second.body


async def test_find_without_conditions(app: Application, client: AnyClient) -> None:
    """`first` of everything asks for one record and nothing else."""
    app.answer((200, {"items": []}))
    assert await client.find(USERS).first() is None
    assert app.only().query == [("page_size", "1")]


# ── writes ───────────────────────────────────────────────────────────────────────────────────────


async def test_create(app: Application, client: AnyClient) -> None:
    """The id is made by the client and sent along, so that a repeated create is the same create."""
    app.answer((201, stored()))
    user = await client.create(USERS, NewUser(email="a@example.com"))
    assert user.id == ID
    seen = app.only()
    assert (seen.method, seen.path) == ("POST", "/v1/users")
    sent = seen.json()
    assert UUID(sent.pop("id")).version == 6
    assert sent == {"email": "a@example.com"}
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["idempotency-key"].startswith('"')


async def test_create_with_a_natural_key(app: Application, client: AnyClient) -> None:
    """The key is a member of the body."""
    app.answer((201, stored("fr", name="France")))
    country = await client.create(COUNTRIES, Place(name="France"), id="fr")
    assert country.id == "fr"
    assert app.only().json() == {"id": "fr", "name": "France"}


async def test_update_of_a_record_depends_on_its_state(app: Application, client: AnyClient) -> None:
    """The ETag of the record is sent as `If-Match`."""
    app.answer((200, stored(is_active=False)))
    user = await client.update(USERS, User.model_validate(stored()), UserChanges(is_active=False))
    assert not user.is_active
    seen = app.only()
    assert (seen.method, seen.path) == ("PATCH", f"/v1/users/{ID}")
    assert seen.headers["if-match"] == '"1-a"'
    assert seen.headers["content-type"] == "application/merge-patch+json"
    assert seen.json() == {"is_active": False}


async def test_update_by_id_is_unconditional(app: Application, client: AnyClient) -> None:
    """Without a record there is no `If-Match`, and a field that was set to None is null."""
    app.answer((200, stored()))
    await client.update(USERS, ID, UserChanges(email=None))
    assert "if-match" not in app.only().headers
    assert app.only().json() == {"email": None}


async def test_a_stale_record_is_told_apart(app: Application, client: AnyClient) -> None:
    """The error has the ETag that the record has now."""
    app.answer(StaleVersionError("it changed", current='"2-a"'))
    with pytest.raises(StaleVersionError) as caught:
        await client.update(USERS, User.model_validate(stored()), UserChanges(is_active=False))
    assert caught.value.current == '"2-a"'


async def test_upsert(app: Application, client: AnyClient) -> None:
    """It puts all fields to the record's path, with a key."""
    app.answer((201, stored()))
    await client.upsert(USERS, ID, NewUser(email="a@example.com"))
    seen = app.only()
    assert (seen.method, seen.path, seen.json()) == ("PUT", f"/v1/users/{ID}", {"email": "a@example.com"})
    assert "idempotency-key" in seen.headers


async def test_delete(app: Application, client: AnyClient) -> None:
    """Deleting a record sends its ETag, deleting an id none."""
    app.answer((204, None), (204, None))
    await client.delete(USERS, ID)
    await client.delete(USERS, User.model_validate(stored()))
    by_id, by_record = app.seen
    assert (by_id.method, by_id.path, by_id.body) == ("DELETE", f"/v1/users/{ID}", b"")
    assert "if-match" not in by_id.headers
    assert by_record.headers["if-match"] == '"1-a"'


async def test_errors_keep_what_the_caller_needs(app: Application, client: AnyClient) -> None:
    """The fields of a violated constraint reach the caller."""
    app.answer(UniqueViolationError("taken", fields=("email",)))
    with pytest.raises(UniqueViolationError) as caught:
        await client.create(USERS, NewUser(email="a@example.com"))
    assert caught.value.fields == ("email",)


async def test_every_write_has_a_key_of_its_own(app: Application, client: AnyClient) -> None:
    """Each call has another key, and its attempts have the same."""
    app.answer(UnavailableError("busy"), (200, stored()), (200, stored()))
    await client.update(USERS, ID, UserChanges(is_active=True))
    await client.update(USERS, ID, UserChanges(is_active=True))
    first, again, other = (seen.headers["idempotency-key"] for seen in app.seen)
    assert first == again != other


async def test_inside_a_claim_a_rerun_sends_the_same_keys_and_ids(
    app: Application, client: AnyClient
) -> None:
    """Five writes have five keys, and the same five when the work runs again."""

    async def work() -> list[tuple[str, bytes]]:
        app.seen.clear()
        app.answer((201, stored()), (201, stored()), (200, stored()), (200, stored()), (204, None))
        with bind(RequestContext(claim=Claim("worker:event:7"))):
            await client.create(USERS, NewUser(email="a@example.com"))
            await client.create(USERS, NewUser(email="b@example.com"))
            await client.update(USERS, ID, UserChanges(is_active=True))
            await client.upsert(USERS, ID, NewUser(email="c@example.com"))
            await client.delete(USERS, ID)
        return [(seen.headers["idempotency-key"], seen.body) for seen in app.seen]

    first, second = await work(), await work()
    assert first == second
    assert len({key for key, _ in first}) == 5
    assert all(key.startswith('"hkd_') for key, _ in first)


async def test_a_body_over_the_limit_is_not_sent(app: Application, client: AnyClient) -> None:
    """A body of more than 1 MiB raises before the transport."""
    with pytest.raises(PayloadTooLargeError):
        await client.upsert(USERS, ID, NewUser(email="x" * (1024 * 1024)))
    assert app.seen == []


# ── transactions ─────────────────────────────────────────────────────────────────────────────────


async def test_a_transaction_is_one_request(app: Application, postgres: PostgresDataClient) -> None:
    """The operations and events of a block are one body, which a retry sends again under the same key."""
    app.answer(UnavailableError("busy"), (200, {"results": [stored(), None]}))
    with bind(RequestContext(request_id="req-1")):
        async with postgres.transaction(isolation="serializable") as tx:
            user = tx.create(USERS, NewUser(email="a@example.com"))
            tx.delete(USERS, ID)
            tx.emit(Registered(user_id=user.id))
    assert user.result.email == "a@example.com"
    first, again = app.seen
    assert (first.method, first.path) == ("POST", "/v1:transact")
    assert first.headers["x-request-id"] == "req-1"
    assert first.headers["idempotency-key"] == again.headers["idempotency-key"]
    assert first.body == again.body
    sent = first.json()
    assert [operation["op"] for operation in sent["operations"]] == ["create", "delete"]
    assert sent["emit"][0]["data"] == {"user_id": str(user.id)}
    assert sent["isolation"] == "serializable"


async def test_a_failed_transaction_raises_the_services_error(
    app: Application, postgres: PostgresDataClient
) -> None:
    """The error of the commit is raised at the end of the block."""
    app.answer(UniqueViolationError("taken", fields=("email",)))
    with pytest.raises(UniqueViolationError):
        async with postgres.transaction() as tx:
            tx.create(USERS, NewUser(email="a@example.com"))


async def test_what_a_server_cannot_do_is_typed(app: Application, postgres: PostgresDataClient) -> None:
    """A 501 raises `NotSupportedError`."""
    app.answer(NotSupportedError("no transactions here"))
    with pytest.raises(NotSupportedError):
        async with postgres.transaction() as tx:
            tx.delete(USERS, ID)


async def test_a_transaction_answered_with_garbage(app: Application, postgres: PostgresDataClient) -> None:
    """An answer without results raises `ResponseError`."""
    app.answer((200, {"result": []}))
    with pytest.raises(ResponseError, match="a transaction's results"):
        async with postgres.transaction() as tx:
            tx.delete(USERS, ID)


# ── probe, life, and what is refused ─────────────────────────────────────────────────────────────


async def test_a_probe_asks_for_readiness(app: Application, client: AnyClient) -> None:
    """A probe is one request to `/ready`, and anything but a success raises `UnavailableError`."""
    app.answer((200, {"status": "ready"}), (503, {"status": "not_ready"}), (404, {}))
    await client.probe()
    assert app.only().path == "/ready"
    with pytest.raises(UnavailableError, match="answered 503"):
        await client.probe()
    with pytest.raises(UnavailableError, match=r"is not ready: .* answered 404"):
        await client.probe()
    assert len(app.seen) == 3


async def test_a_client_is_used_inside_its_block(app: Application) -> None:
    """Before, after and twice inside raises `MisuseError`."""
    client = PostgresDataClient("http://users:8001", service="api", transport=app.transport())
    with pytest.raises(MisuseError, match="inside its `async with` block"):
        await client.get(USERS, ID)
    async with client:
        assert repr(client) == "PostgresDataClient('http://users:8001', service='api', open)"
        with pytest.raises(MisuseError, match="is open already"):
            await client.__aenter__()
    with pytest.raises(MisuseError, match="closed"):
        await client.get(USERS, ID)


async def test_an_httpx_client_stays_the_callers(app: Application) -> None:
    """Closing our client leaves the given one open."""
    async with httpx.AsyncClient(transport=app.transport()) as own:
        app.answer((200, stored()))
        async with PostgresDataClient("http://users:8001", service="api", transport=own) as client:
            await client.get(USERS, ID)
        assert not own.is_closed


@pytest.mark.parametrize(
    "base_url",
    ["users:8001", "ftp://users", "http://", "http://users?x=1", "http://users#x", "http://me:secret@users"],
)
def test_an_unusable_url_is_refused_without_showing_it(base_url: str) -> None:
    """A password in the URL doesn't get into the error."""
    with pytest.raises(DeclarationError) as caught:
        PostgresDataClient(base_url, service="api")
    assert "secret" not in str(caught.value)


def test_a_services_name_is_snake_case() -> None:
    """A name that other names are made of is refused when the client is made."""
    with pytest.raises(DeclarationError, match="snake_case"):
        MongoDataClient("http://mongo:8002", service="API service")
