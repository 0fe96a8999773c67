"""What clients put into URLs, headers and bodies: it arrives as it was meant, or is refused before it is sent."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from hybridkit.clients import AnyTransport, AsgiTransport, PostgresDataClient, ServiceClient
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.errors import (
    HybridkitError,
    InvalidQueryError,
    InvalidRequestError,
    MisuseError,
    NotFoundError,
)
from hybridkit.resources import Aggregation, Record, Resource, count
from hybridkit.testing import FakeDataService


class NewPlant(BaseModel):
    title: str
    notes: dict[str, Any] | None = None


class Plant(NewPlant, Record[str]):
    pass


class PlantChanges(BaseModel):
    title: str | None = None
    notes: dict[str, Any] | None = None


PLANTS = Resource(
    "plants",
    record=Plant,
    create=NewPlant,
    update=PlantChanges,
    filterable=("title", "notes.color"),
    soft_delete=True,
)
HALF = "half \ud800 of a pair"

type Way = Literal["http1", "httpx", "asgi", "fake"]
WAYS: tuple[Way, ...] = ("http1", "httpx", "asgi", "fake")


@asynccontextmanager
async def reached(fake: FakeDataService, way: Way) -> AsyncGenerator[PostgresDataClient]:
    """A client of that fake by one of the transports."""
    async with AsyncExitStack() as stack:
        url = "http://data.test"
        transport: AnyTransport | None = None
        if way in {"http1", "httpx"}:
            url = await stack.enter_async_context(fake.serve())
        if way == "httpx":
            transport = httpx.AsyncHTTPTransport()
        elif way == "asgi":
            transport = AsgiTransport(_application(fake))
        elif way == "fake":
            transport = fake.transport
        client = PostgresDataClient(url, service="reader", transport=transport)
        yield await stack.enter_async_context(client)


def _application(fake: FakeDataService) -> Any:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":  # it has none: its store is there from the beginning
            raise NotImplementedError
        fake.requests.append(f"{scope['method']} {scope['raw_path'].decode()}")
        await fake._app(scope, receive, send)

    return application


async def use_every_verb(client: PostgresDataClient, key: str) -> None:
    """Each way to a record by its id; the record that is reached is the one that was meant."""
    made = await client.create(PLANTS, NewPlant(title="a"), id=key)
    assert made.id == key
    assert (await client.get(PLANTS, key)).title == "a"
    assert (await client.upsert(PLANTS, key, NewPlant(title="b"))).version == 2
    assert (await client.replace(PLANTS, key, NewPlant(title="c"))).id == key
    changed = await client.update(PLANTS, key, PlantChanges(title="d"))
    assert (changed.id, changed.version) == (key, 4)
    async with client.transaction() as tx:
        tx.require(PLANTS, key)
    await client.delete(PLANTS, changed)
    assert await client.get_or_none(PLANTS, key) is None
    assert (await client.undelete(PLANTS, key)).title == "d"
    assert await client.get_many(PLANTS, [key]) == [await client.get(PLANTS, key)]


KEYS = st.one_of(
    st.text(min_size=1, max_size=12),
    st.text(alphabet="./%2eE:\\?#;+ &=~", min_size=1, max_size=6),
)


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=15)
@given(key=KEYS)
@example(key=".")
@example(key="..")
@example(key="../plants")
@example(key="%2e%2e")
@example(key="a/../b")
@example(key="/")
@example(key="//host/v1")
@example(key="a:undelete")
@example(key="\u0000\n\u2028")
@example(key="\udcff")
async def test_a_key_reaches_its_record_or_is_refused(way: Way, key: str) -> None:
    """No method and no transport ever asks for another path, and what is refused is never sent."""
    fake = FakeDataService([PLANTS])
    async with reached(fake, way) as client:
        try:
            await use_every_verb(client, key)
        except InvalidRequestError:
            assert key in {".", ".."} or not key.isprintable()
            assert fake.requests == []
    own = {f"/v1/plants/{key}", f"/v1/plants/{key}:undelete"}
    asked = {unquote(line.partition(" ")[2]) for line in fake.requests}
    assert asked <= own | {"/v1/plants", "/v1/plants:batch_get", "/v1:transact"}


@pytest.mark.parametrize("key", ["", ".", ".."])
async def test_a_key_that_no_path_leads_to_is_refused_by_every_method(key: str) -> None:
    """Dots as a natural key would lead to another route, so no request is made."""
    fake = FakeDataService([PLANTS])
    new = NewPlant(title="dots")
    async with fake.postgres_client(service="reader") as client:
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: client.create(PLANTS, new, id=key),
            lambda: client.get(PLANTS, key),
            lambda: client.get_or_none(PLANTS, key),
            lambda: client.get_many(PLANTS, [key]),
            lambda: client.upsert(PLANTS, key, new),
            lambda: client.replace(PLANTS, key, new),
            lambda: client.update(PLANTS, key, PlantChanges(title="x")),
            lambda: client.modify(PLANTS, key, lambda _: None),
            lambda: client.delete(PLANTS, key),
            lambda: client.undelete(PLANTS, key),
        ]
        for attempt in attempts:
            with pytest.raises(InvalidRequestError, match="no id of a Plant"):
                await attempt()
        with pytest.raises(InvalidRequestError):
            async with client.transaction() as tx:
                tx.delete(PLANTS, key)
    assert fake.requests == []


@pytest.mark.parametrize("path", ["/a/%2e%2e/b", "/%2E", "/a/.%2e", "/a/../b"])
async def test_a_path_of_ones_own_has_no_segment_of_dots_however_it_is_written(path: str) -> None:
    """Percent-encoded dots are dots to a server."""
    async with ServiceClient(
        "http://data.test", service="reader", transport=FakeDataService([]).transport
    ) as it:
        with pytest.raises(MisuseError):
            await it.get(path)


async def test_what_is_no_unicode_is_refused_wherever_a_client_is_given_it() -> None:
    """Ids, filters, page tokens, fields, aggregations and steps raise a typed error, and nothing is sent."""
    fake = FakeDataService([PLANTS])
    title = PLANTS["title"] == HALF
    refused = (InvalidRequestError, InvalidQueryError)
    async with fake.postgres_client(service="reader") as client:
        found = client.find(PLANTS)
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: client.get(PLANTS, HALF),
            lambda: client.create(PLANTS, NewPlant(title="x"), id=HALF),
            lambda: found.where(title).page(),
            lambda: found.where(title & (PLANTS["title"] != "x" * 3000)).page(),
            lambda: found.where(PLANTS["title"].in_([HALF])).first(),
            lambda: found.where(PLANTS["title"].like(f"*{HALF}")).count(),
            lambda: anext(aiter(found.where(title).export())),
            lambda: found.page(HALF),
            lambda: client.aggregate(PLANTS, Aggregation(functions={"n": count()}, where=title)),
        ]
        for attempt in attempts:
            with pytest.raises(refused):
                await attempt()
        with bind(RequestContext(claim=Claim("a:b:c"))), pytest.raises(refused):
            await client.delete(PLANTS, "x", step=HALF)
    assert fake.requests == []


async def test_a_body_that_is_no_unicode_is_an_error_of_ours() -> None:
    """Half a surrogate pair in a value or a name raises a typed error, and nothing is sent."""
    fake = FakeDataService([PLANTS])
    odd = NewPlant(title="x", notes={"color": HALF})
    odd_name = NewPlant(title="x", notes={HALF: 1})
    async with fake.postgres_client(service="reader") as client:
        for plant in (odd, odd_name, NewPlant.model_construct(title=HALF)):
            with pytest.raises(HybridkitError):
                await client.create(PLANTS, plant, id="x")
            with pytest.raises(HybridkitError):
                await client.upsert(PLANTS, "x", plant)
            with pytest.raises(HybridkitError):
                async with client.transaction() as tx:
                    tx.create(PLANTS, plant, id="x")
    assert fake.requests == []


@pytest.mark.parametrize("value", [HALF, "two\r\nlines", "\u00fcml\u00e4ut", "\x00"])
async def test_a_header_that_can_not_be_sent_is_refused(value: str) -> None:
    """The refusal comes before the transports, which would each do something else."""
    fake = FakeDataService([PLANTS])
    given: list[dict[str, Any]] = [{"headers": {"x-note": value}}, {"idempotency_key": value}]
    async with ServiceClient("http://data.test", service="reader", transport=fake.transport) as service:
        for options in given:
            with pytest.raises(HybridkitError):
                await service.post("/v1/plants", **options)
    proving = ServiceClient(
        "http://data.test", service="reader", transport=fake.transport, authorization=lambda: value
    )
    async with proving:
        with pytest.raises(HybridkitError) as error:
            await proving.get("/v1/plants")
    assert value not in str(error.value), "it may be a secret"
    assert fake.requests == []


@pytest.mark.parametrize(
    "options",
    [{"params": {"q": HALF}}, {"params": {HALF: "q"}}, {"params": {"q": ["a", HALF]}}, {"json": {"q": HALF}}],
)
async def test_calls_of_other_services_refuse_what_is_no_unicode(options: dict[str, Any]) -> None:
    """Half a surrogate pair in path, parameters, headers or body raises a typed error, and nothing is sent."""
    fake = FakeDataService([])
    async with ServiceClient("http://data.test", service="reader", transport=fake.transport) as service:
        with pytest.raises(HybridkitError):
            await service.post("/v1/search", **options)
        with pytest.raises(HybridkitError):
            await service.get(f"/v1/{HALF}")
    assert fake.requests == []


async def test_what_an_older_owner_has_stored_under_dots_is_read_by_query() -> None:
    """The keys are refused where a path is made of them, not where a record is shown."""
    fake = FakeDataService([PLANTS])
    async with fake.postgres_client(service="reader") as client:
        await client.create(PLANTS, NewPlant(title="x"), id="dots")
        rows = fake._store._tables["plants"].rows
        row = rows.pop("dots")
        rows[".."] = type(row)({**row.values, "id": ".."}, row.incarnation)
        [found] = (await client.find(PLANTS).page_size(1).page()).items
        assert found.id == ".."
        with pytest.raises(InvalidRequestError):
            await client.delete(PLANTS, found)
        with pytest.raises(NotFoundError):
            await client.get(PLANTS, "dots")
