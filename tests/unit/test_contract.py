"""The HTTP contract's words: a client raises what the service raised."""

import inspect
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hybridkit import errors
from hybridkit.contract import Emission, Problem, ProblemField, Transaction, parse_key, quote_key
from hybridkit.contract._titles import TITLES
from hybridkit.errors import (
    ConflictError,
    DeadlineExceededError,
    DeadlinePassedError,
    FieldProblem,
    ForeignKeyError,
    HybridkitError,
    InProgressError,
    InvalidQueryError,
    InvalidRequestError,
    KeyReusedError,
    MalformedPayloadError,
    NoRouteError,
    NotFoundError,
    PayloadError,
    RateLimitedError,
    ResponseError,
    RuleViolationError,
    StaleVersionError,
    UnavailableError,
    UniqueViolationError,
)
from hybridkit.errors._codes import error_for_code
from hybridkit.events import Command, Event
from hybridkit.retry import MAX_DELAY_SECONDS


def test_the_detail_of_another_api_does_not_swallow_its_findings() -> None:
    """Its title leads the message, as its detail may say anything."""
    found = (ProblemField(pointer="/a", code="missing"),)
    problem = Problem(title="Wrong", status=422, code="VALIDATION", detail="as listed", errors=found)
    assert str(problem.to_error()) == "Wrong: /a: missing"


def test_a_problem_that_is_not_ours_is_a_response_outside_the_contract() -> None:
    """The error keeps the HTTP status, which is all that can be relied on."""
    error = Problem(title="Teapot", status=418, code="TEAPOT").to_error()
    assert isinstance(error, ResponseError)
    assert error.response_status == 418


keys = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255)


@given(keys)
def test_a_key_reads_back_from_its_quoted_form(key: str) -> None:
    """A key may be any printable ASCII, quotation marks and backslashes included."""
    assert parse_key(quote_key(key)) == key


def test_a_key_may_come_bare() -> None:
    """Many clients send it without quotes."""
    assert parse_key(" 7c1-a ") == "7c1-a"


@pytest.mark.parametrize("value", ["", '""', "k" * 256, "ключ", "a\nb"])
def test_a_key_outside_the_syntax_is_refused(value: str) -> None:
    """It is empty, too long, or has characters that no header carries."""
    with pytest.raises(InvalidRequestError, match="idempotency key"):
        parse_key(value)


class TicketSold(Event, type="ticket.sold", key="seat", version=2):
    seat: str


class PrintTicket(Command, queue="print_tasks"):
    seat: str


def test_an_emission_keeps_the_identity_of_its_event() -> None:
    """Id and timestamp are the event's, so that a repeated write emits the same event."""
    event = TicketSold(seat="A1")
    emission = Emission.of(event, request_id="req-1", user_id=None)
    assert (emission.event_id, emission.timestamp) == (event.event_id, event.timestamp)
    assert (emission.event_type, emission.version, emission.key, emission.queue) == (
        "ticket.sold",
        2,
        "A1",
        None,
    )
    assert emission.data == {"seat": "A1"}


def test_an_emitted_command_names_its_queue() -> None:
    """A command has a receiver; an event has none."""
    emission = Emission.of(PrintTicket(seat="A1"), request_id="req-1", user_id="user-1")
    assert (emission.queue, emission.key) == ("print_tasks", None)


def test_an_emission_leaves_out_a_trace_state_that_is_too_long() -> None:
    """No reason not to publish: https://www.w3.org/TR/trace-context/#tracestate-limits."""
    trace = {"traceparent": "00-a", "tracestate": "x" * 513}
    emission = Emission.of(TicketSold(seat="A1"), request_id="req-1", user_id=None, trace=trace)
    assert (emission.traceparent, emission.tracestate) == ("00-a", None)


