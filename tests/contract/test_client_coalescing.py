"""`coalesce=True`: what tasks `get` at the same time is one request, and stays a matter of each of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.clients import ClientPolicy, PostgresDataClient, Request, Response
from hybridkit.clients._transports._base import StreamedResponse
from hybridkit.context import RequestContext, bind
from hybridkit.errors import DeadlinePassedError, InvalidRequestError, NotFoundError, UnavailableError
from hybridkit.ids import new_id
from hybridkit.resources import Record, Resource
from hybridkit.testing import FakeDataService


class NewNote(BaseModel):
    text: str


class Note(NewNote, Record):
    pass


class NewTag(BaseModel):
    id: str


class Tag(Record[str]):
    pass


NOTES = Resource("notes", record=Note, create=NewNote, update=NewNote)
TAGS = Resource("tags", record=Tag, create=NewTag, update=NewTag)


class Recorder:
    """Sends by the fake service's transport, and remembers the requests; holds answers back while it is told to."""

    def __init__(self, service: FakeDataService) -> None:
        self._transport = service.transport
        self.seen: list[Request] = []
        self.given_up = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.arrived = asyncio.Event()

    async def send(self, request: Request) -> Response:
        self.seen.append(request)
        self.arrived.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        return await self._transport.send(request)

    def stream(self, request: Request) -> AbstractAsyncContextManager[StreamedResponse]:
        raise NotImplementedError

    async def aclose(self) -> None:
        await self._transport.aclose()

    @property
    def paths(self) -> list[str]:
        return [request.url.removeprefix("http://data") for request in self.seen]


@pytest.fixture
def service() -> FakeDataService:
    return FakeDataService([NOTES, TAGS])


@pytest.fixture
def wire(service: FakeDataService) -> Recorder:
    return Recorder(service)


@pytest.fixture
async def client(wire: Recorder) -> AsyncIterator[PostgresDataClient]:
    """A patient one: what is given up is given up because nobody waits for it."""
    policy = ClientPolicy.bulk()
    async with PostgresDataClient(
        "http://data", service="api", transport=wire, policy=policy, coalesce=True
    ) as client:
        yield client


@pytest.fixture
async def notes(client: PostgresDataClient, wire: Recorder) -> list[Note]:
    made = await client.create_many(NOTES, [NewNote(text=f"{n}") for n in range(5)])
    wire.seen.clear()
    wire.arrived.clear()
    return made


async def test_gets_of_one_moment_are_one_request(
    client: PostgresDataClient, wire: Recorder, notes: list[Note]
) -> None:
    """The batch has each record once, and every caller gets its own."""
    ids = [note.id for note in (*notes, notes[0])]
    with bind(RequestContext(request_id="req-1")):
        assert await asyncio.gather(*(client.get(NOTES, each) for each in ids)) == [*notes, notes[0]]
    assert wire.paths == ["/v1/notes:batch_get"]
    assert wire.seen[0].headers["x-request-id"] == "req-1"
    assert wire.seen[0].body.count(b'"') == 2 + 2 * len(notes)


async def test_records_that_one_answer_has_no_room_for_come_in_several(
    client: PostgresDataClient, wire: Recorder
) -> None:
    """Records that are too large together are asked for in halves."""
    made = [await client.create(NOTES, NewNote(text=f"{n}" * 1_000_000)) for n in range(5)]
    wire.seen.clear()
    ids = [note.id for note in made]
    assert await asyncio.gather(*(client.get(NOTES, each) for each in ids)) == made
    assert wire.paths == ["/v1/notes:batch_get"] * 3
    assert await client.get_many(NOTES, [*ids, new_id(), *ids]) == [*made, None, *made]


async def test_a_get_by_itself_stays_a_get(
    client: PostgresDataClient, wire: Recorder, notes: list[Note]
) -> None:
    """One record, asked for once or several times, is a plain read and no batch."""
    first, second, *_ = notes
    assert await asyncio.gather(*(client.get(NOTES, first.id) for _ in range(3))) == [first] * 3
    assert await client.get(NOTES, second.id) == second
    assert wire.paths == [f"/v1/notes/{first.id}", f"/v1/notes/{second.id}"]


async def test_what_is_missing_is_missing_for_its_caller_only(
    client: PostgresDataClient, notes: list[Note]
) -> None:
    """A missing record, or an id that is none, leaves the other calls of the batch their records."""
    found = await asyncio.gather(
        client.get(NOTES, notes[0].id),
        client.get(NOTES, new_id()),
        client.get_or_none(NOTES, new_id()),
        client.get(NOTES, "no id"),
        client.get(NOTES, notes[1].id),
        return_exceptions=True,
    )
    assert [found[0], found[2], found[4]] == [notes[0], None, notes[1]]
    assert isinstance(found[1], NotFoundError)
    assert isinstance(found[3], InvalidRequestError)


