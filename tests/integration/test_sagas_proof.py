"""The short form of the proof of sagas (`tests/proofs/sagas.py`, `make sagas`), and its verdict."""

from collections import Counter
from uuid import UUID

import pytest

from hybridkit.codec import now
from hybridkit.dev import Server
from hybridkit.ids import new_id
from hybridkit.sagas import SagaRecord, SagaStatus
from tests.proofs._saga_app import NAME, Kind
from tests.proofs.sagas import Verdict, prove

STEPS = (20,)
"""In the midst of the messages, which have 45 steps at least; the long form takes every step."""


@pytest.mark.real_server
async def test_an_order_comes_to_its_end_whatever_dies(
    postgres_url: str, own_redis_server: Server, rabbitmq_url: str
) -> None:
    """The worker is killed at chosen steps, timers are lost, and a process is killed or frozen at a random moment."""
    urls = {"postgres": postgres_url, "redis": own_redis_server.url, "rabbitmq": rabbitmq_url}
    servers = {"redis": own_redis_server}
    verdict = await prove(urls, servers, faults=1, seed=4, steps=STEPS, kinds=[Kind.REFUSED])
    assert verdict.wrong == []
    assert verdict.killed_at == list(STEPS)
    assert len(verdict.placed) == len(STEPS) + 5 + 3


ORDER = UUID(int=1)


def row(status: SagaStatus, *, error: str | None = None) -> SagaRecord:
    return SagaRecord(
        id=new_id(),
        version=1,
        created_at=now(),
        updated_at=now(),
        etag='"1-1"',
        saga=NAME,
        key=str(ORDER),
        status=status,
        error=error,
    )


def verdict(kind: Kind, status: SagaStatus, *moves: str, ends: int = 1, error: str | None = None) -> Verdict:
    return Verdict(
        placed={ORDER: kind},
        rows={ORDER: row(status, error=error)},
        movements={ORDER: Counter(moves)},
        finished={ORDER: {new_id() for _ in range(ends)}},
    )


def test_books_that_balance_hold() -> None:
    """Shipped, or released and refunded; a cancelled order may be either."""
    for kind in (Kind.SHIPPED, Kind.CANCELLED):
        assert verdict(kind, SagaStatus.DONE, "reserve", "charge", "ship").holds
    for kind in (Kind.REFUSED, Kind.SILENT, Kind.CANCELLED):
        assert verdict(kind, SagaStatus.UNDONE, "reserve", "charge", "refund", "release").holds
    found = verdict(Kind.CANCELLED, SagaStatus.UNDONE, "reserve", "release")
    assert found.holds
    assert ("commands: release", 1) in found.lines()


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (Verdict(placed={ORDER: Kind.SHIPPED}, rows={}, movements={}, finished={}), "was never begun"),
        (verdict(Kind.SHIPPED, SagaStatus.RUNNING, "reserve", "release"), "is running"),
        (verdict(Kind.SHIPPED, SagaStatus.UNDONE, "reserve", "release"), "is undone"),
        (verdict(Kind.SILENT, SagaStatus.UNDONE, error="a person is needed"), "a person is needed"),
        (verdict(Kind.SILENT, SagaStatus.UNDONE, ends=0), "told its end 0 times"),
        (verdict(Kind.SILENT, SagaStatus.UNDONE, ends=2), "told its end 2 times"),
        (verdict(Kind.SHIPPED, SagaStatus.DONE, "reserve", "charge", "ship", "ship"), "ship came 2 times"),
        (verdict(Kind.SHIPPED, SagaStatus.DONE, "reserve", "ship"), "charged is not"),
        (verdict(Kind.REFUSED, SagaStatus.UNDONE, "reserve"), "reserved is not"),
    ],
)
def test_what_is_lost_doubled_or_stranded_is_named(found: Verdict, wrong: str) -> None:
    """With the order that it happened to."""
    assert not found.holds
    assert any(wrong in line and str(ORDER) in line for line in found.wrong)
