"""Equal calls in one process: one works, the others get what comes of it."""

import asyncio

import pytest

from hybridkit.dataservice._store import _in_flight
from hybridkit.dataservice._store._in_flight import InFlight
from hybridkit.dataservice._store._operations import Outcome, Result, Write
from hybridkit.errors import ConflictError, InProgressError

DONE = Outcome((Result({"id": "1"}, created=True),))


def call(key: str = "k", fingerprint: bytes = b"f", caller: str = "api_service") -> Write:
    return Write(caller=caller, key=key, fingerprint=fingerprint, operations=())


class Work:
    """Counts its runs; each waits for the gate and then ends as told."""

    def __init__(self) -> None:
        self.runs = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> Outcome:
        self.runs += 1
        await self.gate.wait()
        await asyncio.sleep(0)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return DONE


def replay(fingerprint: bytes, outcome: Outcome) -> Outcome:
    assert fingerprint == b"f"
    return Outcome(outcome.results, replayed=True)


async def test_one_of_many_works() -> None:
    flights, work = InFlight(), Work()
    calls = [asyncio.create_task(flights.run(call(), work, replay=replay)) for _ in range(20)]
    await asyncio.sleep(0)
    assert "InFlight(1)" in repr(flights)
    work.gate.set()
    outcomes = await asyncio.gather(*calls)
    assert work.runs == 1
    assert [outcome.replayed for outcome in outcomes] == [False, *[True] * 19]
    assert "InFlight(0)" in repr(flights)


async def test_other_keys_and_callers_are_other_calls() -> None:
    flights, work = InFlight(), Work()
    work.gate.set()
    await asyncio.gather(
        *(flights.run(call(key, caller=caller), work, replay=replay) for key in "ab" for caller in ("x", "y"))
    )
    assert work.runs == 4


async def test_if_it_fails_the_next_one_tries() -> None:
    flights, work = InFlight(), Work()
    work.error = ConflictError("lost")
    calls = [asyncio.create_task(flights.run(call(), work, replay=replay)) for _ in range(3)]
    await asyncio.sleep(0)
    work.gate.set()
    first, second, third = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(first, ConflictError)
    assert isinstance(second, Outcome)
    assert isinstance(third, Outcome)
    assert (work.runs, second.replayed, third.replayed) == (2, False, True)


async def test_if_its_caller_leaves_the_next_one_tries() -> None:
    flights, work = InFlight(), Work()
    leaving = asyncio.create_task(flights.run(call(), work, replay=replay))
    await asyncio.sleep(0)
    staying = asyncio.create_task(flights.run(call(), work, replay=replay))
    await asyncio.sleep(0)
    leaving.cancel()
    work.gate.set()
    assert not (await staying).replayed


async def test_nobody_waits_longer_than_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_in_flight, "PATIENCE_SECONDS", 0.02)
    flights, work = InFlight(), Work()
    slow = asyncio.create_task(flights.run(call(), work, replay=replay))
    await asyncio.sleep(0)
    with pytest.raises(InProgressError):
        await flights.run(call(), work, replay=replay)
    work.gate.set()
    assert await slow == DONE
