"""An API's answer to errors of its own requests to other services: only what they mean for its caller."""

import time
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, field_validator
from structlog.testing import capture_logs

from hybridkit import errors
from hybridkit.adapters.fastapi import create_app
from hybridkit.clients import AsgiTransport, ServiceClient
from hybridkit.context import bind, current
from hybridkit.errors import (
    AccessDeniedError,
    DeadlineExceededError,
    DeadlinePassedError,
    FieldProblem,
    ForeignKeyError,
    HybridkitError,
    InvalidQueryError,
    InvalidRequestError,
    NoRouteError,
    NotFoundError,
    OutcomeUnknownError,
    PageTokenError,
    RejectedError,
    RequirementNotMetError,
    RuleViolationError,
    StaleVersionError,
    TemporaryError,
    UniqueViolationError,
)
from hybridkit.errors._codes import error_for_code
from hybridkit.resources import Call, Record, Resource
from hybridkit.testing import FakeDataService
from tests.helpers.apis import Settings, problem, raising, serving

INNER = "inner-secret-words"


@pytest.fixture
def app() -> FastAPI:
    return create_app(Settings, title="Test")


@pytest.fixture(autouse=True)
def logged() -> Generator[list[Any]]:
    """The lines of the log: printed, a stack trace costs seconds."""
    with capture_logs() as lines:
        yield lines


def every_error() -> list[type[HybridkitError]]:
    return [getattr(errors, name) for name in errors.__all__ if name != "FieldProblem"]


_NEEDED: dict[str, dict[str, Any]] = {
    "InvalidHeaderError": {"field": INNER},
    "PayloadTooLargeError": {"size_bytes": 2, "limit_bytes": 1},
    "UnknownEventTypeError": {"event_type": INNER},
    "UnknownEventVersionError": {"event_type": INNER, "version": 2, "known": 1},
    "UnroutableError": {"exchange": INNER, "routing_key": INNER},
    "ResponseError": {"response_status": 418},
    "MissingExtraError": {"extra": INNER},
}


def made(error: type[HybridkitError]) -> HybridkitError:
    """One that says as much as it can."""
    given = dict(_NEEDED.get(error.__name__, {}))
    if issubclass(error, InvalidRequestError):
        given["errors"] = [FieldProblem(f"/operations/0/{INNER}", INNER, INNER)]
    if issubclass(error, InvalidQueryError):
        given["pointer"] = f"/{INNER}"
    if issubclass(error, UniqueViolationError):
        given["fields"] = ["email"]
    return error(INNER, **given)


def meant(error: type[HybridkitError]) -> tuple[int, str]:
    """What it means for the caller of the caller."""
    if issubclass(error, NoRouteError):
        return 500, "INTERNAL"
    for known in (
        PageTokenError,
        NotFoundError,
        RequirementNotMetError,
        StaleVersionError,
        UniqueViolationError,
        ForeignKeyError,
        DeadlineExceededError,
        RuleViolationError,
    ):
        if issubclass(error, known):
            return known.status, known.code
    if issubclass(error, DeadlinePassedError):  # what was not begun was a part of this request only
        return 504, "DEADLINE_EXCEEDED"
    if issubclass(error, TemporaryError):
        return 503, "UNAVAILABLE"
    if issubclass(error, OutcomeUnknownError):
        return 504, "OUTCOME_UNKNOWN"
    return 500, "INTERNAL"


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
async def test_an_error_of_another_request_is_told_by_what_it_means_for_this_one(
    app: FastAPI, logged: list[Any], error: type[HybridkitError]
) -> None:
    """For each error of a data service, none of its words and pointers come through but a rule's, for people."""
    inner = create_app(Settings, title="Inner", internal=True)

    @inner.get("/fails")
    async def fails() -> None:
        raise made(error)

    @app.post("/asks")
    async def asks() -> None:
        async with inner.router.lifespan_context(inner):
            transport = AsgiTransport(inner)
            async with ServiceClient("http://inner", service="test_service", transport=transport) as client:
                await client.get("/fails")

    async with serving(app) as client:
        answer = await client.post("/asks", headers={"x-request-timeout": "5"})
    # What reaches a client is the most general error with that code.
    code = error.code if (known := error_for_code(error.code)) is not None else ""
    assert known is not None, code
    status, told = meant(error if issubclass(error, NoRouteError) else known)
    assert (answer.status_code, answer.json()["code"]) == (status, told)
    is_rule = issubclass(error, RuleViolationError)
    assert (INNER in answer.text) is is_rule
    assert answer.json()["errors"] == [{"pointer": "", "code": error.code, "message": ""}] * is_rule
    assert status != 503 or int(answer.headers["retry-after"]) >= 1
    assert ("email" in answer.text) is issubclass(error, UniqueViolationError)
    assert "www-authenticate" not in answer.headers
    if status == 500:
        lines = [line for line in logged if line["log_level"] == "error" and INNER in line.get("reason", "")]
        assert "exc_info" not in lines[-1] or not issubclass(
            known, RejectedError
        )  # it says which request that was


