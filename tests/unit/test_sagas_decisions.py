"""What a message means for a saga, by its row alone: every line of the table of decisions."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from hybridkit.errors import MisuseError, PayloadTooLargeError
from hybridkit.ids import new_id
from hybridkit.sagas import Missing, NewSaga, SagaStatus
from hybridkit.sagas._decisions import (
    Handle,
    Hold,
    Resend,
    Skip,
    SkipUndo,
    Start,
    UndoConfirmed,
    UndoOverdue,
    UndoRefused,
    decide,
)
from hybridkit.sagas._drafts import Cause, Draft, undo_wait
from hybridkit.sagas._messages import Action, CommandFailed, order_class, timer_class
from hybridkit.sagas._records import MAX_UNDOS, HistoryEntry, StoredMessage, Undo
from tests.helpers.order_saga import (
    Charged,
    OrderCancelled,
    OrderPlaced,
    Refunded,
    ReleaseStock,
    ReserveStock,
    StockReleased,
    StockReserved,
    Waiting,
    order_saga,
)

SAGA = order_saga("saga_test.decisions")
KEY = new_id()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(state: str | None = "stock", status: SagaStatus = SagaStatus.RUNNING, **more: object) -> NewSaga:
    """Return a row in a state."""
    visited = [state] if state else []
    return NewSaga.model_validate(
        {"saga": SAGA.name, "key": str(KEY), "state": state, "status": status, "visited": visited} | more
    )


def undo(state: str, *, n: int = 1, undone_by: str | None = StockReleased.message_type) -> Undo:
    """Return an entry of an undo list."""
    command = StoredMessage.of(ReleaseStock(order_id=KEY))
    command.event_id = UUID(int=n)
    return Undo.model_validate({"n": n, "command": command, "state": state, "undone_by": undone_by})


def test_no_row_is_begun_waited_for_or_ignored() -> None:
    """A start makes one; another event waits, unless it is declared as one that others cause too."""
    handlers = SAGA.handlers
    assert isinstance(decide(handlers, None, OrderPlaced(order_id=KEY, total=Decimal(1)), new_id()), Start)
    assert decide(handlers, None, StockReserved(order_id=KEY), new_id()) == Hold("saga_missing")
    assert decide(handlers, None, timer_class(SAGA.name)(saga_id=KEY, entry=1), new_id()) == Skip("ignored")
    assert decide(handlers, None, StockReleased(order_id=KEY), new_id()) == Skip("ignored")
    other = order_saga("saga_test.ignoring")
    for handler in other.handlers.by_message.pop(OrderCancelled):
        other.on(OrderCancelled, when=Waiting.STOCK, missing=Missing.IGNORE)(handler.function)
    assert decide(other.handlers, None, OrderCancelled(order_id=KEY), new_id()) == Skip("ignored")


def test_a_message_of_the_history_is_a_duplicate() -> None:
    """Also in a state that would wait for it again."""
    event_id = new_id()
    seen = HistoryEntry(at=NOW, event_type="any", event_id=event_id)
    found = decide(SAGA.handlers, row(history=[seen]), StockReserved(order_id=KEY), event_id)
    assert found == Skip("duplicate")


def test_a_row_of_a_newer_version_waits_for_newer_code() -> None:
    """An older replica leaves the message to a newer one."""
    assert decide(SAGA.handlers, row(definition=2), StockReserved(order_id=KEY), new_id()) == Hold(
        "saga_newer"
    )


def test_an_event_is_handled_early_or_late() -> None:
    """By its states: the present one, one that was visited, or none so far."""
    assert isinstance(decide(SAGA.handlers, row(), StockReserved(order_id=KEY), new_id()), Handle)
    assert decide(SAGA.handlers, row(), Charged(order_id=KEY), new_id()) == Hold("saga_early")
    later = row("payment", visited=["stock", "payment"])
    assert decide(SAGA.handlers, later, StockReserved(order_id=KEY), new_id()) == Skip("late")
    assert decide(SAGA.handlers, row(), OrderPlaced(order_id=KEY, total=Decimal(1)), new_id()) == Skip("late")


@pytest.mark.parametrize(
    ("otherwise", "expected"), [(Missing.WAIT, Hold("saga_early")), (Missing.IGNORE, Skip("ignored"))]
)
def test_otherwise_decides_for_states_that_are_visited_again(otherwise: Missing, expected: object) -> None:
    """It wins over the states that were visited."""
    saga = order_saga(f"saga_test.otherwise_{otherwise.value}")
    for handler in saga.handlers.by_message.pop(StockReserved):
        saga.on(StockReserved, when=Waiting.STOCK, otherwise=otherwise)(handler.function)
    later = row("payment", visited=["stock", "payment"])
    assert decide(saga.handlers, later, StockReserved(order_id=KEY), new_id()) == expected


def test_a_start_that_has_only_noted_something_begins_again() -> None:
    """`once` has written the row before the start has moved it; other events wait for that."""
    assert isinstance(
        decide(SAGA.handlers, row(None), OrderPlaced(order_id=KEY, total=Decimal(1)), new_id()), Start
    )
    assert decide(SAGA.handlers, row(None), StockReserved(order_id=KEY), new_id()) == Hold("saga_early")


def test_a_timer_is_of_its_wait_or_stale() -> None:
    """It fails the saga or runs the state's handler; at the deadline the whole fails, whatever the state says."""
    timer = timer_class(SAGA.name)(saga_id=KEY, entry=3)
    waiting = row(entry=3, wake_at=NOW)
    assert decide(SAGA.handlers, waiting, timer, new_id()) == Handle(None, "timeout: stock")
    shipping = row("shipment", entry=3, wake_at=NOW, deadline_at=NOW + timedelta(1))
    found = decide(SAGA.handlers, shipping, timer, new_id())
    assert isinstance(found, Handle)
    assert found.handler is SAGA.handlers.timeouts["shipment"]
    shipping.deadline_at = NOW
    assert decide(SAGA.handlers, shipping, timer, new_id()) == Handle(None, "deadline")
    for stale in (
        row(entry=4, wake_at=NOW),
        row(entry=3),
        row("stock", SagaStatus.DONE, entry=3, wake_at=NOW),
    ):
        assert decide(SAGA.handlers, stale, timer, new_id()) == Skip("stale_timer")


