"""Corners of sagas: how each part tells itself, what a row can't tell any more, and results without a type."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from hybridkit.errors import UnavailableError, UnknownEventTypeError
from hybridkit.events import Command, EventEnvelope, registry
from hybridkit.ids import new_id
from hybridkit.sagas import Saga, SagaStatus, StoredMessage, Undo
from hybridkit.sagas._commits import RowTransaction
from hybridkit.sagas._drafts import Cause, Draft
from hybridkit.sagas._engine import Delivery, SagaEngine
from hybridkit.sagas._run import Run, _result_adapter
from hybridkit.sagas._sweep import Sweep
from hybridkit.testing import SagaBench
from tests.helpers.order_saga import OrderPlaced, ReleaseStock, StockReserved, order_saga
from tests.unit.test_sagas_decisions import row

SAGA = order_saga("saga_test.corners")
KEY = UUID(int=3)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Renamed(Command, queue="saga_test.corners_work", version=2):
    """A command that has changed since it was stored."""

    thing_id: UUID
    note: str


@Renamed.upcast(from_version=1)
def with_note(data: dict[str, Any]) -> dict[str, Any]:
    """Add what version 1 had not."""
    return {**data, "note": ""}


def test_a_stored_command_is_brought_to_its_newest_version() -> None:
    """A command on an undo list may be older than the code that sends it; one without a class is an error."""
    stored = StoredMessage(type=Renamed.message_type, version=1, data={"thing_id": str(KEY)})
    assert stored.restored() == Renamed(thing_id=KEY, note="")
    assert registry.newest(Renamed.message_type) is Renamed
    with pytest.raises(UnknownEventTypeError):
        StoredMessage(type="command.gone", data={}).restored()


def test_each_part_tells_itself_in_a_line() -> None:
    """For logs and debuggers."""
    cause = Cause(saga_id=KEY, event_id=KEY, event_type="any", at=NOW)
    nothing: Any = None
    parts: list[tuple[object, str]] = [
        (Draft(row(), cause), "Draft('stock' -> 'stock', 0 messages)"),
        (SagaEngine(SAGA), "SagaEngine('saga_test.corners')"),
        (Sweep(SAGA, nothing, nothing), "Sweep('saga_test.corners')"),
        (RowTransaction(nothing, "key", minimal=True), "RowTransaction('key')"),
        (SagaBench(SAGA), "SagaBench('saga_test.corners', 0 messages wait)"),
    ]
    for part, words in parts:
        assert repr(part) == words
    run: Run[Any] = Run(
        row(), data=SAGA.data, states=SAGA.states, key=KEY, event=nothing, steps=nothing, is_start=True
    )
    assert repr(run).startswith("Run('saga_test.decisions', key=")
    assert run.started_version == 1
    assert Delivery.__repr__(_delivery()) == "Delivery('saga_test.corners', 'saga_test.order.placed')"


def _delivery() -> Delivery:
    nothing: Any = None
    envelope = EventEnvelope[Any].wrap(OrderPlaced(order_id=KEY, total=Decimal(1)), service="api_service")
    return Delivery(SAGA, envelope, nothing, {}, KEY)


def test_nothing_is_undone_in_a_saga_that_has_not_failed() -> None:
    """A skip of a refused entry in one that has ended only says so."""
    refused = Undo(n=1, command=StoredMessage.of(ReleaseStock(order_id=KEY)), state="refused")
    ended = row("stock", SagaStatus.UNDONE, undo=[refused], error="undo 1 failed")
    draft = Draft(ended, Cause(saga_id=KEY, event_id=KEY, event_type="any", at=NOW))
    draft.skip(refused)
    assert (draft.row.status, draft.row.error, draft.has_ended) == (SagaStatus.UNDONE, None, False)
    assert draft.row.undo[0].state == "skipped"


def test_an_error_stays_while_another_entry_is_refused() -> None:
    """A person has to decide about each."""
    undos = [Undo(n=n, command=StoredMessage.of(ReleaseStock(order_id=KEY)), state="refused") for n in (1, 2)]
    undoing = row("stock", SagaStatus.UNDOING, undo=undos, error="undo 1 failed")
    draft = Draft(undoing, Cause(saga_id=KEY, event_id=KEY, event_type="any", at=NOW))
    draft.skip(undos[1])
    assert draft.row.error == "undo 1 failed"
    draft.resend()
    assert [undo.state for undo in draft.row.undo] == ["done", "skipped"]
    assert draft.row.status is SagaStatus.GIVEN_UP


def test_what_was_sent_without_a_confirmation_can_be_sent_again() -> None:
    """`retry` of an awaited undo sends it under a new id."""
    sent = Undo(n=1, command=StoredMessage.of(ReleaseStock(order_id=KEY)), state="sent", undone_by="x")
    draft = Draft(
        row("stock", SagaStatus.UNDOING, undo=[sent]),
        Cause(saga_id=KEY, event_id=KEY, event_type="any", at=NOW),
    )
    draft.resend()
    assert draft.row.undo[0].attempts == 1
    assert len(draft.messages) == 2
    nothing_sent = row("stock", SagaStatus.UNDOING)
    again = Draft(nothing_sent, Cause(saga_id=KEY, event_id=KEY, event_type="any", at=NOW))
    again.resend()
    assert again.has_ended


def test_a_result_without_a_readable_type_is_plain_json() -> None:
    """As one of a function whose annotation can't be resolved."""

    async def unannotated(): ...  # type: ignore[no-untyped-def]

    async def unknown() -> "NoSuchType": ...  # type: ignore[name-defined] # noqa: F821 # pyright: ignore[reportUndefinedVariable]

    for function in (unannotated, unknown):
        assert _result_adapter(function).validate_python({"a": 1}) == {"a": 1}


