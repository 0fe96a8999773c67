"""The whole example, on the bench: what is sent, waited for, undone, and told at the end."""

import time
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest

from hybridkit.ids import new_id
from hybridkit.observability import root_span
from hybridkit.testing import SagaBench
from tests.helpers.order_saga import (
    ApprovalAsked,
    Charge,
    Charged,
    OrderApproved,
    OrderCancelled,
    OrderFinished,
    OrderPlaced,
    Refund,
    Refunded,
    ReleaseStock,
    ReserveStock,
    Ship,
    ShipmentIsLate,
    Shipped,
    StockRefused,
    StockReleased,
    StockReserved,
    order_saga,
)
from tests.helpers.spans import attributes_of, recording

PLACE_ORDER = order_saga()


async def placed(bench: SagaBench, *, total: int = 50) -> UUID:
    """Begin a saga, and return its key."""
    order_id = new_id()
    await bench.tell(OrderPlaced(order_id=order_id, total=Decimal(total)))
    return order_id


async def test_an_order_goes_through_its_states_to_its_end() -> None:
    """Each reply moves the saga, its commands go out once, and `on_end` tells how it ended."""
    async with SagaBench(PLACE_ORDER) as bench:
        order_id = await placed(bench)
        await bench.answer(ReserveStock, lambda command: StockReserved(order_id=command.order_id))
        await bench.answer(Charge, lambda command: Charged(order_id=command.order_id))
        assert bench.saga(order_id).state == "shipment"
        await bench.answer(Ship, lambda command: Shipped(order_id=command.order_id))
        row = bench.saga(order_id)
        assert (row.status, row.steps, row.ended_at) == ("done", 4, bench.now)
        assert [entry.to_state for entry in row.history] == ["stock", "payment", "shipment", "done"]
        assert [type(command) for command in bench.commands] == [ReserveStock, Charge, Ship]
        assert bench.emitted(OrderFinished) == [OrderFinished(order_id=order_id, status="done", reason=None)]


async def test_a_payment_that_never_comes_is_undone_from_the_end() -> None:
    """The timeout fails the saga; the refund goes first, and the release when the refund is confirmed."""
    async with SagaBench(PLACE_ORDER, seed=7) as bench:
        order_id = await placed(bench)
        await bench.tell(StockReserved(order_id=order_id))
        await bench.skip(minutes=15)
        assert bench.saga(order_id).status == "undoing"
        assert not bench.sent(ReleaseStock)
        await bench.answer(Refund, lambda command: Refunded(order_id=command.order_id))
        await bench.answer(ReleaseStock, lambda command: StockReleased(order_id=command.order_id))
        assert bench.saga(order_id).status == "undone"
        (finished,) = bench.emitted(OrderFinished)
        assert (finished.status, finished.reason) == ("undone", "timeout: payment")


async def test_seven_days_pass_in_less_than_half_a_second() -> None:
    """A late shipment is told each day, until the deadline of the whole ends the saga."""
    async with SagaBench(PLACE_ORDER) as bench:
        began = time.process_time()
        order_id = await placed(bench, total=5000)
        await bench.tell(StockReserved(order_id=order_id))
        await bench.tell(Charged(order_id=order_id))
        assert bench.emitted(ApprovalAsked)
        await bench.skip(hours=1)
        await bench.tell(OrderApproved(order_id=order_id, by="ann"))
        await bench.skip(days=7)
        assert len(bench.emitted(ShipmentIsLate)) == 6
        assert bench.saga(order_id).reason == "deadline"
        assert time.process_time() - began < 0.5


async def test_a_refusal_undoes_what_was_asked_for() -> None:
    """A refused reservation is released all the same: its undo is harmless for who has reserved nothing."""
    async with SagaBench(PLACE_ORDER) as bench:
        order_id = await placed(bench)
        await bench.tell(StockRefused(order_id=order_id))
        await bench.answer(ReleaseStock, lambda command: StockReleased(order_id=command.order_id))
        assert (bench.saga(order_id).status, bench.saga(order_id).reason) == ("undone", "StockRefused")


async def test_an_early_event_waits_for_its_state_and_a_late_one_is_counted() -> None:
    """The charge that overtakes the reservation is taken after it; a cancellation after the end changes nothing."""
    async with SagaBench(PLACE_ORDER) as bench:
        order_id = await placed(bench)
        await bench.tell(Charged(order_id=order_id))
        assert bench.saga(order_id).state == "stock"
        await bench.tell(StockReserved(order_id=order_id))
        await bench.skip(seconds=5)
        assert bench.saga(order_id).state == "shipment"
        await bench.tell(OrderCancelled(order_id=order_id))
        assert bench.saga(order_id).status == "running"
        assert not bench.dead_letters


async def test_an_event_without_its_saga_is_a_dead_letter_after_a_quarter_of_an_hour() -> None:
    """An event may overtake the start; one whose start never comes is given up as `saga_missing`."""
    async with SagaBench(PLACE_ORDER) as bench:
        await bench.tell(early := StockReserved(order_id=new_id()))
        await bench.skip(minutes=15, seconds=15)
        (letter,) = bench.dead_letters
        assert (letter.message, letter.reason) == (early, "saga_missing")