async def test_a_failure_is_everybodys(
    client: PostgresDataClient, service: FakeDataService, notes: list[Note]
) -> None:
    """The error of the one request is raised at each of its callers."""
    service.faults.refuse(UnavailableError("down"), matching="/v1/notes:batch_get")
    found = await asyncio.gather(*(client.get(NOTES, note.id) for note in notes), return_exceptions=True)
    assert [type(error) for error in found] == [UnavailableError] * 5


async def test_requests_are_not_mixed_up(
    client: PostgresDataClient, wire: Recorder, notes: list[Note]
) -> None:
    """Two resources, or the contexts of two requests, are never one batch."""

    async def read(context: RequestContext, ids: list[UUID]) -> list[Note]:
        with bind(context):
            return await asyncio.gather(*(client.get(NOTES, each) for each in ids))

    ids = [note.id for note in notes]
    hasty = RequestContext(request_id="hasty").within(0.5)
    await asyncio.gather(
        read(RequestContext(request_id="calm", user_id="ada"), ids[:2]),
        read(hasty, ids[2:4]),
        client.get_or_none(TAGS, "x"),
        client.get(NOTES, ids[4]),
    )
    sent = {request.headers["x-request-id"]: request for request in wire.seen}
    assert len(wire.seen) == 4
    assert sent["calm"].headers["x-user-id"] == "ada"
    assert sent["calm"].timeout_seconds > 0.5 >= sent["hasty"].timeout_seconds


async def test_a_hasty_request_does_not_shorten_a_calm_one(
    client: PostgresDataClient, wire: Recorder, notes: list[Note]
) -> None:
    """Calls with different deadlines are different requests."""

    async def read(context: RequestContext) -> list[Note]:
        with bind(context):
            return await asyncio.gather(*(client.get(NOTES, note.id) for note in notes[:2]))

    wire.open.clear()
    calm = asyncio.create_task(read(RequestContext(request_id="calm")))
    with pytest.raises(DeadlinePassedError):
        await read(RequestContext(request_id="hasty").within(0.05))
    wire.open.set()
    assert await calm == notes[:2]


async def test_a_cancelled_caller_hurts_nobody(
    client: PostgresDataClient, wire: Recorder, notes: list[Note]
) -> None:
    """Another caller of the same record still gets it."""
    wire.open.clear()
    with bind(RequestContext()):
        tasks = [asyncio.create_task(client.get(NOTES, notes[n].id)) for n in (0, 0, 1)]
    await wire.arrived.wait()
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    wire.open.set()
    assert await asyncio.gather(*tasks[1:]) == notes[:2]


async def test_what_nobody_waits_for_is_given_up(
    client: PostgresDataClient, wire: Recorder, notes: list[Note]
) -> None:
    """A request whose callers have all left is not sent, or is cancelled."""
    tasks = [asyncio.create_task(client.get(NOTES, note.id)) for note in notes]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    wire.open.clear()
    tasks = [asyncio.create_task(client.get(NOTES, note.id)) for note in notes]
    await wire.arrived.wait()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert len(wire.seen) == 1
    async with asyncio.timeout(60):
        await wire.given_up.wait()


async def test_more_than_one_batch_takes(client: PostgresDataClient, wire: Recorder) -> None:
    """A thousand and one reads of a moment are two requests."""
    found = await asyncio.gather(*(client.get_or_none(NOTES, new_id()) for _ in range(1001)))
    assert found == [None] * 1001
    assert sorted(path.partition("/v1/notes")[2][:5] for path in wire.paths)[1] == ":batc"
    assert len(wire.paths) == 2


async def test_closing_answers_those_who_wait(wire: Recorder) -> None:
    """Callers of a request that the closing ends get an `UnavailableError`, not a cancellation."""
    wire.open.clear()
    async with PostgresDataClient("http://data", service="api", transport=wire, coalesce=True) as client:
        assert client._coalescer is not None
        tasks = [asyncio.create_task(client.get(NOTES, new_id())) for _ in range(2)]
        await wire.arrived.wait()
        assert repr(client._coalescer) == "Coalescer(0 groups, 1 requests under way)"
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in found] == ["the client was closed before the answer came"] * 2