@pytest.mark.parametrize(
    "module",
    ["hybridkit.clients._pipeline", "hybridkit.messaging._publishing", "hybridkit.coordination._lock"],
)
async def test_no_error_of_a_client_a_publisher_or_a_lock_tells_its_words(app: FastAPI, module: str) -> None:
    """Each class of error is told by what it means, without names of services, queues, locks and keys."""
    names: dict[str, Any] = {"__name__": module}
    exec("def fail(error): raise error", names)
    for error in every_error():
        app.add_api_route(f"/{error.__name__}", partial(names["fail"], made(error)), methods=["POST"])
    async with serving(app) as client:
        for error in every_error():
            answer = await client.post(f"/{error.__name__}")
            if issubclass(error, RuleViolationError):  # its words are for people
                assert problem(answer) == (409, error.code)
                continue
            assert problem(answer) == meant(error)
            assert INNER not in answer.text


async def test_a_broken_reference_names_its_field_without_the_way_to_it(app: FastAPI) -> None:
    """The caller learns the field, and nothing of the request to the data service."""
    inner = create_app(Settings, title="Inner", internal=True)

    @inner.get("/fails")
    async def fails() -> None:
        raise ForeignKeyError(INNER, errors=[FieldProblem("/operations/0/data/place_id", INNER, INNER)])

    @app.post("/asks")
    async def asks() -> None:
        async with inner.router.lifespan_context(inner):
            transport = AsgiTransport(inner)
            async with ServiceClient("http://inner", service="test_service", transport=transport) as client:
                await client.get("/fails")

    async with serving(app) as client:
        answer = await client.post("/asks")
    assert (answer.status_code, answer.json()["code"]) == (409, "FOREIGN_KEY_VIOLATION")
    [found] = answer.json()["errors"]
    assert (found["pointer"], found["code"]) == ("/place_id", "foreign_key")
    assert answer.json()["detail"] == "it refers to something that is not there"
    assert INNER not in answer.text


@pytest.mark.parametrize(
    ("pointer", "told"),
    [
        ("/rank", "/rank"),
        ("/details/size", "/details/size"),
        ("/items/3/data/rank", "/rank"),
        ("/operations/0/increment/rank", "/rank"),
        ("/operations/12", ""),
    ],
)
async def test_a_value_that_is_refused_is_told_with_its_field(app: FastAPI, pointer: str, told: str) -> None:
    """A number too large for its column is the caller's, not a failure of ours; a member too many is one."""
    kinds = iter([["out_of_range", "check"], ["out_of_range", "extra_forbidden"], []])
    inner = create_app(Settings, title="Inner", internal=True)

    @inner.get("/fails")
    async def fails() -> None:
        raise InvalidRequestError(INNER, errors=[FieldProblem(pointer, kind, INNER) for kind in next(kinds)])

    @app.post("/asks")
    async def asks() -> None:
        async with inner.router.lifespan_context(inner):
            transport = AsgiTransport(inner)
            async with ServiceClient("http://inner", service="test_service", transport=transport) as client:
                await client.get("/fails")

    async with serving(app) as client:
        answer, *mistakes = [await client.post("/asks") for _ in range(3)]
    assert problem(answer) == (422, "VALIDATION")
    assert [(each["pointer"], each["code"]) for each in answer.json()["errors"]] == [
        (told, "out_of_range"),
        (told, "check"),
    ]
    assert [problem(mistake) for mistake in mistakes] == [(500, "INTERNAL")] * 2
    assert INNER not in answer.text


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.__name__)
async def test_an_error_that_a_route_raises_is_told_as_it_says(
    app: FastAPI, error: type[HybridkitError]
) -> None:
    """Its words are for the caller, except for those of a failure."""
    raising(app, made(error))
    async with serving(app) as client:
        for path in ("/route", "/first"):
            answer = await client.post(path)
            assert (answer.status_code, answer.json()["code"]) == (error.status, error.code)
            assert (INNER in answer.json().get("detail", "")) is (error.status < 500)


class NewNote(BaseModel):
    title: str


class Note(NewNote, Record):
    pass


class NoteChanges(BaseModel):
    title: str | None = None


NOTES = Resource("notes", record=Note, create=NewNote, update=NoteChanges)


