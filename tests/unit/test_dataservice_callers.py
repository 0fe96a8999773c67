"""A data service's callers: known by their tokens, held to their grants, on every route."""

import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, cast
from uuid import uuid4

import httpx
import jwt
import pytest
from pydantic import BaseModel, SecretStr

from hybridkit.clients import DataTransaction, PostgresDataClient
from hybridkit.dataservice import DocumentCollection, Grant, create_data_service
from hybridkit.dataservice._http._callers import Callers
from hybridkit.errors import AccessDeniedError, DeclarationError, UnauthenticatedError, UnavailableError
from hybridkit.events import Command, Event
from hybridkit.resources import Call, Record, Resource
from hybridkit.security import ServiceTokenIssuer
from hybridkit.settings import DataServiceSettings, MongoSettings
from hybridkit.testing import FakeDataService

KEYS = {name: f"the secret of {name}, long enough" for name in ("api_service", "bot_service", "stranger")}


class NewNote(BaseModel):
    text: str


class Note(NewNote, Record):
    pass


class NoteWritten(Event, type="tests.note_written"):
    text: str


class NoteLost(Event, type="tests.note_lost"):
    text: str


class PrintNote(Command, type="tests.print_note", queue="print_tasks"):
    text: str


NOTES = Resource("notes", record=Note, create=NewNote, update=NewNote, soft_delete=True)
OTHERS = Resource("others", record=Note, create=NewNote, update=NewNote)
LOOK = Call("look", resource=NOTES, request=NewNote, response=NewNote, safe=True)
CHANGE = Call("change", resource=NOTES, request=NewNote, response=NewNote)
GRANTS = {
    "api_service": Grant(write=[NOTES], emit=True),
    "bot_service": Grant(read=[NOTES]),
}


class Settings(DataServiceSettings):
    service_name: str = "data"


def settings(*names: str) -> Settings:
    return Settings(service_token_keys={name: SecretStr(KEYS[name]) for name in names})


def serving(callers: Callers, calls: Mapping[Call[Any, Any], Any] | None = None) -> FakeDataService:
    fake = FakeDataService([NOTES, OTHERS], calls=calls)
    cast("Any", fake)._app.state.callers = callers
    return fake


def authorization(caller: str, *, audience: str = "data") -> Callable[[], str]:
    return ServiceTokenIssuer(caller, key=KEYS[caller], audience=audience).header


def client(fake: FakeDataService, caller: str) -> PostgresDataClient:
    return PostgresDataClient(
        "http://data", service=caller, transport=fake.transport, authorization=authorization(caller)
    )


async def both(transaction: DataTransaction) -> None:
    async with transaction as tx:
        tx.create(NOTES, NewNote(text="a"))
        tx.create(OTHERS, NewNote(text="a"))


async def emit_all(transaction: DataTransaction, *messages: Event | Command) -> None:
    async with transaction as tx:
        for message in messages:
            tx.emit(message)


@pytest.fixture
def fake() -> FakeDataService:
    return serving(Callers.of(settings("api_service", "bot_service"), GRANTS))


async def test_a_caller_whose_token_is_refused_is_not_ready_and_told_what_to_compare(
    fake: FakeDataService, logs: list[MutableMapping[str, Any]]
) -> None:
    """Without this both sides are green while every call fails; whoever only asks for readiness needs no token."""
    wrong = PostgresDataClient(
        "http://data",
        service="api_service",
        transport=fake.transport,
        authorization=authorization("api_service", audience="db_postgres_service"),
    )
    keyless = PostgresDataClient("http://data", service="api_service", transport=fake.transport)
    for client_ in (wrong, keyless):
        async with client_:
            with pytest.raises(UnavailableError, match="POSTGRES_SERVICE_NAME or MONGO_SERVICE_NAME"):
                await client_.probe()
    [reason] = [line["reason"] for line in logs if line["event"] == "service token refused"]
    assert reason.startswith("it is signed by api_service, and its aud is not data: ")
    assert reason.endswith("as POSTGRES_SERVICE_NAME or MONGO_SERVICE_NAME")
    async with client(fake, "api_service") as right:
        assert await right.probe() is None
    transport = httpx.ASGITransport(cast("Any", fake)._app)
    async with httpx.AsyncClient(transport=transport, base_url="http://data") as orchestrator:
        assert (await orchestrator.get("/ready")).status_code == 200


