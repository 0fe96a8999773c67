"""Equal calls in one process: one works, the others get what comes of it."""

import asyncio

import pytest

from hybridkit.dataservice._store import _in_flight
from hybridkit.dataservice._store._in_flight import InFlight
from hybridkit.dataservice._store._operations import Outcome, Result, Write
from hybridkit.errors import ConflictError, InProgressError, KeyReusedError
from tests.helpers import until

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


async def test_one_of_many_works() -> None:
    """Nineteen of twenty equal calls get the outcome of the first, marked as a replay."""
    flights, work = InFlight(), Work()
    calls = [asyncio.create_task(flights.run(call(), work)) for _ in range(20)]
    await until(lambda: work.runs)
    assert "InFlight(1)" in repr(flights)
    work.gate.set()
    outcomes = await asyncio.gather(*calls)
    assert work.runs == 1
    assert [outcome.replayed for outcome in outcomes] == [False, *[True] * 19]
    assert "InFlight(0)" in repr(flights)


async def test_other_keys_and_callers_are_other_calls() -> None:
    """Neither a key of another caller nor another key of the same one waits."""
    flights, work = InFlight(), Work()
    work.gate.set()
    await asyncio.gather(
        *(flights.run(call(key, caller=caller), work) for key in "ab" for caller in ("x", "y"))
    )
    assert work.runs == 4


async def test_if_it_fails_the_next_one_tries() -> None:
    """Only its own caller gets the error; of those who waited one works and the last has its outcome."""
    flights, work = InFlight(), Work()
    work.error = ConflictError("lost")
    calls = [asyncio.create_task(flights.run(call(), work)) for _ in range(3)]
    await until(lambda: work.runs)
    work.gate.set()
    first, second, third = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(first, ConflictError)
    assert isinstance(second, Outcome)
    assert isinstance(third, Outcome)
    assert (work.runs, second.replayed, third.replayed) == (2, False, True)


async def test_if_its_caller_leaves_the_next_one_tries() -> None:
    """A cancelled call leaves nothing behind that the others would wait for."""
    flights, work = InFlight(), Work()
    leaving = asyncio.create_task(flights.run(call(), work))
    await until(lambda: work.runs)
    staying = asyncio.create_task(flights.run(call(), work))
    await asyncio.sleep(0)
    leaving.cancel()
    work.gate.set()
    assert not (await staying).replayed


async def test_another_request_under_the_key_is_refused() -> None:
    """Whoever waited for the key's first call is told so when that ends, without a run of its own."""
    flights, work = InFlight(), Work()
    first = asyncio.create_task(flights.run(call(), work))
    await until(lambda: work.runs)
    other = asyncio.create_task(flights.run(call(fingerprint=b"g"), work))
    await asyncio.sleep(0)
    work.gate.set()
    with pytest.raises(KeyReusedError):
        await other
    assert (await first, work.runs) == (DONE, 1)


async def test_nobody_waits_longer_than_half_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that waits is refused as in progress, and the one at work goes on."""
    monkeypatch.setattr(_in_flight, "PATIENCE_SECONDS", 0.02)
    flights, work = InFlight(), Work()
    slow = asyncio.create_task(flights.run(call(), work))
    await until(lambda: work.runs)
    with pytest.raises(InProgressError):
        await flights.run(call(), work)
    work.gate.set()
    assert await slow == DONE