async def test_a_resource_or_call_that_is_not_served_is_a_mistake_of_ours(app: FastAPI) -> None:
    """An unknown resource is a 500, and a missing record a 404."""
    fake, others = (
        FakeDataService([NOTES]),
        Resource("others", record=Note, create=NewNote, update=NoteChanges),
    )
    praise = Call("praise", resource=NOTES, request=NewNote, response=NewNote)
    async with fake.postgres_client(service="test_service") as notes:

        @app.get("/record")
        async def record() -> None:
            await notes.get(NOTES, uuid4())

        @app.get("/resource")
        async def resource() -> None:
            await notes.get(others, uuid4())

        @app.get("/call")
        async def call() -> None:
            await notes.call(praise, NewNote(title="a"))

        async with serving(app) as client:
            answers = [await client.get(path) for path in ("/record", "/resource", "/call", "/nowhere")]
    assert [answer.status_code for answer in answers] == [404, 500, 500, 404]
    assert [answer.json()["code"] for answer in answers] == ["NOT_FOUND", "INTERNAL", "INTERNAL", "NOT_FOUND"]


async def test_what_a_client_refuses_to_send_is_a_mistake_of_ours(app: FastAPI) -> None:
    """A wrong use of the client is a 500 without a detail."""
    fake = FakeDataService([NOTES])
    async with fake.postgres_client(service="test_service") as notes:

        @app.post("/many")
        async def many() -> None:
            await notes.create_many(NOTES, [NewNote(title="a")], ids=[])

        async with serving(app) as client:
            answer = await client.post("/many")
            assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL")
            assert "notes" not in answer.text


async def test_what_a_function_of_the_routes_own_raises_is_told_also_when_a_client_calls_it(
    app: FastAPI,
) -> None:
    """The error of a function that `modify` calls is about the caller."""
    fake = FakeDataService([NOTES])
    async with fake.postgres_client(service="test_service") as notes:
        note = await notes.create(NOTES, NewNote(title="a"))

        def change(_: Note) -> NoteChanges:
            raise AccessDeniedError("not your note")

        @app.post("/change")
        async def modify() -> None:
            await notes.modify(NOTES, note.id, change)

        @app.post("/group")
        async def group() -> None:
            raise ExceptionGroup("several", [AccessDeniedError("not your note")])

        async with serving(app) as client:
            for path in ("/change", "/group"):
                answer = await client.post(path)
                assert (answer.status_code, answer.json()["detail"]) == (403, "not your note")


async def test_our_own_services_are_told_the_words_as_well(app: FastAPI) -> None:
    """An internal caller gets the detail of a 500."""
    fake = FakeDataService([NOTES])
    internal = create_app(Settings, title="Internal", internal=True)
    async with fake.postgres_client(service="test_service") as notes:

        @internal.post("/many")
        async def many() -> None:
            await notes.create_many(NOTES, [NewNote(title="a")], ids=[])

        async with serving(internal) as client:
            answer = await client.post("/many")
            assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL")
            assert "notes" in answer.json()["detail"]


async def test_a_request_that_does_not_fit_is_told_in_words_without_the_value(app: FastAPI) -> None:
    """Pydantic's messages are told, and a validator's own, which may quote the value, are not."""

    class Sent(BaseModel):
        number: int
        code: str
        owner: UUID

        @field_validator("code")
        @classmethod
        def checked(cls, code: str) -> str:
            raise ValueError(f"{code} is no code")

    @app.post("/sent")
    async def take(body: Sent) -> None: ...

    async with serving(app) as client:
        sent = {"number": INNER, "code": INNER, "owner": INNER}
        answer = await client.post("/sent", json=sent)
        broken = await client.post(
            "/sent", content=b'{"number":', headers={"content-type": "application/json"}
        )
    assert INNER not in answer.text
    assert {error["pointer"]: error["message"] for error in answer.json()["errors"]} == {
        "/number": "Input should be a valid integer, unable to parse string as an integer",
        "/code": "the value is refused",
        "/owner": "the value is refused",
    }
    assert [(it["pointer"], it["code"], it["message"]) for it in broken.json()["errors"]] == [
        ("", "json_invalid", "the body is no JSON")
    ]


async def test_a_deadline_that_a_handler_finds_passed_leaves_the_outcome_open(app: FastAPI) -> None:
    """Other parts of the request may have been done before the check: "nothing was done" would be untrue."""

    @app.post("/late")
    async def late() -> None:
        with bind(replace(current(), deadline=time.monotonic() - 1)):
            current().check_deadline()

    async with serving(app) as client:
        answer = await client.post("/late")
    assert (answer.status_code, answer.json()["code"]) == (504, "DEADLINE_EXCEEDED")
