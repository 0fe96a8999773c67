"""The rules of a claim's steps as tests, which each data service runs: every write has one effect, however often."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.clients import MongoDataClient, PostgresDataClient
from hybridkit.context import Claim, RequestContext, bind
from hybridkit.errors import (
    SharedStepError,
    StaleVersionError,
    StepReusedError,
    UniqueViolationError,
)
from hybridkit.events import Event
from hybridkit.observability import metrics
from hybridkit.resources import Record, Resource

type Client = PostgresDataClient | MongoDataClient

FIRST, SECOND, THIRD = (UUID(int=number) for number in (1, 2, 3))


class NewItem(BaseModel):
    name: str
    quantity: int = 0


class Item(NewItem, Record):
    pass


class ItemChanges(BaseModel):
    name: str | None = None
    quantity: int | None = None


ITEMS = Resource(
    "items", record=Item, create=NewItem, update=ItemChanges, filterable=("version",), soft_delete=True
)


class ItemCounted(Event, type="step_rules.counted", key="item_id"):
    item_id: UUID


@dataclass(frozen=True, slots=True)
class Bench:
    """A data service at hand.

    Attributes:
        client: of the service.
        items: records with a unique `name` and a `quantity`.
        emits: whether the service takes events.
        has_transactions: whether it writes several records at once.
    """

    client: Client
    items: Resource[Any, Any, Any]
    emits: bool = False
    has_transactions: bool = True

    async def quantities(self) -> dict[str, int]:
        found = [item async for item in self.client.find(self.items)]
        return {item.name: item.quantity for item in found}

    async def add(self, record_id: UUID, amount: int = 1) -> None:
        """Add to a quantity by a transaction that reads first, as a handler does that was told of a stale version."""
        item = await self.client.get(self.items, record_id)
        async with self.client.transaction() as tx:
            tx.update(self.items, item, increment={"quantity": amount})


@asynccontextmanager
async def claimed() -> AsyncGenerator[Claim]:
    """One run of a piece of work, under the same key each time."""
    claim = Claim("rules:work:1")
    with bind(RequestContext(claim=claim)):
        yield claim


def diverged() -> float:
    return float(metrics.idempotency_outcomes.labels("data_service", "diverged")._value.get())


async def _transact(bench: Bench, step: str | None) -> None:
    async with bench.client.transaction(step=step) as tx:
        tx.upsert(bench.items, FIRST, bench.items.create(name="a"))


async def _transact_new(bench: Bench, step: str | None) -> None:
    async with bench.client.transaction(step=step) as tx:
        tx.create(bench.items, bench.items.create(name=step or "a"))
        await asyncio.sleep(0)  # as any other read or write in the block


type Method = Callable[[Bench, str | None], Awaitable[object]]

WRITES: dict[str, Method] = {
    "create": lambda b, step: b.client.create(b.items, b.items.create(name=step or "a"), step=step),
    "create by id": lambda b, step: b.client.create(b.items, b.items.create(name="a"), id=SECOND, step=step),
    "replace": lambda b, step: b.client.replace(b.items, FIRST, b.items.create(name="a"), step=step),
    "update": lambda b, step: b.client.update(b.items, FIRST, b.items.update(quantity=2), step=step),
    "modify": lambda b, step: b.client.modify(
        b.items, FIRST, lambda _: b.items.update(quantity=3), step=step
    ),
    "upsert": lambda b, step: b.client.upsert(b.items, FIRST, b.items.create(name="a"), step=step),
    "delete": lambda b, step: b.client.delete(b.items, FIRST, step=step),
    "undelete": lambda b, step: b.client.undelete(b.items, FIRST, step=step),
    "create_many": lambda b, step: b.client.create_many(
        b.items, [b.items.create(name=step or "a")], step=step
    ),
    "update_many": lambda b, step: b.client.update_many(
        b.items, [(FIRST, b.items.update(quantity=4))], step=step
    ),
    "upsert_many": lambda b, step: b.client.upsert_many(
        b.items, [(FIRST, b.items.create(name="a"))], step=step
    ),
    "delete_many": lambda b, step: b.client.delete_many(b.items, [FIRST], step=step),
    "transaction": _transact,
    "transaction of new records": _transact_new,
}


@pytest.mark.asyncio
class StepRules:
    """The rules; a subclass in a test module is collected, with a fixture `bench`."""

    @pytest.mark.parametrize("method", WRITES)
    async def test_two_tasks_with_one_step_are_refused(self, bench: Bench, method: str) -> None:
        """The later of two equal writes at a time says which argument tells them apart; the other goes on."""
        async with claimed():
            writes = (WRITES[method](bench, None) for _ in range(2))
            results = await asyncio.gather(*writes, return_exceptions=True)
        [shared] = [result for result in results if isinstance(result, SharedStepError)]
        name = method.partition(" ")[0]
        assert (shared.method, f"{name}(..., step=...)" in str(shared)) == (name, True)

    @pytest.mark.parametrize("method", WRITES)
    async def test_named_steps_may_run_at_once(self, bench: Bench, method: str) -> None:
        """Two tasks with a name each are no error, whatever the data service makes of them."""
        async with claimed():
            writes = (WRITES[method](bench, step) for step in ("a", "b"))
            results = await asyncio.gather(*writes, return_exceptions=True)
        assert not [result for result in results if isinstance(result, SharedStepError)]

    async def test_equal_writes_in_sequence_are_numbered(self, bench: Bench) -> None:
        """Each has its own effect, and a rerun finds both; two tasks after one another are a sequence too."""

        async def work() -> list[UUID]:
            async with claimed():
                made = [await bench.client.create(bench.items, bench.items.create(name=n)) for n in "ab"]
                third = asyncio.create_task(bench.client.create(bench.items, bench.items.create(name="c")))
                return [item.id for item in [*made, await third]]

        first = await work()
        assert await work() == first
        assert await bench.quantities() == {"a": 0, "b": 0, "c": 0}

    async def test_reads_at_once_are_no_steps(self, bench: Bench) -> None:
        """However many tasks read the same, nothing is refused."""
        await bench.client.create(bench.items, bench.items.create(name="a"), id=FIRST)
        async with claimed():
            found = await asyncio.gather(*(bench.client.get(bench.items, FIRST) for _ in range(10)))
            pages = await asyncio.gather(*(bench.client.find(bench.items).page() for _ in range(3)))
        assert {item.name for item in found} == {page.items[0].name for page in pages} == {"a"}

    async def test_writes_of_different_records_run_at_once(self, bench: Bench) -> None:
        """Each target is a step of its own, in single writes and in transactions."""
        for number, record_id in enumerate((FIRST, SECOND, THIRD)):
            await bench.client.create(bench.items, bench.items.create(name=str(number)), id=record_id)
        async with claimed():
            await asyncio.gather(*(bench.add(record_id) for record_id in (FIRST, SECOND, THIRD)))
            changes = bench.items.update(quantity=7)
            await asyncio.gather(
                bench.client.update(bench.items, FIRST, changes),
                bench.client.update(bench.items, SECOND, changes),
            )
        assert await bench.quantities() == {"0": 7, "1": 7, "2": 1}

    async def test_a_transaction_tried_again_after_a_412_commits_under_one_key(self, bench: Bench) -> None:
        """The handler reads again and commits; a rerun of all of it finds that commit, and adds nothing."""
        await bench.client.create(bench.items, bench.items.create(name="a"), id=FIRST)
        read = await bench.client.get(bench.items, FIRST)
        await bench.client.update(bench.items, FIRST, bench.items.update(quantity=10))

        async def work(item: Any) -> int:
            tries = 0
            async with claimed():
                while True:
                    tries += 1
                    try:
                        async with bench.client.transaction() as tx:
                            tx.update(bench.items, item, increment={"quantity": 1})
                    except StaleVersionError:
                        item = await bench.client.get(bench.items, FIRST)
                        continue
                    return tries

        assert await work(read) == 2
        assert (await work(await bench.client.get(bench.items, FIRST)), await bench.quantities()) == (
            1,
            {"a": 11},
        )

    async def test_a_second_equal_transaction_is_done_too(self, bench: Bench) -> None:
        """Only a commit makes the next one another step; each is done once, over two runs."""
        await bench.client.create(bench.items, bench.items.create(name="a"), id=FIRST)
        for _ in range(2):
            async with claimed():
                await bench.add(FIRST)
                await bench.add(FIRST)
        assert await bench.quantities() == {"a": 2}

    async def test_modify_after_modify_is_a_second_step(self, bench: Bench) -> None:
        """Each is applied once over two runs, although the second run reads what the first one wrote."""
        await bench.client.create(bench.items, bench.items.create(name="a"), id=FIRST)
        for _ in range(2):
            async with claimed():
                for _ in range(2):
                    await bench.client.modify(
                        bench.items, FIRST, lambda item: bench.items.update(quantity=item.quantity + 1)
                    )
        assert await bench.quantities() == {"a": 2}

    async def test_a_loop_of_transactions_in_another_order_does_each_once(self, bench: Bench) -> None:
        """A run that died after the first item goes on with the others, whatever their order is now."""
        for number, record_id in enumerate((FIRST, SECOND, THIRD)):
            await bench.client.create(bench.items, bench.items.create(name=str(number)), id=record_id)
        for order in ([SECOND], [THIRD, SECOND, FIRST]):
            async with claimed():
                for record_id in order:
                    await bench.add(record_id)
        assert await bench.quantities() == {"0": 1, "1": 1, "2": 1}

    async def test_another_create_under_one_number_is_refused(self, bench: Bench) -> None:
        """It may be another item of a reordered loop: nothing is written, and the error asks for a step."""
        async with claimed():
            await bench.client.create(bench.items, bench.items.create(name="a"))
        async with claimed():
            with pytest.raises(StepReusedError, match="step="):
                await bench.client.create(bench.items, bench.items.create(name="b"))
            with pytest.raises(StepReusedError, match="step="):
                await bench.client.create(bench.items, bench.items.create(name="c"))
        assert await bench.quantities() == {"a": 0}

    async def test_another_transaction_of_new_records_under_one_number_is_refused(self, bench: Bench) -> None:
        """As for a single create: it has no target that tells it from another one."""
        for name in ("a", "b"):
            async with claimed():
                if name == "b":
                    with pytest.raises(StepReusedError, match="step="):
                        await _new(bench, name)
                else:
                    await _new(bench, name)
        assert await bench.quantities() == {"a": 0}

    async def test_a_named_create_holds_whatever_its_body_is(self, bench: Bench) -> None:
        """The name says that it is the same one, so the rerun gets the record of the first run."""
        before, made = diverged(), []
        for name in ("a", "b"):
            async with claimed():
                made.append(await bench.client.create(bench.items, bench.items.create(name=name), step="s"))
        assert made[0] == made[1]
        assert (await bench.quantities(), diverged()) == ({"a": 0}, before + 1)

    async def test_a_write_of_a_known_record_holds_whatever_its_body_is(self, bench: Bench) -> None:
        """The rerun reads what its own first step changed, asks for more, and gets the outcome; it is counted."""
        await bench.client.create(bench.items, bench.items.create(name="a"), id=FIRST)
        before = diverged()
        for _ in range(2):
            async with claimed():
                item = await bench.client.get(bench.items, FIRST)
                changed = await bench.client.update(
                    bench.items, item, bench.items.update(quantity=item.quantity + 1)
                )
                assert changed.quantity == 1
        assert (await bench.quantities(), diverged()) == ({"a": 1}, before + 1)

    async def test_a_refused_create_leaves_its_number_to_the_next_try(self, bench: Bench) -> None:
        """A refusal records nothing: the next equal call commits under the same key and makes the same id."""
        await bench.client.create(bench.items, bench.items.create(name="a"), id=FIRST)
        ids: list[UUID] = []
        for _ in range(2):
            async with claimed():
                if not ids:
                    with pytest.raises(UniqueViolationError):
                        await bench.client.create(bench.items, bench.items.create(name="a"))
                ids.append((await bench.client.create(bench.items, bench.items.create(name="b"))).id)
        assert ids[0] == ids[1]
        assert await bench.quantities() == {"a": 0, "b": 0}

    async def test_events_of_a_loop_in_another_order_are_each_published_once(self, bench: Bench) -> None:
        """An event has its id from what its transaction writes, not from its place in the loop."""
        if not bench.emits:
            pytest.skip("this data service has no broker")
        for number, record_id in enumerate((FIRST, SECOND)):
            await bench.client.create(bench.items, bench.items.create(name=str(number)), id=record_id)
        ids: dict[UUID, set[UUID]] = {FIRST: set(), SECOND: set()}
        for order in ([FIRST], [SECOND, FIRST]):
            async with claimed():
                for record_id in order:
                    counted = ItemCounted(item_id=record_id)
                    async with bench.client.transaction() as tx:
                        tx.update(bench.items, record_id, increment={"quantity": 1})
                        tx.emit(counted)
                    ids[record_id].add(counted.event_id)
        assert [len(each) for each in ids.values()] == [1, 1]
        assert len(ids[FIRST] | ids[SECOND]) == 2


async def _new(bench: Bench, name: str) -> None:
    async with bench.client.transaction() as tx:
        tx.create(bench.items, bench.items.create(name=name))
