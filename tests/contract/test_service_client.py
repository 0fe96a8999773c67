"""`ServiceClient`: calls to other services, over httpx's in-process transport."""

import json
from contextlib import AbstractAsyncContextManager, suppress

import httpx
import pytest
from pydantic import BaseModel

from hybridkit.clients import ClientPolicy, Response, ServiceClient
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.contract import Problem
from hybridkit.errors import (
    AccessDeniedError,
    HybridkitError,
    MisuseError,
    NotFoundError,
    OutcomeUnknownError,
    RateLimitedError,
    ResponseError,
    UnavailableError,
    UniqueViolationError,
)
from hybridkit.resources import Call, Record, Resource
from hybridkit.retry import Retry


class Weather(BaseModel):
    city: str
    degrees: float


class Forecasted(BaseModel):
    days: int


class Station(Forecasted, Record):
    pass


STATIONS = Resource("stations", record=Station, create=Forecasted, update=Forecasted)
FORECAST = Call("forecast", resource=STATIONS, request=Forecasted, response=Weather)
OSLO = {"city": "Oslo", "degrees": -3.5}
POLICY = ClientPolicy(retry=Retry.immediate(attempts=3))

type Step = httpx.Response | Exception


class Wire:
    """Answers step by step, the last one again and again."""

    def __init__(self, *steps: Step) -> None:
        self._steps = list(steps)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        if isinstance(step, Exception):
            raise step
        return httpx.Response(step.status_code, headers=step.headers, content=step.content)

    def client(self, *, internal: bool = False) -> AbstractAsyncContextManager[ServiceClient]:
        return ServiceClient(
            "https://weather.example/api",
            service="api_service",
            internal=internal,
            transport=httpx.MockTransport(self),
            policy=POLICY,
            authorization=lambda: "Bearer token",
        )


def fine(body: object = OSLO) -> httpx.Response:
    return httpx.Response(200, json=body)


CUT = httpx.ReadError("cut")


# ── what goes out and comes back ─────────────────────────────────────────────────────────────────


async def test_a_typed_answer() -> None:
    """Parameters are encoded as in a form: lists repeat, booleans are in lower case."""
    wire = Wire(fine())
    async with wire.client() as api:
        now = await api.get(
            "/now", params={"city": "Bodø", "days": [1, 2], "raw": True}, response_model=Weather
        )
    assert now == Weather(city="Oslo", degrees=-3.5)
    assert (
        str(wire.requests[0].url) == "https://weather.example/api/now?city=Bod%C3%B8&days=1&days=2&raw=true"
    )


async def test_an_answer_as_it_is() -> None:
    """Without a model the caller gets status, headers and bytes."""
    async with Wire(httpx.Response(204)).client() as api:
        answer = await api.delete("/stations/7")
    assert isinstance(answer, Response)
    assert (answer.status, answer.body) == (204, b"")


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
async def test_a_body_is_a_model_or_json(method: str) -> None:
    """Both are sent as the same JSON, with its media type."""
    wire = Wire(fine())
    async with wire.client() as api:
        for body in (Weather(city="Oslo", degrees=-3.5), OSLO):
            assert await getattr(api, method)("/x", json=body, response_model=Weather)
    assert [json.loads(request.content) for request in wire.requests] == [OSLO, OSLO]
    assert {request.headers["content-type"] for request in wire.requests} == {"application/json"}


async def test_other_people_learn_nothing_of_us() -> None:
    """No ids, no user, no trace, no deadline; the authorization is for them."""
    wire = Wire(fine())
    with bind(RequestContext(user_id="user-1").within(60)):
        async with wire.client() as api:
            await api.post("/x", json=OSLO)
    headers = wire.requests[0].headers
    assert headers["authorization"] == "Bearer token"
    assert not [name for name in headers if name.startswith(("x-", "trace", "idempotency"))]


async def test_our_own_services_learn_who_asks() -> None:
    """Every write has a key as well, which is always the same one in a claim."""
    keys: list[str] = []
    for _ in range(2):
        wire = Wire(fine())
        with bind(RequestContext(request_id="req-1", user_id="user-1", claim=Claim("a:b:c")).within(60)):
            async with wire.client(internal=True) as api:
                await api.get("/x")
                await api.post("/x", json=OSLO)
        read, write = (request.headers for request in wire.requests)
        assert read["x-request-id"] == "req-1"
        assert read["x-user-id"] == "user-1"
        assert read["x-service-name"] == "api_service"
        assert 0 < float(read["x-request-timeout"]) < 60
        assert "idempotency-key" not in read
        keys.append(write["idempotency-key"])
    assert keys[0] == keys[1]