def test_an_undo_is_confirmed_overdue_or_refused() -> None:
    """By the event that it names, by its timer, or by the news of its dead letter; anything else is late."""
    sent = undo("sent")
    undoing = row("stock", SagaStatus.UNDOING, undo=[sent], entry=3, wake_at=NOW)
    timer = timer_class(SAGA.name)(saga_id=KEY, entry=3)
    refusal = CommandFailed(saga_id=KEY, command_type="x", command_id=UUID(int=1), reason="exhausted")
    assert decide(SAGA.handlers, undoing, StockReleased(order_id=KEY), new_id()) == UndoConfirmed(sent)
    assert decide(SAGA.handlers, undoing, Refunded(order_id=KEY), new_id()) == Skip("late")
    assert decide(SAGA.handlers, undoing, timer, new_id()) == UndoOverdue(sent)
    found = decide(SAGA.handlers, undoing, refusal, new_id(), failed=refusal)
    assert found == UndoRefused(sent, "exhausted")
    nothing_sent = row("stock", SagaStatus.UNDOING, undo=[undo("refused")], entry=3, wake_at=NOW)
    assert decide(SAGA.handlers, nothing_sent, timer, new_id()) == Skip("stale_timer")


def test_a_failed_command_fails_a_saga_that_runs() -> None:
    """It is late for one that has ended."""
    failed = CommandFailed(
        saga_id=KEY, command_type="command.charge", command_id=new_id(), reason="permanent"
    )
    found = decide(SAGA.handlers, row(), failed, new_id(), failed=failed)
    assert found == Handle(None, "failed command: command.charge (permanent)")
    done = row("shipment", SagaStatus.DONE)
    assert decide(SAGA.handlers, done, failed, new_id(), failed=failed) == Skip("late")