def test_a_transaction_is_read_by_its_operations() -> None:
    """The member `op` decides on the class, and JSON reads back as it was written."""
    wire = {
        "operations": [
            {"op": "assert", "resource": "accounts", "id": "a1", "if_match": '"7-a"'},
            {"op": "create", "resource": "orders", "id": "o1", "data": {"total": "10.00"}},
            {"op": "update", "resource": "stock", "id": "X", "increment": {"quantity": -1}},
            {"op": "upsert", "resource": "stats", "id": "s", "data": {}},
            {"op": "delete", "resource": "carts", "id": "c9"},
        ]
    }
    transaction = Transaction.model_validate(wire)
    assert [operation.op for operation in transaction.operations] == [
        "assert",
        "create",
        "update",
        "upsert",
        "delete",
    ]
    assert transaction.isolation == "read_committed"
    assert Transaction.model_validate_json(transaction.model_dump_json()) == transaction


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "truncate", "resource": "a", "id": "b"},
        {"op": "delete", "resource": "a", "id": "b", "cascade": True},
    ],
)
def test_an_operation_outside_the_contract_is_refused(operation: dict[str, object]) -> None:
    """An unknown operation and an unknown member of a known one are both refused."""
    with pytest.raises(ValidationError):
        Transaction.model_validate({"operations": [operation]})


def test_a_transaction_has_at_most_a_hundred_operations() -> None:
    """It is refused by the model, before a store sees it."""
    operation = {"op": "delete", "resource": "carts", "id": "c9"}
    with pytest.raises(ValidationError, match="at most 100"):
        Transaction.model_validate({"operations": [operation] * 101})


def every_error() -> list[type[HybridkitError]]:
    """All classes of the tree that the library defines."""
    found, pending = [], [HybridkitError]
    while pending:
        error = pending.pop()
        found.append(error)
        pending += [below for below in error.__subclasses__() if below.__module__ == errors.__name__]
    return found


field_problems = st.lists(
    st.builds(FieldProblem, st.sampled_from(["", "/a", "/a/~1b/0"]), st.text(), st.text()), max_size=3
)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "errors": field_problems,
    "pointer": st.text(),
    "field": st.text(),
    "fields": st.lists(st.text(), max_size=3),
    "current": st.none() | st.text(),
    "retry_after_seconds": st.none() | st.floats(0, MAX_DELAY_SECONDS),
}
"""Of the constructors: what a problem carries. Anything else stays in the process that raised the error."""