async def test_an_error_that_can_t_be_noted_is_still_the_error() -> None:
    """The data service is down when the handler is given up: the dead letter has what failed."""
    async with SagaBench(SAGA) as bench:
        key = new_id()
        await bench.tell(OrderPlaced(order_id=key, total=Decimal(5)))
        engine = SagaEngine(SAGA)

        class Broken:
            """A data client that reads and writes nothing."""

            async def get_or_none(self, *_: object) -> None:
                raise ValueError("the first error")

            async def update(self, *_: object) -> None:
                raise UnavailableError("down")

        broken: Any = Broken()
        envelope = EventEnvelope[Any].wrap(StockReserved(order_id=key), service="api_service")
        with pytest.raises(ValueError, match="the first error"):
            await engine.deliver(envelope, broken, {}, attempt=8)


def test_a_key_is_read_in_the_type_of_the_start() -> None:
    """A saga that nothing starts has only its text."""
    assert SAGA.read_key(str(KEY)) == KEY
    bare = Saga("saga_test.bare", data=SAGA.data, states=SAGA.states, key="order_id")
    assert bare.read_key("7") == "7"


async def test_one_object_that_two_sagas_send_is_two_commands() -> None:
    """Its identity is of the saga and the message, not of the object."""
    shared = ReleaseStock(order_id=KEY)
    saga = Saga("saga_test.sharing", data=SAGA.data, states=SAGA.states, key="order_id")

    @saga.starts(OrderPlaced)
    async def placed(saga: Run[Any]) -> None:
        saga.data = SAGA.data(total=Decimal(1))
        saga.send(shared)
        saga.send(shared)
        saga.done()

    for state in SAGA.states:
        saga.on_timeout(state)(placed)
    async with SagaBench(saga) as bench:
        for key in (new_id(), new_id()):
            await bench.tell(OrderPlaced(order_id=key, total=Decimal(1)))
        assert len({command.event_id for command in bench.sent(ReleaseStock)}) == 4
