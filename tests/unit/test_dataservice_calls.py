"""A service's own calls: typed both ways, once per key, checked where they are declared."""

from typing import Any

import pytest
from pydantic import BaseModel

from hybridkit.dataservice import CallContext, Database
from hybridkit.dataservice._http._bodies import RequestBodies
from hybridkit.dataservice._http._own_calls import check_calls, run_call
from hybridkit.errors import DeclarationError
from hybridkit.resources import Call, Record, Resource


class Ask(BaseModel):
    name: str


class Told(BaseModel):
    name: str


class Thing(Ask, Record):
    pass


THINGS = Resource("things", record=Thing, create=Ask, update=Ask)
TELL = Call("tell", resource=THINGS, request=Ask, response=Told)


async def test_a_call_has_a_typed_answer_and_emits_with_it(routes: Any) -> None:
    """The event carries the id of the request that caused it."""
    answer = await routes.send("POST", "/v1/notes:praise", {"title": "abc"}, x_service_name="bot")
    assert (answer.status_code, answer.json()) == (200, {"caller": "bot", "letters": 3})
    [emission] = routes.store.emitted
    assert (emission.event_type, emission.data) == ("note.praised", {"title": "abc"})
    assert emission.request_id == answer.headers["x-request-id"]


async def test_a_call_that_changes_something_is_done_once_per_key(routes: Any) -> None:
    """A repetition gets the first answer; another body under the key is refused."""
    answers = [await routes.send("POST", "/v1/notes:praise", {"title": "a"}, key="k") for _ in range(2)]
    assert [answer.json() for answer in answers] == [{"caller": "anonymous", "letters": 1}] * 2
    assert answers[1].headers["idempotency-replayed"] == "true"
    assert len(routes.store.emitted) == 1
    reused = await routes.send("POST", "/v1/notes:praise", {"title": "b"}, key="k")
    assert (reused.status_code, reused.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_a_safe_call_needs_no_key_and_emits_nothing(routes: Any) -> None:
    """A handler that tries to emit is answered with 501."""
    answer = await routes.http.post("/v1/notes:count_letters", json={"title": "abc"})
    assert answer.json() == {"caller": "anonymous", "letters": 3}
    refused = await routes.http.post("/v1/notes:count_letters", json={"title": "loud"})
    assert (refused.status_code, refused.json()["code"]) == (501, "NOT_SUPPORTED")


async def test_without_a_broker_a_call_emits_nothing(routes: Any) -> None:
    """It is refused, as nobody would publish what it emits."""
    routes.app.state.can_emit = False
    answer = await routes.send("POST", "/v1/notes:praise", {"title": "a"})
    assert (answer.status_code, answer.json()["code"]) == (501, "NOT_SUPPORTED")


async def test_what_a_handler_raises_is_a_problem(routes: Any) -> None:
    """The problem has the error's code, and `Retry-After` where the error asks for it."""
    answer = await routes.send("POST", "/v1/notes:praise", {"title": "busy"})
    assert (answer.status_code, answer.json()["code"]) == (429, "RATE_LIMITED")
    assert answer.headers["retry-after"] == "3"


async def test_a_request_that_does_not_fit_is_pointed_at(routes: Any) -> None:
    """An undeclared member doesn't fit, as it may be a misspelt one."""
    answer = await routes.send("POST", "/v1/notes:praise", {"title": "a", "tittle": "b"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/tittle")


async def test_a_route_of_the_application_reads_the_database(routes: Any) -> None:
    """Within the deadline of its request."""

    async def letters(database: Database) -> dict[str, Any]:
        async def query(found: Any) -> str:
            return type(found).__name__

        return {"database": await database.read(query), "reader": repr(database)}

    routes.app.add_api_route("/letters", letters, methods=["GET"])

    answer = await routes.send("GET", "/letters")
    assert answer.json()["database"] == "MemoryStore"
    assert "MemoryStore" in answer.json()["reader"]
    gone = await routes.send("GET", "/letters", x_request_timeout="0")
    assert (gone.status_code, gone.json()["code"]) == (504, "DEADLINE_PASSED")


# ── declarations ─────────────────────────────────────────────────────────────────────────────────


async def tell(body: Ask, _work: CallContext[Any]) -> Told:
    return Told(name=body.name)


async def with_another_request(_body: Told, _work: CallContext[Any]) -> Told:
    raise NotImplementedError


async def with_another_response(_body: Ask, _work: CallContext[Any]) -> Ask:
    raise NotImplementedError


async def without_its_context(_body: Ask) -> Told:
    raise NotImplementedError


def synchronous(_body: Ask, _work: CallContext[Any]) -> Told:
    raise NotImplementedError


async def without_annotations(_body, _work):  # type: ignore[no-untyped-def]
    raise NotImplementedError


async def with_unknown_names(_body: "Nowhere", _work: Any) -> Told:  # type: ignore[name-defined] # noqa: F821
    raise NotImplementedError


@pytest.mark.parametrize(
    ("handler", "complaint"),
    [
        (with_another_request, "takes Told, and Ask is declared"),
        (with_another_response, "returns Ask, and Told is declared"),
        (without_its_context, "takes the request and its CallContext"),
        (synchronous, "no async function"),
    ],
)
def test_a_handler_fits_its_call(handler: Any, complaint: str) -> None:
    """Types, parameters and `async` are checked when the application is made."""
    with pytest.raises(DeclarationError, match=f"/v1/things:tell: .*{complaint}"):
        check_calls({TELL: handler}, {"things": RequestBodies(THINGS)})


@pytest.mark.parametrize("handler", [tell, without_annotations, with_unknown_names])
def test_what_annotations_do_not_tell_is_believed(handler: Any) -> None:
    """A handler without them, or with ones that can't be resolved, is accepted."""
    check_calls({TELL: handler}, {"things": RequestBodies(THINGS)})


def test_a_call_has_a_resource_and_a_name_of_its_own() -> None:
    """A resource that isn't served and a second call of that name are refused."""
    with pytest.raises(DeclarationError, match="doesn't have things"):
        check_calls({TELL: tell}, {})
    other = Call("tell", resource=THINGS, request=Ask, response=Told, safe=True)
    with pytest.raises(DeclarationError, match="two calls are /v1/things:tell"):
        check_calls({TELL: tell, other: tell}, {"things": RequestBodies(THINGS)})


async def test_a_handler_that_returns_something_else_is_broken() -> None:
    """It is found when it happens, as annotations may lie."""
    work = CallContext(None, caller="bot", can_emit=False)
    with pytest.raises(DeclarationError, match="/v1/things:tell returned Ask, not Told"):
        await run_call(TELL, with_another_response_after_all, Ask(name="a"), work)
    assert "bot" in repr(work)


async def with_another_response_after_all(body: Ask, _work: CallContext[Any]) -> Any:
    return body