def sent_and_received(
    data: st.DataObject, kind: type[HybridkitError]
) -> tuple[HybridkitError, HybridkitError]:
    """An error of that class with any message and attributes, and what a client makes of its problem."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    values = {name: data.draw(ARGUMENTS[name]) for name in parameters if name in ARGUMENTS}
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty:
            values.setdefault(name, 1 if parameter.annotation in {int, "int"} else "x")
    error = kind(data.draw(st.text()), **values)
    body = Problem.from_error(error, instance="/v1/users", request_id="req-1").model_dump_json()
    return error, Problem.model_validate_json(body).to_error()


def carried(error: HybridkitError) -> dict[str, Any]:
    """The attributes that a problem carries, with the words of its findings, which `==` leaves out."""
    found = {name: getattr(error, name) for name in ARGUMENTS if hasattr(error, name)}
    if "errors" in found:
        found["errors"] = [(entry.pointer, entry.code, entry.message) for entry in found["errors"]]
    return found


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
@settings(max_examples=20)
@given(data=st.data())
def test_a_client_raises_what_the_service_raised(kind: type[HybridkitError], data: st.DataObject) -> None:
    """A class without a code of its own arrives as the general one of that code; message and attributes stay."""
    error, again = sent_and_received(data, kind)
    expected = NoRouteError if kind is NoRouteError else error_for_code(kind.code)
    if issubclass(kind, PayloadError):
        expected = InvalidRequestError
    assert type(again) is expected
    assert str(again) == str(error)
    assert again.retryable == error.retryable
    sent, received = carried(error), carried(again)
    assert {**{name: [] for name in received}, **sent} == received


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("UNIQUE_VIOLATION", 409, UniqueViolationError),
        ("FOREIGN_KEY_VIOLATION", 409, ForeignKeyError),
        ("VALIDATION", 422, InvalidRequestError),
        ("INVALID_QUERY", 400, InvalidQueryError),
        ("PAGE_TOKEN_MISMATCH", 400, errors.PageTokenError),
        ("NOT_FOUND", 404, NotFoundError),
        ("PRECONDITION_FAILED", 412, StaleVersionError),
        ("REQUIREMENT_NOT_MET", 412, errors.RequirementNotMetError),
        ("PRECONDITION_REQUIRED", 428, errors.PreconditionRequiredError),
        ("IDEMPOTENCY_IN_PROGRESS", 409, InProgressError),
        ("IDEMPOTENCY_KEY_REUSED", 422, KeyReusedError),
        ("IDEMPOTENCY_KEY_REQUIRED", 400, errors.KeyMissingError),
        ("SERIALIZATION_FAILURE", 409, ConflictError),
        ("LOCK_TIMEOUT", 409, errors.LockTimeoutError),
        ("DEADLINE_EXCEEDED", 504, DeadlineExceededError),
        ("DEADLINE_PASSED", 504, DeadlinePassedError),
        ("UNAVAILABLE", 503, UnavailableError),
        ("OVERLOADED", 503, errors.OverloadedError),
        ("RATE_LIMITED", 429, RateLimitedError),
        ("TRANSACTIONS_UNAVAILABLE", 501, errors.TransactionsUnavailableError),
    ],
)
def test_the_codes_of_the_contract(code: str, status: int, kind: type[HybridkitError]) -> None:
    """Clients in other languages rely on code and status, so neither may change."""
    assert (kind.code, kind.status) == (code, status)
    assert type(Problem(title="t", status=status, code=code, detail="d").to_error()) is kind


def test_every_code_has_a_title_for_people() -> None:
    """The table has each code of the error tree and no other, and no title is the name of a class."""
    assert set(TITLES) == {*(kind.code for kind in every_error()), "INTERNAL"}
    assert not {title for title in TITLES.values() if title.endswith("Error") or title[1:].istitle()}


def test_an_error_of_the_applications_has_the_title_of_what_it_extends() -> None:
    """So every title has a translation; the message says the rest."""

    class CopyLentOutError(RuleViolationError):
        code = "COPY_LENT_OUT"

    class GateError(ConflictError):
        code = "GATE_CLOSED"

    refused = (CopyLentOutError("x"), RuleViolationError("x", code="STRANGE"), GateError("x"))
    titles = [Problem.from_error(error, instance="/", request_id="r").title for error in refused]
    assert titles == ["Rule violation", "Rule violation", "Conflict with another change"]


class Keyed(Event, type="contract_test.keyed", key="name"):
    name: str
    thing: Any = None


@pytest.mark.parametrize("name", ["", "a" * 1024, "Ünal Çelik", "a b\n"])
def test_an_event_is_in_order_by_any_text_of_reasonable_length(name: str) -> None:
    """An ordering key has up to 1,024 characters of any script, or none."""
    assert Emission.of(Keyed(name=name), request_id="r", user_id=None).key == name


@pytest.mark.parametrize("name", ["a" * 1025, "a\x00b"])
def test_an_event_that_can_not_be_stored_is_refused_where_it_is_emitted(name: str) -> None:
    """The error has a pointer, and no value."""
    with pytest.raises(InvalidRequestError, match="can't be sent") as caught:
        Emission.of(Keyed(name=name), request_id="r", user_id=None)
    assert [error.pointer for error in caught.value.errors] == ["/key"]
    assert "aaa" not in str(caught.value)


def circle() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


@pytest.mark.parametrize(
    "thing", [object(), b"\xff", {"\ud83d": 1}, circle()], ids=["object", "bytes", "half", "circle"]
)
def test_data_without_a_json_form_is_refused_where_it_is_emitted(thing: object) -> None:
    """The caller learns it, not the relay that would have to publish it."""
    with pytest.raises(MalformedPayloadError, match="has no JSON form"):
        Emission.of(Keyed(name="a", thing=thing), request_id="r", user_id=None)