async def test_what_is_granted_is_done(fake: FakeDataService) -> None:
    """One caller writes and emits, another one reads what was written."""
    async with client(fake, "api_service") as api, client(fake, "bot_service") as bot:
        async with api.transaction() as tx:
            note = tx.create(NOTES, NewNote(text="a"))
            tx.emit(NoteWritten(text="a"))
        assert (await bot.get(NOTES, note.id)).text == "a"
        assert [found.id async for found in bot.find(NOTES)] == [note.id]


async def test_what_is_not_granted_is_refused_and_not_done(fake: FakeDataService) -> None:
    """Every way to ask for it is refused, and the record stays as it was."""
    async with client(fake, "api_service") as api, client(fake, "bot_service") as bot:
        note = await api.create(NOTES, NewNote(text="a"))
        for refused in (
            lambda: bot.create(NOTES, NewNote(text="b")),
            lambda: bot.update(NOTES, note, NewNote(text="b")),
            lambda: bot.upsert(NOTES, uuid4(), NewNote(text="b")),
            lambda: bot.delete(NOTES, note),
            lambda: bot.get(OTHERS, note.id),
            lambda: api.get(OTHERS, note.id),
        ):
            with pytest.raises(AccessDeniedError):
                await refused()
        assert [found.text async for found in api.find(NOTES)] == ["a"]


async def test_a_transaction_needs_every_one_of_its_grants(fake: FakeDataService) -> None:
    """One that lacks a single grant does nothing, and emits nothing."""
    async with client(fake, "api_service") as api, client(fake, "bot_service") as bot:
        half_granted, emitting = api.transaction(), bot.transaction()
        with pytest.raises(AccessDeniedError, match="api_service may not create others here"):
            await both(half_granted)
        with pytest.raises(AccessDeniedError, match=r"bot_service may not emit tests\.note_written here"):
            await emit_all(emitting, NoteWritten(text="a"))
        assert [found async for found in api.find(NOTES)] == []
        assert not fake.emitted


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "QUERY"])
async def test_no_route_is_open_to_those_who_prove_nothing(fake: FakeDataService, method: str) -> None:
    """Every path of the document, with every method that it has: 401, whatever the body."""
    transport = httpx.ASGITransport(fake._app)
    async with httpx.AsyncClient(transport=transport, base_url="http://data") as http:
        paths: Mapping[str, Mapping[str, Any]] = (await http.get("/openapi.json")).json()["paths"]
        asked = [
            path for path, operations in paths.items() if method.lower() in operations or method == "QUERY"
        ]
        for path in asked:
            answer = await http.request(method, path.replace("{id}", str(uuid4())), json={})
            if answer.status_code == 405:
                assert method == "QUERY"
                continue
            assert answer.status_code == 401, (method, path)
            assert answer.json()["code"] == "UNAUTHENTICATED"
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_document_says_that_calls_need_a_token(fake: FakeDataService) -> None:
    """Where the settings have keys, no operation says that it can be called without a token."""
    transport = httpx.ASGITransport(fake._app)
    async with httpx.AsyncClient(transport=transport, base_url="http://data") as http:
        paths: Mapping[str, Mapping[str, Any]] = (await http.get("/openapi.json")).json()["paths"]
    assert [it["security"] for path in paths.values() for it in path.values()] == [
        [{"service_token": []}] for path in paths.values() for _ in path
    ]


async def test_a_name_alone_proves_nothing(fake: FakeDataService) -> None:
    """Where the settings have keys, a call without a token is refused."""
    async with PostgresDataClient("http://data", service="api_service", transport=fake.transport) as nobody:
        with pytest.raises(UnauthenticatedError):
            await nobody.get(NOTES, uuid4())


async def test_a_token_for_another_service_is_no_good(fake: FakeDataService) -> None:
    """Its audience is part of what is signed."""
    elsewhere = authorization("api_service", audience="another")
    async with PostgresDataClient(
        "http://data", service="api_service", transport=fake.transport, authorization=elsewhere
    ) as api:
        with pytest.raises(UnauthenticatedError):
            await api.get(NOTES, uuid4())


