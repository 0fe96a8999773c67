"""The rules of a claim's steps on the data service in memory, by both clients."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from hybridkit.clients import ClientPolicy, MongoDataClient, PostgresDataClient
from hybridkit.context import Claim, bind, current
from hybridkit.errors import (
    ConflictError,
    HybridkitError,
    InProgressError,
    NotFoundError,
    OutcomeUnknownError,
    OverloadedError,
    RequirementNotMetError,
    ResponseError,
    SharedStepError,
    StaleVersionError,
    UniqueViolationError,
)
from hybridkit.testing import FakeDataService
from tests.helpers.step_rules import FIRST, ITEMS, WRITES, Bench, ItemCounted, NewItem, StepRules, claimed


@pytest.fixture
def service() -> FakeDataService:
    return FakeDataService([ITEMS], unique={ITEMS: ["name"]})


@pytest.fixture(params=[PostgresDataClient, MongoDataClient])
async def bench(service: FakeDataService, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    policy = ClientPolicy.bulk()
    policy = replace(policy, retry=replace(policy.retry, first_seconds=0.0, cap_seconds=0.0))
    async with request.param(
        "http://data", service="api", transport=service.transport, policy=policy
    ) as client:
        yield Bench(client, ITEMS, emits=True)


class TestStepRules(StepRules):
    """The rules."""


# ── tries ────────────────────────────────────────────────────────────────────────────────────────


def keys_of(service: FakeDataService) -> list[str]:
    """The keys under which something is recorded, in the order of their commits."""
    return [key for _, key in service._store._done]


REFUSALS: list[HybridkitError] = [
    StaleVersionError("it changed"),
    RequirementNotMetError("nothing is left"),
    NotFoundError("there is none"),
    UniqueViolationError("there is one"),
    ConflictError("another transaction won"),
    OverloadedError("all connections are taken"),
    InProgressError("another call has the key"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["create", "upsert", "upsert_many", "modify", "transaction"])
async def test_a_try_after_any_refusal_has_the_key_of_the_first(
    bench: Bench, service: FakeDataService, refusal: HybridkitError, method: str
) -> None:
    """Nothing was recorded, so the step still waits for its commit; a run that is not refused finds it."""
    await bench.client.create(ITEMS, NewItem(name="0"), id=FIRST)
    write = WRITES[method]
    committed = len(keys_of(service))
    async with claimed():
        for _ in range(2):
            service.faults.refuse(refusal, matching="P* /v1*", times=20)
            with pytest.raises(HybridkitError):
                await write(bench, None)
            service.faults.clear()
        await write(bench, None)
    async with claimed():
        await write(bench, None)
    assert len(keys_of(service)) == committed + 1


@pytest.mark.parametrize("method", ["create", "upsert", "upsert_many", "transaction"])
async def test_the_same_call_after_a_lost_answer_is_the_same_step(
    bench: Bench, service: FakeDataService, method: str
) -> None:
    """Nobody knows whether it was done; repeating it is safe, as the second call gets the first one's outcome."""
    committed = len(keys_of(service))
    async with claimed():
        service.faults.lose_reply(matching="P* /v1*")
        with pytest.raises(OutcomeUnknownError):
            await WRITES[method](bench, None)
        service.faults.clear()
        await WRITES[method](bench, None)
    assert len(keys_of(service)) == committed + 1


async def test_another_call_after_a_lost_answer_is_the_next_step(
    bench: Bench, service: FakeDataService
) -> None:
    """A handler that goes on with another value of the same record has it written."""
    await bench.client.create(ITEMS, NewItem(name="a"), id=FIRST)
    for _ in range(2):
        async with claimed():
            service.faults.lose_reply(matching="PATCH *")
            with pytest.raises(OutcomeUnknownError):
                await bench.client.update(ITEMS, FIRST, ITEMS.update(quantity=1))
            service.faults.clear()
            assert (await bench.client.update(ITEMS, FIRST, ITEMS.update(quantity=2))).quantity == 2
    assert await bench.quantities() == {"a": 2}


async def test_an_answer_outside_the_contract_leaves_the_outcome_open(
    bench: Bench, service: FakeDataService
) -> None:
    """The same call again finds what the first one did."""
    async with claimed():
        service.faults.garble("html", matching="POST *", times=1)
        with pytest.raises(ResponseError):
            await bench.client.create(ITEMS, NewItem(name="a"))
        made = await bench.client.create(ITEMS, NewItem(name="a"))
    assert await bench.client.get(ITEMS, made.id) == made


