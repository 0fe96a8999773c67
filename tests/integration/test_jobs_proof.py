"""The short form of the proof of jobs (`tests/proofs/jobs.py`, `make jobs`), and its verdict."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tests.proofs._job_replica import NewEffect
from tests.proofs.jobs import judge, prove

AT = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.real_server
async def test_each_slot_has_its_effects_once_whatever_happens_to_the_replicas(redis_url: str) -> None:
    """Two processes, of which one is killed in mid run, over a clock that is set forward and back."""
    verdict = await prove(redis_url, ["kill", "forward", "back"], replicas=2)
    assert verdict.holds, verdict
    assert verdict.rerun >= 1
    assert verdict.slots > 25


def effects(*names: str) -> list[NewEffect]:
    """Effects by names such as `each 0 before`."""
    parts = [name.split() for name in names]
    return [
        NewEffect(job=job, slot=AT.replace(second=int(second)).isoformat(), step=step)
        for job, second, step in parts
    ]


EACH = ["each 0 before", "each 0 after", "each 1 before", "each 1 after"]


def test_effects_that_are_there_once_hold() -> None:
    """And the last slot of a jump makes up for it."""
    jumps = [(AT, AT.replace(second=30))]
    assert judge(effects(*EACH, "last 30 before", "last 30 after"), jumps).holds
    assert not judge(effects(*EACH, "last 20 before", "last 20 after"), jumps).holds


def test_a_run_that_comes_to_its_end_again_needs_a_reason() -> None:
    """Where no replica has died, none may have done the work of another."""
    found = replace(judge(effects(*EACH)), repeated=1)
    assert not found.holds
    for fault in ("kill", "forward"):
        assert replace(found, faults=Counter({fault: 1})).holds
    assert not replace(found, faults=Counter({"back": 1})).holds
    assert not replace(found, faults=Counter({"kill": 1}), repeated=2).holds
    assert "1 ended again" in str(found)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ([*EACH, EACH[0]], "doubled"),
        ([*EACH, "last 5 after", "last 5 after"], "doubled"),
        (EACH[:3], "missing"),
        ([*EACH, "each 3 before", "each 3 after"], "missing"),
    ],
)
def test_what_is_missing_or_doubled_is_named(names: list[str], what: str) -> None:
    """A slot that was left out, an effect without its other half, and one that came twice."""
    verdict = judge(effects(*names))
    assert getattr(verdict, what)
    assert not verdict.holds