async def test_a_key_opens_nothing_of_another_caller(fake: FakeDataService) -> None:
    """Whoever has one can sign what they like with it: a token is its owner's, whatever it says."""
    now = int(time.time())
    claims = {"iss": "bot_service", "sub": "api_service", "aud": "data", "iat": now, "exp": now + 60}
    token = jwt.encode(claims, KEYS["bot_service"], algorithm="HS256", headers={"kid": "bot_service"})
    async with PostgresDataClient(
        "http://data",
        service="api_service",
        transport=fake.transport,
        authorization=lambda: f"Bearer {token}",
    ) as bot:
        with pytest.raises(UnauthenticatedError):
            await bot.create(NOTES, NewNote(text="a"))
    assert fake.emitted == []


async def test_a_call_is_told_the_name_that_was_proven() -> None:
    """It is the name in the token, not the one in `X-Service-Name`; events carry it too."""
    names: list[str] = []

    async def answer(body: NewNote, work: Any) -> NewNote:
        names.append(work.caller)
        return body

    say = Call("say", resource=NOTES, request=NewNote, response=NewNote)
    fake = serving(Callers.of(settings("api_service"), None), {say: answer})
    prove = authorization("api_service")
    async with PostgresDataClient(
        "http://data", service="somebody_else", transport=fake.transport, authorization=prove
    ) as api:
        await api.call(say, NewNote(text="a"))
    assert names == ["api_service"]


async def test_without_keys_a_name_is_believed_and_grants_hold_all_the_same() -> None:
    """A service can be tried out without tokens."""
    fake = serving(Callers.of(settings(), GRANTS))
    async with (
        PostgresDataClient("http://data", service="bot_service", transport=fake.transport) as bot,
        PostgresDataClient("http://data", service="stranger", transport=fake.transport) as stranger,
    ):
        assert [found async for found in bot.find(NOTES)] == []
        with pytest.raises(AccessDeniedError):
            [found async for found in stranger.find(NOTES)]


async def test_a_fake_has_the_grants_that_a_data_service_has() -> None:
    """What production would refuse, a test finds out; and a grant of what is not there is refused at once."""
    fake = FakeDataService([NOTES], grants={"bot_service": Grant(read=[NOTES])})
    async with fake.postgres_client(service="bot_service") as bot:
        assert await bot.find(NOTES).count() == 0
        with pytest.raises(AccessDeniedError, match="bot_service may not create notes"):
            await bot.create(NOTES, NewNote(text="a"))
    async with fake.postgres_client(service="stranger") as stranger:
        with pytest.raises(AccessDeniedError):
            await stranger.find(NOTES).count()
    with pytest.raises(DeclarationError, match="which this service doesn't have"):
        FakeDataService([], grants={"bot_service": Grant(read=[NOTES])})


def test_a_grant_for_everything() -> None:
    """Writing includes reading and all calls; emitting is never included."""
    reader, writer = Grant(read="*"), Grant(write="*")
    assert reader.allows(NOTES, "read")
    assert not reader.allows(NOTES, "delete")
    assert reader.allows_call(LOOK)
    assert not reader.allows_call(CHANGE)
    assert writer.allows(OTHERS, "read")
    assert writer.allows(OTHERS, "update")
    assert writer.allows_call(CHANGE)
    assert not writer.allows_emission("tests.note_written", None)
    assert Grant(emit=True).allows_emission("anything.else", "any_queue")


WAYS: Mapping[str, Callable[[PostgresDataClient, Note], Any]] = {
    "create": lambda caller, _: caller.create(NOTES, NewNote(text="b")),
    "create_many": lambda caller, _: caller.create_many(NOTES, [NewNote(text="b")]),
    "update": lambda caller, note: caller.update(NOTES, note, NewNote(text="b")),
    "upsert": lambda caller, note: caller.upsert(NOTES, note.id, NewNote(text="b")),
    "delete": lambda caller, note: caller.delete(NOTES, note),
    "get": lambda caller, note: caller.get(NOTES, note.id),
    "look": lambda caller, _: caller.call(LOOK, NewNote(text="a")),
    "change": lambda caller, _: caller.call(CHANGE, NewNote(text="a")),
}