async def test_the_same_event_twice_moves_a_saga_once() -> None:
    """The second delivery finds its id in the history."""
    async with SagaBench(PLACE_ORDER) as bench:
        order_id = await placed(bench)
        reserved = StockReserved(order_id=order_id)
        await bench.tell(reserved)
        await bench.tell(reserved)
        assert len(bench.sent(Charge)) == 1


async def test_an_undo_is_sent_again_and_then_left_to_a_person() -> None:
    """A confirmation that never comes is asked for eight times; `retry` asks anew, and `skip` goes on without."""
    async with SagaBench(PLACE_ORDER) as bench:
        order_id = await placed(bench)
        await bench.tell(StockReserved(order_id=order_id))
        await bench.skip(minutes=15)
        await bench.skip(days=2)
        row = bench.saga(order_id)
        assert len({command.event_id for command in bench.sent(Refund)}) == 8
        assert row.error == "undo 2 (command.refund) failed: not confirmed after 8 attempts"
        assert row.wake_at is None
        await bench.order(order_id, "retry", by="ann")
        assert (len(bench.sent(Refund)), bench.saga(order_id).error) == (9, None)
        await bench.order(order_id, "skip", by="ann", note="paid in cash")
        await bench.answer(ReleaseStock, lambda command: StockReleased(order_id=command.order_id))
        row = bench.saga(order_id)
        assert row.status == "given_up"
        assert "skip by ann: paid in cash" in [entry.note for entry in row.history]


async def test_a_refused_undo_waits_for_a_person() -> None:
    """The dead letter of a refund sets the error, stops the undo list, and `retry` sends it again."""
    async with SagaBench(PLACE_ORDER) as bench:
        order_id = await placed(bench)
        await bench.tell(StockReserved(order_id=order_id))
        await bench.tell(OrderCancelled(order_id=order_id))
        await bench.refuse(Refund)
        assert bench.saga(order_id).error == "undo 2 (command.refund) failed: permanent"
        await bench.skip(days=3)
        assert not bench.sent(ReleaseStock)
        await bench.order(order_id, "retry")
        await bench.answer(Refund, lambda command: Refunded(order_id=command.order_id))
        await bench.answer(ReleaseStock, lambda command: StockReleased(order_id=command.order_id))
        assert bench.saga(order_id).status == "undone"


async def test_a_failed_command_fails_its_saga() -> None:
    """A command that becomes a dead letter is told to the saga, which fails unless it has a handler for that."""
    async with SagaBench(PLACE_ORDER) as bench:
        order_id = await placed(bench)
        await bench.refuse(ReserveStock)
        row = bench.saga(order_id)
        assert (row.status, row.reason) == ("undoing", "failed command: command.reserve_stock (permanent)")


async def test_a_person_retries_and_cancels() -> None:
    """`retry` sends the commands of the wait again under new ids; `cancel` undoes."""
    async with SagaBench(PLACE_ORDER) as bench:
        order_id = await placed(bench)
        await bench.order(order_id, "retry", by="ann")
        first, second = bench.sent(ReserveStock)
        assert first == second
        assert first.event_id != second.event_id
        await bench.order(order_id, "cancel", by="ann", note="double order")
        assert bench.saga(order_id).reason == "cancelled by ann: double order"


async def test_answer_names_what_was_sent_if_nothing_waits() -> None:
    """An answer to a command that was never sent fails with the list of those that were."""
    async with SagaBench(PLACE_ORDER) as bench:
        await placed(bench)
        with pytest.raises(AssertionError, match=r"no Charge waits for an answer.*ReserveStock"):
            await bench.answer(Charge, lambda command: Charged(order_id=command.order_id))


async def test_the_row_knows_its_timer_and_deadline() -> None:
    """`wake_at` is the end of the wait, and never after the deadline of the whole."""
    async with SagaBench(PLACE_ORDER) as bench:
        order_id = await placed(bench)
        row = bench.saga(order_id)
        assert row.wake_at == bench.now + timedelta(minutes=15)
        assert row.deadline_at == bench.now + timedelta(days=7)


async def test_a_move_is_told_in_the_span_of_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the saga, its key and its states, and a link to the trace in which the saga began."""
    with recording(monkeypatch) as exporter:
        async with SagaBench(PLACE_ORDER) as bench:
            with root_span("start", kind="consumer"):
                order_id = await placed(bench)
            with root_span("reply", kind="consumer"):
                await bench.answer(ReserveStock, lambda command: StockReserved(order_id=command.order_id))
    first, second = [span for span in exporter.get_finished_spans() if span.name in {"start", "reply"}]
    assert attributes_of(second) == {
        "hybridkit.saga.name": PLACE_ORDER.name,
        "hybridkit.saga.key": str(order_id),
        "hybridkit.saga.from": "stock",
        "hybridkit.saga.to": "payment",
    }
    assert first.context is not None
    assert [link.context.trace_id for link in second.links] == [first.context.trace_id]