async def test_a_cancelled_call_ends_its_step(bench: Bench, service: FakeDataService) -> None:
    """Another task may write the same afterwards; the same content is a further try."""
    async with claimed():
        service.faults.delay(30, matching="POST *", times=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await bench.client.create(ITEMS, NewItem(name="a"))
        made = await asyncio.create_task(bench.client.create(ITEMS, NewItem(name="a")))
    async with claimed():
        assert await bench.client.create(ITEMS, NewItem(name="a")) == made


async def test_an_alternative_transaction_is_a_step_of_its_own(bench: Bench) -> None:
    """What is written where the first one was refused is found by a rerun, in which that one is refused again."""
    await bench.client.create(ITEMS, NewItem(name="a", quantity=1), id=FIRST)
    taken: list[str] = []

    async def work() -> None:
        async with claimed():
            try:
                async with bench.client.transaction() as tx:
                    tx.update(ITEMS, FIRST, increment={"quantity": -2}, require=ITEMS["version"] == 7)
                    tx.emit(ItemCounted(item_id=FIRST))
            except RequirementNotMetError:
                async with bench.client.transaction() as tx:
                    tx.update(ITEMS, FIRST, increment={"quantity": 10})
                taken.append("alternative")

    await work()
    await work()
    assert (taken, await bench.quantities()) == (["alternative"] * 2, {"a": 11})


async def test_a_transaction_refused_and_collected_anew_makes_the_same_ids_and_events(
    bench: Bench, service: FakeDataService
) -> None:
    """Records and events of the second try are those that a rerun makes."""

    async def work(refused: int) -> tuple[object, object]:
        service.faults.refuse(ConflictError("another won"), matching="POST /v1:transact", times=refused)
        async with claimed():
            while True:
                try:
                    async with bench.client.transaction() as tx:
                        item = tx.create(ITEMS, NewItem(name="a"))
                        tx.emit(counted := ItemCounted(item_id=item.id))
                except HybridkitError:
                    service.faults.clear()
                    continue
                return item.result.id, counted.event_id

    first = await work(refused=10)
    assert await work(refused=0) == first
    assert len(service.emitted) == 1


async def test_work_that_begins_again_with_a_fresh_claim_makes_what_it_made_first(bench: Bench) -> None:
    """Its committed writes are found again instead of being the next ones of their names."""
    claim = Claim("tests:fresh:1")
    made: list[object] = []
    for _ in range(2):
        with bind(replace(current(), claim=claim.fresh())):
            made.append((await bench.client.create(ITEMS, NewItem(name="one"))).id)
            made.append(ItemCounted(item_id=FIRST).event_id)
    assert made[:2] == made[2:]


async def test_transactions_within_each_other_are_in_order(bench: Bench) -> None:
    """One task opens both, so every run opens them in that order."""

    async def work() -> list[object]:
        async with claimed(), bench.client.transaction() as outer:
            first = outer.create(ITEMS, NewItem(name="a"))
            async with bench.client.transaction() as inner:
                second = inner.create(ITEMS, NewItem(name="b"))
        return [first.result.id, second.result.id]

    assert await work() == await work()
    assert await bench.quantities() == {"a": 0, "b": 0}


async def test_a_task_started_before_may_not_number_writes_beside_its_siblings(bench: Bench) -> None:
    """Two tasks whose creates don't overlap are still in no order, while the first one goes on."""
    first_is_done, end = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        await bench.client.create(ITEMS, NewItem(name="a"))
        first_is_done.set()
        await end.wait()

    async def second() -> None:
        await first_is_done.wait()
        try:
            await bench.client.create(ITEMS, NewItem(name="b"))
        finally:
            end.set()

    async with claimed():
        results = await asyncio.gather(first(), second(), return_exceptions=True)
    assert isinstance(results[1], SharedStepError)


async def test_a_task_goes_on_numbering_after_its_starter(bench: Bench) -> None:
    """A create before the start of a task, one in it, and one after its end are in order in every run."""

    async def child() -> object:
        return (await bench.client.create(ITEMS, NewItem(name="b"))).id

    async def work() -> list[object]:
        async with claimed():
            first = await bench.client.create(ITEMS, NewItem(name="a"))
            async with asyncio.TaskGroup() as group:
                second = group.create_task(child())
            third = await bench.client.create(ITEMS, NewItem(name="c"))
        return [first.id, second.result(), third.id]

    assert await work() == await work()
    assert await bench.quantities() == {"a": 0, "b": 0, "c": 0}


async def test_a_dry_run_is_no_step(bench: Bench) -> None:
    """Nothing of it is kept, so two at once are fine."""

    async def tried(name: str) -> None:
        async with bench.client.transaction(dry_run=True) as tx:
            tx.create(ITEMS, NewItem(name=name))

    async with claimed():
        await asyncio.gather(tried("a"), tried("b"))
    assert await bench.quantities() == {}