@pytest.mark.parametrize(
    ("grant", "allowed"),
    [
        (Grant(read=[NOTES]), {"get", "look"}),
        (Grant(create=[NOTES]), {"create", "create_many"}),
        (Grant(update=[NOTES]), {"update"}),
        (Grant(create=[NOTES], update="*"), {"create", "create_many", "update", "upsert"}),
        (Grant(delete=[NOTES]), {"delete"}),
        (Grant(call=[CHANGE]), {"change"}),
        (Grant(call=[LOOK]), {"look"}),
        (Grant(write=[NOTES]), set(WAYS)),
        (Grant(write=[OTHERS], call=[LOOK]), {"look"}),
    ],
    ids=["read", "create", "update", "upsert", "delete", "call", "safe_call", "write", "others"],
)
async def test_a_grant_opens_what_it_names_and_nothing_else(grant: Grant, allowed: set[str]) -> None:
    """Each way to use a resource has a permission of its own; a refused one changes nothing."""

    async def echo(body: NewNote, work: Any) -> NewNote:
        return body

    grants = {"api_service": Grant(write=[NOTES]), "bot_service": grant}
    fake = serving(Callers.of(settings("api_service", "bot_service"), grants), {LOOK: echo, CHANGE: echo})
    async with client(fake, "api_service") as owner, client(fake, "bot_service") as caller:
        for name, way in WAYS.items():
            note = await owner.create(NOTES, NewNote(text="a"))
            before = [(each.id, each.version) async for each in owner.find(NOTES)]
            if name in allowed:
                await way(caller, note)
                continue
            with pytest.raises(AccessDeniedError, match="bot_service may not"):
                await way(caller, note)
            assert [(each.id, each.version) async for each in owner.find(NOTES)] == before


async def test_only_the_named_events_are_emitted_and_commands_into_their_own_queue() -> None:
    """An event's permission does not send it as a command, nor a command's into another queue."""
    grants = {"api_service": Grant(emit=[NoteWritten, PrintNote])}
    fake = serving(Callers.of(settings("api_service"), grants))

    class Elsewhere(Command, type="tests.print_note", version=2, queue="other_tasks"):
        text: str

    class NoteWrittenAsCommand(Command, type="tests.note_written", version=2, queue="print_tasks"):
        text: str

    async with client(fake, "api_service") as api:
        async with api.transaction() as tx:
            tx.emit(NoteWritten(text="a"))
            tx.emit(PrintNote(text="a"))
        emitted = len(fake.emitted)
        for message, words in (
            (NoteLost(text="a"), "emit tests.note_lost here"),
            (Elsewhere(text="a"), "emit tests.print_note into other_tasks here"),
            (NoteWrittenAsCommand(text="a"), "emit tests.note_written into print_tasks here"),
        ):
            refused = api.transaction()
            with pytest.raises(AccessDeniedError, match=words):
                await emit_all(refused, NoteWritten(text="b"), message)
        assert len(fake.emitted) == emitted


@pytest.mark.parametrize(
    ("grant", "words"),
    [
        (Grant(delete=[OTHERS]), "api_service may delete Resource.'others'"),
        (Grant(write=[OTHERS]), "api_service may write Resource.'others'"),
        (Grant(call=[CHANGE]), "api_service may call /v1/notes:change"),
        (Grant(emit=[Event]), "which is no declared event or command"),
    ],
    ids=["delete", "write", "call", "emit"],
)
def test_a_grant_of_what_is_not_there_is_refused_where_it_is_declared(grant: Grant, words: str) -> None:
    """A caller that is refused because of a slip in a grant would have nothing to look for."""
    with pytest.raises(DeclarationError, match=words):
        create_data_service(MongoSettings, {NOTES: DocumentCollection()}, grants={"api_service": grant})


def test_a_caller_with_a_grant_and_no_key_could_never_call(logs: list[MutableMapping[str, Any]]) -> None:
    """Production refuses it at the start, where somebody sees it; elsewhere a part of an application may run."""
    given = settings("api_service")
    with pytest.raises(DeclarationError, match="SERVICE_TOKEN_KEYS has no key for bot_service"):
        Callers.of(given.model_copy(update={"environment": "production"}), GRANTS)
    assert "bot_service" in repr(Callers.of(given, GRANTS))
    assert [line["caller"] for line in logs] == ["bot_service"]