@pytest.mark.parametrize(
    ("do", "status", "undos", "expected"),
    [
        ("retry", SagaStatus.RUNNING, [], Resend()),
        ("retry", SagaStatus.UNDOING, [undo("refused")], Resend()),
        ("retry", SagaStatus.UNDONE, [undo("refused")], Resend()),
        ("retry", SagaStatus.DONE, [], Skip("late")),
        ("cancel", SagaStatus.RUNNING, [], Handle(None, "cancelled by ann: why")),
        ("cancel", SagaStatus.UNDOING, [], Skip("late")),
        ("skip", SagaStatus.UNDOING, [undo("sent")], SkipUndo(undo("sent"))),
        ("skip", SagaStatus.RUNNING, [undo("open")], Skip("late")),
    ],
)
def test_an_order_of_a_person_fits_the_phase_or_is_late(
    do: Action, status: SagaStatus, undos: list[Undo], expected: object
) -> None:
    """`retry` sends again, `cancel` fails, `skip` leaves an undo out."""
    order = order_class(SAGA.name)(saga_id=KEY, do=do, by="ann", note="why")
    assert decide(SAGA.handlers, row("stock", status, undo=undos), order, new_id()) == expected


# ── the next row ─────────────────────────────────────────────────────────────────────────────────


def draft(before: NewSaga) -> Draft:
    """Return a draft after some message."""
    cause = Cause(saga_id=KEY, event_id=UUID(int=9), event_type="any", at=NOW)
    return Draft(before, cause)


def test_undos_without_a_confirmation_go_out_together() -> None:
    """The list is worked off from its end, as far as nothing has to be awaited."""
    undos = [undo("open", n=1), undo("open", n=2, undone_by=None), undo("open", n=3, undone_by=None)]
    made = draft(row(undo=undos))
    made.fail("no")
    assert [each.state for each in made.row.undo] == ["sent", "done", "done"]
    assert made.row.wake_at == NOW + timedelta(minutes=5)
    assert not made.has_ended


def test_what_is_made_derives_from_saga_and_message() -> None:
    """A rerun makes the same row, the same ids and the same timers."""
    one, two = draft(row(undo=[undo("open")])), draft(row(undo=[undo("open")]))
    one.fail("no")
    two.fail("no")
    assert one.finish() == two.finish()
    assert [each.message.event_id for each in one.messages] == [
        each.message.event_id for each in two.messages
    ]


def test_the_waits_for_a_confirmation_double_up_to_six_hours() -> None:
    """Eight attempts take most of a day."""
    minutes = [undo_wait(attempt).total_seconds() / 60 for attempt in range(1, 9)]
    assert minutes == [5, 10, 20, 40, 80, 160, 320, 360]


def test_a_refused_undo_stops_the_list_until_a_person_decides() -> None:
    """The one before it is not sent, and the confirmation of another is still taken."""
    sent, refused = undo("sent", n=1), undo("done", n=2, undone_by=None)
    made = draft(row("stock", SagaStatus.UNDOING, undo=[undo("open", n=0), sent, refused]))
    made.refuse(refused, "permanent")
    made.confirm(sent)
    assert [each.state for each in made.row.undo] == ["open", "done", "refused"]
    again = draft(made.row)
    again.skip(made.row.undo[2])
    assert [each.state for each in again.row.undo] == ["sent", "done", "skipped"]
    assert again.row.error is None


def test_the_undo_list_and_the_row_are_bounded() -> None:
    """At most 50 entries, and 48 KiB in all; the error says what to do."""
    made = draft(row(undo=[undo("open", n=n) for n in range(MAX_UNDOS)]))
    with pytest.raises(MisuseError, match="children be sagas"):
        made.add_undo(ReleaseStock(order_id=KEY), None)
    large = draft(row(data={"text": "x" * 50_000}))
    with pytest.raises(PayloadTooLargeError, match="records of their own"):
        large.finish()


def test_the_history_keeps_the_last_fifty_moves() -> None:
    """The count of all goes on."""
    before = row()
    for number in range(60):
        made = Draft(before, Cause(saga_id=KEY, event_id=UUID(int=number + 1), event_type="any", at=NOW))
        before = made.finish()
    assert (len(before.history), before.steps) == (50, 60)
    assert not before.has_seen(UUID(int=1))
    assert before.has_seen(UUID(int=60))


def test_a_stored_command_is_restored_without_its_identity() -> None:
    """Sent again, it is another command with the same content."""
    command = ReserveStock(order_id=KEY)
    restored = StoredMessage.of(command).restored()
    assert restored == command
    assert not restored.is_identified