async def test_a_declared_call() -> None:
    """It goes to the path of its resource, under a key, and its answer has the declared type."""
    wire = Wire(fine())
    async with wire.client(internal=True) as api:
        assert (await api.call(FORECAST, Forecasted(days=3))).city == "Oslo"
    assert wire.requests[0].url.path == "/api/v1/stations:forecast"
    assert "idempotency-key" in wire.requests[0].headers


@pytest.mark.parametrize("path", ["now", "/a?b=c", "/a#b", "/a/../b", "/..", "/a/.", "//x/./y"])
async def test_a_path_with_more_in_it_than_a_path_is_refused(path: str) -> None:
    """An id that nobody has quoted must not lead elsewhere."""
    wire = Wire(fine())
    async with wire.client() as api:
        with pytest.raises(MisuseError, match="can't be a path"):
            await api.get(path)
    assert wire.requests == []


# ── what is repeated ─────────────────────────────────────────────────────────────────────────────


async def attempts(wire: Wire, method: str, *, internal: bool = False, **options: object) -> int:
    async with wire.client(internal=internal) as api:
        with suppress(HybridkitError):
            await getattr(api, method)("/x", **options)
    return len(wire.requests)


@pytest.mark.parametrize(
    ("method", "sent"), [("get", 2), ("put", 2), ("delete", 2), ("post", 1), ("patch", 1)]
)
async def test_only_what_can_be_repeated_is(method: str, sent: int) -> None:
    """An answer that got lost: others may not know idempotency keys."""
    assert await attempts(Wire(CUT, fine()), method) == sent


async def test_a_write_is_repeated_when_the_caller_allows_it() -> None:
    """The caller allows it by a flag or by a key, which each attempt carries."""
    assert await attempts(Wire(CUT, fine()), "post", idempotent=True) == 2
    assert await attempts(Wire(CUT, fine()), "put", idempotent=False) == 1
    keyed = Wire(CUT, fine())
    assert await attempts(keyed, "post", idempotency_key="k") == 2
    assert {request.headers["idempotency-key"] for request in keyed.requests} == {'"k"'}


async def test_what_was_never_sent_is_repeated() -> None:
    """A refused connection is safe to repeat for any method."""
    assert await attempts(Wire(httpx.ConnectError("refused"), fine()), "post") == 2


async def test_writes_to_our_own_services_are_keyed_and_repeated() -> None:
    """All attempts carry one key that the client has made."""
    wire = Wire(CUT, fine())
    assert await attempts(wire, "post", internal=True) == 2
    assert len({request.headers["idempotency-key"] for request in wire.requests}) == 1


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "method", "error"),
    [
        (301, "get", ResponseError),
        (307, "post", ResponseError),
        (400, "get", ResponseError),
        (401, "get", AccessDeniedError),
        (403, "get", AccessDeniedError),
        (404, "get", NotFoundError),
        (422, "post", ResponseError),
        (429, "get", RateLimitedError),
        (500, "get", ResponseError),
        (502, "get", UnavailableError),
        (502, "post", OutcomeUnknownError),
        (503, "post", UnavailableError),
        (504, "post", OutcomeUnknownError),
    ],
)
async def test_every_status_has_its_error(status: int, method: str, error: type[HybridkitError]) -> None:
    """A redirect too: it is not followed."""
    answer = httpx.Response(status, headers={"location": "https://elsewhere.example"}, content=b"<html>")
    wire = Wire(answer)
    async with wire.client() as api:
        with pytest.raises(HybridkitError) as caught:
            await getattr(api, method)("/x")
    assert type(caught.value) is error
    if isinstance(caught.value, ResponseError):
        assert caught.value.response_status == status
    assert {request.url.host for request in wire.requests} == {"weather.example"}


async def test_a_problem_document_says_what_it_is() -> None:
    """The caller gets the service's own error, with its attributes."""
    document = Problem.from_error(
        UniqueViolationError("taken", fields=["city"]), instance="/", request_id="r"
    )
    headers = {"content-type": "application/problem+json"}
    answer = httpx.Response(409, headers=headers, content=document.model_dump_json())
    async with Wire(answer).client() as api:
        with pytest.raises(UniqueViolationError) as caught:
            await api.post("/x", json=OSLO)
    assert caught.value.fields == ("city",)


@pytest.mark.parametrize("body", [b"<html>", b"", b'{"city": 7}'])
async def test_an_answer_that_is_no_such_model(body: bytes) -> None:
    """It is an error of the other side, and names the model that was expected."""
    async with Wire(httpx.Response(200, content=body)).client() as api:
        with pytest.raises(ResponseError, match="Weather"):
            await api.get("/x", response_model=Weather)
