"""The verdict of the crash-point proof: what it finds missing or doubled (see `tests/proofs/crash_points.py`)."""

from collections import Counter
from uuid import UUID

import pytest

from tests.proofs.crash_points import Verdict

EVENTS = {0: {UUID(int=1)}, 1: {UUID(int=2)}}


def verdict(
    *, orders: Counter[int], receipts: Counter[int], confirmed: dict[int, set[UUID]], sold: int
) -> Verdict:
    return Verdict(
        placed=[0, 1], orders=orders, receipts=receipts, confirmed=confirmed, sold=sold, deliveries=3
    )


def test_each_effect_once_holds() -> None:
    """An event that arrived twice with one id is counted, and no fault."""
    found = verdict(orders=Counter([0, 1]), receipts=Counter([0, 1]), confirmed=EVENTS, sold=2)
    assert found.holds
    assert ("  arrived again", 1) in found.lines()


@pytest.mark.parametrize(
    ("orders", "receipts", "confirmed", "sold", "wrong"),
    [
        ([0], [0, 1], EVENTS, 2, "orders of 1: 0"),
        ([0, 0, 1], [0, 1], EVENTS, 2, "orders of 0: 2"),
        ([0, 1], [1], EVENTS, 2, "receipts of 0: 0"),
        ([0, 1], [0, 1], {0: {UUID(int=1)}}, 2, "events of 1: 0"),
        ([0, 1], [0, 1], EVENTS | {0: {UUID(int=1), UUID(int=3)}}, 2, "events of 0: 2"),
        ([0, 1], [0, 1], EVENTS, 3, "sold 3 of 2"),
    ],
)
def test_what_is_missing_or_doubled_is_named(
    orders: list[int], receipts: list[int], confirmed: dict[int, set[UUID]], sold: int, wrong: str
) -> None:
    """Rows, documents, events and the shared rows are each compared with the messages."""
    found = verdict(orders=Counter(orders), receipts=Counter(receipts), confirmed=confirmed, sold=sold)
    assert found.wrong == [wrong]
