"""Transactions: what a block collects, when it is sent, and what its handles know."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from opentelemetry.context import attach, detach
from pydantic import BaseModel, Field

from hybridkit.clients._transaction import DataTransaction, Handle, Isolation
from hybridkit.clients._transaction_identity import TransactionIdentity
from hybridkit.context import Claim, RequestContext, bind, current
from hybridkit.contract import Transaction, TransactionResult
from hybridkit.errors import (
    HybridkitError,
    InvalidQueryError,
    InvalidRequestError,
    MisuseError,
    OutcomeUnknownError,
    ResponseError,
    StepReusedError,
)
from hybridkit.events import Command, Event
from hybridkit.observability import remote_trace
from hybridkit.resources import Record, Resource

ID = UUID("1f1e5477-3fd3-6f83-be8e-f44fe982b401")


class NewUser(BaseModel):
    email: str
    visits: int = 0


class User(NewUser, Record):
    pass


class UserChanges(BaseModel):
    email: str | None = None
    visits: int | None = None


class Country(BaseModel):
    name: str


class CountryRecord(Country, Record[str]):
    pass


USERS = Resource("users", record=User, create=NewUser, update=UserChanges, filterable=("visits",))
COUNTRIES = Resource("countries", record=CountryRecord, create=Country, update=Country)


class Part(BaseModel):
    size: int = 0


class NewLot(BaseModel):
    title: str = ""
    left: int = 0
    price: Decimal | None = None
    weight: Annotated[float | None, Field(ge=0)] = None
    is_open: bool = True
    kind: Literal[1, 2] = 1
    part: Part | None = None


class Lot(NewLot, Record):
    pass


class LotChanges(BaseModel):
    title: str | None = None
    price: Decimal | None = None
    weight: float | None = None
    is_open: bool | None = None
    kind: Literal[1, 2] | None = None
    part: Part | None = None


LOTS = Resource("lots", record=Lot, create=NewLot, update=LotChanges)


class Registered(Event, type="client_transaction_test.registered", key="user_id"):
    user_id: UUID


class SendMail(Command, queue="client_transaction_test"):
    user_id: UUID


def stored(id: object = ID, **fields: Any) -> dict[str, Any]:
    """A record as the service answers it."""
    moment = "2026-01-15T10:30:00Z"
    system = {"id": str(id), "version": 1, "created_at": moment, "updated_at": moment, "etag": '"1-a"'}
    return {**system, "email": "a@example.com", "visits": 0, **fields}


class Service:
    """Takes transactions; answers each operation with a record, or as it is told."""

    def __init__(self, answer: TransactionResult | HybridkitError | None = None) -> None:
        self.answer = answer
        self.seen: list[Transaction] = []
        self.keys: list[str] = []
        self.contexts: list[RequestContext] = []

    async def commit(self, transaction: Transaction, key: str) -> TransactionResult:
        self.seen.append(transaction)
        self.keys.append(key)
        self.contexts.append(current())
        if isinstance(self.answer, HybridkitError):
            raise self.answer
        results = [
            None if operation.op in {"assert", "delete"} else stored(operation.id)
            for operation in transaction.operations
        ]
        return self.answer or TransactionResult(results=tuple(results))

    def transaction(
        self, isolation: Isolation = "read_committed", *, step: str | None = None
    ) -> DataTransaction:
        return DataTransaction(self.commit, isolation=isolation, step=step)

    def body(self) -> dict[str, Any]:
        """The only transaction seen, as JSON."""
        (transaction,) = self.seen
        return transaction.model_dump(mode="json")


async def test_a_block_is_one_request_at_its_end() -> None:
    """Inside the block a handle has the id, after it the record."""
    service = Service()
    async with service.transaction() as tx:
        user = tx.create(USERS, NewUser(email="a@example.com"))
        assert user.id.version == 6
        assert service.seen == []
    assert service.body()["operations"] == [
        {
            "op": "create",
            "resource": "users",
            "id": str(user.id),
            "data": {"email": "a@example.com", "visits": 0},
        }
    ]
    assert user.result.id == user.id
    assert repr(user) == f"Handle('users', {user.id}, committed)"


async def test_every_operation_keeps_its_place() -> None:
    """The request has all operations in order, with the ETags of the records that were read."""
    service = Service()
    user = User.model_validate(stored())
    async with service.transaction("serializable") as tx:
        tx.require(USERS, user)
        tx.require(USERS, ID)
        tx.update(USERS, user, UserChanges(email="b@example.com"))
        tx.update(USERS, ID, increment={"visits": -1}, require=USERS["visits"] >= 1)
        tx.upsert(COUNTRIES, "fr", Country(name="France"))
        tx.delete(USERS, user)
        tx.delete(USERS, str(ID).upper())
        assert repr(tx) == "DataTransaction(7 operations, 0 messages, open)"
        service.answer = TransactionResult(
            results=(None, None, stored(), stored(), stored("fr", name="France"), None, None)
        )
    tag = '"1-a"'
    patch: dict[str, Any] = {"op": "update", "resource": "users", "id": str(ID)}
    assert service.body() == {
        "operations": [
            {"op": "assert", "resource": "users", "id": str(ID), "if_match": tag},
            {"op": "assert", "resource": "users", "id": str(ID), "if_match": None},
            patch | {"data": {"email": "b@example.com"}, "increment": {}, "require": None, "if_match": tag},
            patch
            | {"data": {}, "increment": {"visits": -1}, "require": {"gte": ["visits", 1]}, "if_match": None},
            {
                "op": "upsert",
                "resource": "countries",
                "id": "fr",
                "data": {"name": "France"},
                "increment": {},
            },
            {"op": "delete", "resource": "users", "id": str(ID), "if_match": tag},
            {"op": "delete", "resource": "users", "id": str(ID), "if_match": None},
        ],
        "emit": [],
        "cancel": [],
        "isolation": "serializable",
    }


async def test_messages_go_with_the_writes() -> None:
    """Messages carry the request that caused them, an event its key, a command its queue."""
    service = Service()
    event, command = Registered(user_id=ID), SendMail(user_id=ID)
    with bind(RequestContext(request_id="req-1", user_id="user-1")):
        async with service.transaction() as tx:
            tx.emit(event)
            tx.emit(command)
    first, second = service.body()["emit"]
    assert first["event_id"] == str(event.event_id)
    assert (first["event_type"], first["key"], first["queue"]) == (event.message_type, str(ID), None)
    assert (second["key"], second["queue"]) == (None, "client_transaction_test")
    assert first["data"] == {"user_id": str(ID)}
    assert (first["request_id"], first["user_id"]) == ("req-1", "user-1")


async def test_a_message_may_have_to_wait() -> None:
    """A message waits until a time, or for some seconds; naming both raises."""
    service = Service()
    async with service.transaction() as tx:
        tx.emit(SendMail(user_id=ID), not_before=datetime(2030, 1, 31, 9, tzinfo=UTC))
        tx.emit(SendMail(user_id=ID), delay_seconds=3600)
        for wrong in (-1.0, 1e12, float("nan")):
            with pytest.raises(MisuseError, match=r"not_before, .* or delay_seconds of 0 to"):
                tx.emit(SendMail(user_id=ID), delay_seconds=wrong)
        with pytest.raises(MisuseError):
            tx.emit(SendMail(user_id=ID), not_before=datetime(2030, 1, 31, tzinfo=UTC), delay_seconds=1)
    until, after = (message["not_before"] for message in service.body()["emit"])
    assert until == "2030-01-31T09:00:00Z"
    left = datetime.fromisoformat(after) - datetime.now(UTC)
    assert timedelta(seconds=3500) < left <= timedelta(seconds=3600)


async def test_a_message_can_be_cancelled_by_the_id_that_it_got_in_the_block() -> None:
    """In a claim too the id is there before anything is sent, and a rerun makes the same."""
    seen: list[UUID] = []
    for _ in range(2):
        service = Service()
        with bind(RequestContext(claim=Claim("tests:timer:1"))):
            async with service.transaction() as tx:
                later = Registered(user_id=ID)
                tx.emit(later, delay_seconds=60)
                seen.append(later.event_id)
                tx.cancel(ID)
        assert service.body()["emit"][0]["event_id"] == str(seen[-1])
        assert service.body()["cancel"] == [str(ID)]
    assert seen[0] == seen[1]


async def test_a_block_that_only_cancels_is_sent() -> None:
    """In a claim its key derives from what it cancels, whatever the order."""
    keys: list[str] = []
    for cancelled in ([ID], [ID], [UUID(int=1)]):
        service = Service(TransactionResult(results=()))
        with bind(RequestContext(claim=Claim("tests:timer:1"))):
            async with service.transaction() as tx:
                for event_id in cancelled:
                    tx.cancel(event_id)
        keys += service.keys
    assert keys[0] == keys[1] != keys[2]
    assert not keys[0].startswith("hkd_n_")


async def test_messages_carry_the_trace_in_which_they_were_emitted() -> None:
    """The relay can publish in the trace of the request long after that has ended."""
    service = Service()
    trace = {"traceparent": f"00-{'4b' * 16}-{'a1' * 8}-01", "tracestate": "vendor=1"}
    async with service.transaction() as tx:
        tx.emit(Registered(user_id=ID))
        token = attach(remote_trace(trace))
        tx.emit(Registered(user_id=ID))
        detach(token)
    without, within = service.body()["emit"]
    assert (without["traceparent"], without["tracestate"]) == (None, None)
    assert {name: within[name] for name in trace} == trace


async def test_without_a_context_events_and_request_share_one_id() -> None:
    """The transaction makes one request id and uses it for all."""
    service = Service()
    async with service.transaction() as tx:
        tx.emit(Registered(user_id=ID))
        tx.emit(Registered(user_id=ID))
    ids = {emission["request_id"] for emission in service.body()["emit"]}
    assert ids == {service.contexts[0].request_id}


async def test_a_block_that_raises_sends_nothing() -> None:
    """The exception goes through, and the handles have no result."""
    service = Service()
    handles: list[Handle[User]] = []

    async def work() -> None:
        async with service.transaction() as tx:
            handles.append(tx.create(USERS, NewUser(email="a@example.com")))
            raise ValueError("changed my mind")

    with pytest.raises(ValueError, match="changed my mind"):
        await work()
    assert service.seen == []
    with pytest.raises(MisuseError, match="the transaction failed"):
        _ = handles[0].result


async def test_an_empty_block_sends_nothing() -> None:
    """A transaction without operations and events costs no request."""
    service = Service()
    async with service.transaction():
        pass
    assert service.seen == []


async def test_the_result_is_not_there_inside_the_block() -> None:
    """Asking for it raises an error that says when it will be there."""
    async with Service().transaction() as tx:
        user = tx.create(USERS, NewUser(email="a@example.com"))
        with pytest.raises(MisuseError, match="after the transaction's `async with` block"):
            _ = user.result


async def test_a_minimal_transaction_has_no_results() -> None:
    """Its handles have the ids, and say why they have no more."""

    async def commit(transaction: Transaction, key: str) -> None:
        assert transaction.operations, key

    async with DataTransaction(commit, isolation="read_committed") as tx:
        user = tx.replace(USERS, ID, NewUser(email="a@example.com"))
        tx.delete(USERS, ID)
    assert user.id == ID
    with pytest.raises(MisuseError, match="minimal transaction has no results"):
        _ = user.result


async def test_a_failed_commit_leaves_no_results() -> None:
    """After an unknown outcome a handle has no record, and the transaction has ended."""
    transaction = Service(OutcomeUnknownError("cut")).transaction()
    handles: list[Handle[User]] = []

    async def work() -> None:
        async with transaction as tx:
            handles.append(tx.create(USERS, NewUser(email="a@example.com")))
            tx.delete(USERS, ID)

    with pytest.raises(OutcomeUnknownError):
        await work()
    with pytest.raises(MisuseError, match="the transaction failed"):
        _ = handles[0].result
    assert repr(transaction) == "DataTransaction(2 operations, 0 messages, ended)"


@pytest.mark.parametrize(
    "results",
    [(), (stored(), stored()), ({"id": "nonsense"},)],
    ids=["few", "many", "garbage"],
)
async def test_results_that_do_not_fit_are_an_error(results: tuple[dict[str, Any] | None, ...]) -> None:
    """Too many, too few, or other results than the operations have raise `ResponseError`."""
    service = Service(TransactionResult(results=results))
    with pytest.raises(ResponseError):
        async with service.transaction() as tx:
            tx.create(USERS, NewUser(email="a@example.com"))


async def test_a_transaction_is_used_once() -> None:
    """Neither before its block, nor after it, nor in a second one does it take anything."""
    transaction = Service().transaction()
    with pytest.raises(MisuseError, match="this transaction is new"):
        transaction.delete(USERS, ID)
    async with transaction:
        pass
    with pytest.raises(MisuseError, match="this transaction is ended"):
        transaction.emit(Registered(user_id=ID))
    with pytest.raises(MisuseError, match="entered once"):
        async with transaction:
            pass


async def test_a_transaction_has_at_most_100_operations() -> None:
    """The operation that is too many raises on its own line."""
    async with Service().transaction() as tx:
        for _ in range(100):
            tx.delete(USERS, ID)
            tx.emit(Registered(user_id=ID))
        with pytest.raises(InvalidRequestError, match="at most 100"):
            tx.delete(USERS, ID)
        with pytest.raises(InvalidRequestError, match="at most 100"):
            tx.emit(Registered(user_id=ID))


async def test_what_cannot_be_sent_is_refused_inside_the_block() -> None:
    """The line that is wrong raises, not the end of the block."""
    async with Service().transaction() as tx:
        with pytest.raises(InvalidRequestError, match="natural key"):
            tx.create(COUNTRIES, Country(name="France"))
        with pytest.raises(InvalidRequestError, match="no id of a User"):
            tx.delete(USERS, "x")
        with pytest.raises(InvalidQueryError):
            tx.update(USERS, ID, require=USERS["email"] == "a@example.com")


async def test_a_rerun_in_a_claim_makes_the_same_ids() -> None:
    """Records and events of a rerun have the ids of the first run, each in its order."""

    async def work(service: Service) -> dict[str, Any]:
        with bind(RequestContext(request_id="req-1", claim=Claim("worker:event:7"))):
            async with service.transaction() as tx:
                for email in ("a@example.com", "b@example.com"):
                    user = tx.create(USERS, NewUser(email=email))
                    tx.emit(Registered(user_id=user.id))
        return service.body()

    first, second = await work(Service()), await work(Service())
    assert first["operations"] == second["operations"]
    assert [event["event_id"] for event in first["emit"]] == [event["event_id"] for event in second["emit"]]
    ids = {UUID(operation["id"]) for operation in first["operations"]}
    assert len(ids) == 2
    assert {made.version for made in ids} == {8}


async def test_a_rerun_that_is_recorded_with_other_operations_is_another_transaction() -> None:
    """The recorded results are not those of the handles, and the error asks for a step."""
    service = Service(TransactionResult(results=(stored(), stored())))
    with (
        bind(RequestContext(claim=Claim("worker:event:7"))),
        pytest.raises(StepReusedError, match=r"transaction\(step="),
    ):
        async with service.transaction() as tx:
            tx.upsert(USERS, ID, NewUser(email="a@example.com"))


async def test_a_named_transaction_has_its_name_for_key_ids_and_events() -> None:
    """Whatever it writes, and in whatever order such transactions come, a rerun finds it by its name."""

    async def work(*names: str) -> dict[str, tuple[str, UUID, UUID]]:
        found: dict[str, tuple[str, UUID, UUID]] = {}
        with bind(RequestContext(claim=Claim("worker:event:7"))):
            for name in names:
                service = Service()
                async with service.transaction(step=name) as tx:
                    if len(names) > 1:
                        tx.delete(USERS, ID)
                    user = tx.create(USERS, NewUser(email="a@example.com"))
                    tx.emit(event := Registered(user_id=ID))
                found[name] = (service.keys[0], user.id, event.event_id)
        return found

    both = await work("a", "b")
    assert await work("b") == {"b": both["b"]}
    assert len({*both["a"], *both["b"]}) == 6


async def test_a_transaction_finds_its_new_records_by_the_record_it_changes_first() -> None:
    """A loop over the records that are left makes the ids of the first run for each of them."""

    async def work(*targets: UUID) -> list[UUID]:
        made: list[UUID] = []
        with bind(RequestContext(claim=Claim("worker:event:7"))):
            for target in targets:
                async with Service().transaction() as tx:
                    tx.delete(USERS, target)
                    made.append(tx.create(USERS, NewUser(email="a@example.com")).id)
        return made

    assert (await work(ID, UUID(int=2)))[1:] == await work(UUID(int=2))
    assert repr(TransactionIdentity(Claim("a:b:c"), "s")) == "TransactionIdentity(Claim(key='a:b:c'), 's')"


async def test_an_event_that_has_its_identity_keeps_it() -> None:
    """A transaction gives ids only to events without one; one that is emitted twice has one id."""
    service = Service()
    with bind(RequestContext(claim=Claim("worker:event:7"))):
        known, new = Registered(user_id=ID), Registered(user_id=ID)
        known_id = known.event_id
        async with service.transaction() as tx:
            for event in (known, new, new):
                tx.emit(event)
    assert [event["event_id"] for event in service.body()["emit"]] == [
        str(known_id),
        str(new.event_id),
        str(new.event_id),
    ]
    assert new.event_id != known_id


async def test_a_natural_key_is_typed_as_declared() -> None:
    """The handle has the key of the declared type, before and after the commit."""
    service = Service(TransactionResult(results=(stored("fr", name="France"),)))
    async with service.transaction() as tx:
        country = tx.create(COUNTRIES, Country(name="France"), id="fr")
    assert country.id == "fr"
    assert country.result.name == "France"


@pytest.mark.parametrize(
    ("increment", "changes", "code"),
    [
        ({"left": -1}, None, "LotChanges doesn't let it be changed"),
        ({"nothing": 1}, None, "Lot has no such field"),
        ({"version": 1}, None, "LotChanges doesn't let it be changed"),
        ({"title": 1}, None, "it is no number"),
        ({"is_open": 1}, None, "it is no number"),
        ({"kind": 1}, None, "it is no number"),
        ({"part": 1}, None, "it is no number"),
        ({"part.size": 1}, None, "Lot has no such field"),
        ({"price": True}, None, "a finite int, float or Decimal"),
        ({"price": "1"}, None, "a finite int, float or Decimal"),
        ({"price": float("nan")}, None, "a finite int, float or Decimal"),
        ({"price": Decimal("NaN")}, None, "a finite int, float or Decimal"),
        ({"weight": float("-inf")}, None, "a finite int, float or Decimal"),
        ({"weight": Decimal("0.5")}, None, "it is a float, so no Decimal is added"),
        ({"price": 1}, LotChanges(price=Decimal(3)), "either set or incremented"),
        ({"weight": 1, "title": 1}, None, "it is no number"),
    ],
)
async def test_an_increment_that_the_declaration_rules_out_is_refused_by_name_and_unsent(
    increment: Any, changes: LotChanges | None, code: str
) -> None:
    """The pointer of the problem names the field, and no request is made."""
    service = Service()
    with pytest.raises(InvalidRequestError, match=re.escape(code)) as refusal:
        async with service.transaction() as tx:
            tx.update(LOTS, ID, changes, increment=increment)
    assert refusal.value.errors[0].pointer.removeprefix("/increment/") in increment
    assert service.seen == []


async def test_an_integer_grows_by_integers() -> None:
    """A float with a fraction is refused for an integer field, and taken for others."""
    service = Service()
    with pytest.raises(InvalidRequestError, match="visits"):
        async with service.transaction() as tx:
            tx.update(USERS, ID, increment={"visits": 0.5})
    with pytest.raises(InvalidRequestError, match="it is an integer, so no Decimal is added"):
        async with service.transaction() as tx:
            tx.update(USERS, ID, increment={"visits": Decimal(1)})
    async with service.transaction() as tx:
        tx.update(USERS, ID, increment={"visits": 2.0})
        tx.update(LOTS, ID, increment={"price": 0.5, "weight": -2})
    assert len(service.seen) == 1
