"""`hybridkit sagas` on the fake data service, with the real engine behind it that carries out the orders."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Iterator
from decimal import Decimal
from types import ModuleType
from uuid import UUID

import pytest
from typer.testing import CliRunner, Result

from hybridkit._cli._app import app
from hybridkit.ids import new_id
from hybridkit.sagas import SAGAS, NewSaga
from hybridkit.sagas._messages import order_class
from hybridkit.testing import SagaBench, until
from tests.helpers.order_saga import (
    Charge,
    OrderPlaced,
    Refund,
    ReserveStock,
    StockReserved,
    order_saga,
)

NAME = "saga_test.cli"
PLACE_ORDER = order_saga(NAME)


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """A module with the saga."""
    module = ModuleType("sagas_of_the_test")
    module.saga = PLACE_ORDER  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


class Shell:
    """The command beside a bench, with one saga that waits for its payment, and its key."""

    def __init__(self, bench: SagaBench, url: str, key: UUID) -> None:
        self.bench = bench
        self.key = str(key)
        self._environment = {"POSTGRES_SERVICE_URL": url, "SERVICE_NAME": "operations"}

    async def run(self, *arguments: str) -> Result:
        """Run it in a thread, as it has an event loop of its own."""
        words = ["sagas", *arguments]
        return await asyncio.to_thread(CliRunner().invoke, app, words, env=self._environment)

    async def order(self, *arguments: str) -> Result:
        """Run it while the saga's worker takes what comes."""
        before = len(self.bench.data.emitted)
        running = asyncio.create_task(self.run(*arguments))
        await until(lambda: running.done() or len(self.bench.data.emitted) > before, "the order")
        await self.take()
        return await running

    async def take(self) -> None:
        """Have the saga's worker take the last message, if it is an order."""
        last = self.bench.data.emitted[-1]
        if last.event_type == f"saga.{NAME}.order":
            order = order_class(NAME).model_validate(last.data)
            order.identify_as(last.event_id, last.timestamp)
            await self.bench.tell(order)

    async def write(self, **changes: object) -> None:
        """Write to the row what other code would."""
        row = self.bench.saga(UUID(self.key))
        new = NewSaga.model_validate(row.model_dump(include={*NewSaga.model_fields}) | changes)
        async with self.bench.client.transaction() as tx:
            tx.replace(SAGAS, row, new)


@pytest.fixture
async def shell() -> AsyncGenerator[Shell]:
    async with SagaBench(PLACE_ORDER) as bench, bench.data.serve() as url:
        key = new_id()
        await bench.tell(OrderPlaced(order_id=key, total=Decimal(5000)))
        await bench.answer(ReserveStock, lambda command: StockReserved(order_id=command.order_id))
        yield Shell(bench, url, key)


async def test_a_list_shows_what_waits_and_for_how_long(shell: Shell) -> None:
    """Live ones by default, and those that fit all filters."""
    result = await shell.run("list")
    assert (result.exit_code, result.stderr) == (0, "")
    header, line = result.stdout.splitlines()
    assert header.split() == ["SAGA", "KEY", "STATUS", "STATE", "SINCE", "DUE", "ERROR"]
    assert line.split()[:4] == [NAME, shell.key, "running", "payment"]
    for filters, count in (
        (["--saga", NAME, "--state", "payment", "--older-than", "0s"], 1),
        (["--state", "stock"], 0),
        (["--status", "done"], 0),
        (["--status", "running"], 1),
        (["--error"], 0),
        (["--overdue"], 0),
        (["--older-than", "1h"], 0),
        (["--limit", "1"], 1),
    ):
        found = json.loads((await shell.run("list", "--json", *filters)).stdout)
        assert len(found) == count, filters
    assert (await shell.run("list", "--saga", "no.such")).stdout == "there are none\n"
    assert (await shell.run("list", "--older-than", "yesterday")).exit_code == 2


async def test_one_that_needs_a_person_is_seen(shell: Shell) -> None:
    """By its error, and by the exit code."""
    await shell.order("cancel", NAME, shell.key, "--reason", "test", "--yes")
    await shell.bench.refuse(Refund)
    result = await shell.run("list", "--error")
    assert result.exit_code == 1
    assert "undo 2 (command.refund) failed" in result.stdout


async def test_a_saga_is_shown_with_its_moves(shell: Shell) -> None:
    """Each with its request id, so that the log can be asked."""
    result = await shell.run("show", NAME, shell.key)
    assert result.exit_code == 0
    assert (
        "undo 1: command.release_stock, open, sent 0 times, undone by saga_test.stock.released"
        in result.stdout
    )
    row = shell.bench.saga(UUID(shell.key))
    for entry in row.history:
        assert f"by {entry.event_type} of {entry.service}, request {entry.request_id}" in result.stdout
    shown = json.loads((await shell.run("show", NAME, shell.key, "--json")).stdout)
    assert (shown["state"], len(shown["undo"]), shown["id"]) == ("payment", 2, str(row.id))


async def test_what_is_not_there_is_an_error(shell: Shell) -> None:
    """The message has the name and the key."""
    result = await shell.run("show", NAME, "nobody")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"there is no saga {NAME} with the key nobody" in result.stderr
    for arguments in (["retry", NAME, "nobody", "--yes"], ["skip", NAME, "nobody", "--note", "x", "--yes"]):
        assert (await shell.run(*arguments)).exit_code == 1


async def test_an_order_is_carried_out_by_the_worker(shell: Shell) -> None:
    """Cancel fails the saga and undoes; the history says who and why."""
    result = await shell.order("cancel", NAME, shell.key, "--reason", "a hoax", "--by", "ann", "--yes")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].startswith("done: it is undoing")
    row = shell.bench.saga(UUID(shell.key))
    assert row.reason == "cancelled by ann: a hoax"
    assert row.history[-1].note == "cancel by ann: a hoax"
    assert len(shell.bench.sent(Refund)) == 1


async def test_a_retry_sends_the_commands_again(shell: Shell) -> None:
    """Under new ids, and the document says what has become of the saga."""
    [first] = shell.bench.sent(Charge)
    result = await shell.order("retry", NAME, shell.key, "--yes", "--json")
    document = json.loads(result.stdout)
    assert (document["order"], document["done"], document["saga"]["state"]) == ("retry", True, "payment")
    again = shell.bench.sent(Charge)[-1]
    assert again == first
    assert again.event_id != first.event_id


async def test_an_undo_that_can_not_be_done_is_skipped(shell: Shell) -> None:
    """The others follow, and the saga ends as given up."""
    await shell.order("cancel", NAME, shell.key, "--reason", "test", "--yes")
    await shell.bench.refuse(Refund)
    result = await shell.order("skip", NAME, shell.key, "--note", "paid back by hand", "--yes")
    assert result.exit_code == 0, result.stderr
    row = shell.bench.saga(UUID(shell.key))
    assert ([undo.state for undo in row.undo], row.error) == (["sent", "skipped"], None)


async def test_an_order_that_means_nothing_is_not_sent(shell: Shell) -> None:
    """Nor one without a reason, one that nobody confirms, or a dry run."""
    before = len(shell.bench.data.emitted)
    nothing = await shell.run("skip", NAME, shell.key, "--note", "why not", "--yes")
    assert nothing.exit_code == 1
    assert "skip does nothing for a saga that is running" in nothing.stderr
    for arguments in (
        ["skip", NAME, shell.key, "--note", " ", "--yes"],
        ["cancel", NAME, shell.key, "--reason", "x"],
        ["cancel", NAME, shell.key, "--reason", "x", "--json"],
    ):
        assert (await shell.run(*arguments)).exit_code == 2
    dry = await shell.run("cancel", NAME, shell.key, "--reason", "x", "--dry-run")
    assert dry.stdout == f"cancel {NAME} {shell.key}: it is running in payment\nnothing was sent\n"
    assert len(shell.bench.data.emitted) == before


async def test_an_order_whose_worker_is_away_waits_for_it(shell: Shell) -> None:
    """The command says so, and the saga moves when the worker is back."""
    result = await shell.run("cancel", NAME, shell.key, "--reason", "x", "--yes", "--wait", "0")
    assert result.exit_code == 0
    assert "its worker has not taken it yet" in result.stdout
    await shell.take()
    assert shell.bench.saga(UUID(shell.key)).status == "undoing"


async def test_code_is_checked_against_what_is_live(shell: Shell, module: ModuleType) -> None:
    """A state that was removed, and rows of newer code, are named with their number; nothing else is."""
    fine = await shell.run("check", "--app", module.__name__)
    assert (fine.exit_code, fine.stdout) == (0, f"this code can serve all live sagas of {NAME}\n")
    await shell.write(state="lottery")
    result = await shell.run("check", "--app", module.__name__)
    assert result.exit_code == 1
    count, name, version, state, problem = result.stdout.splitlines()[1].split(maxsplit=4)
    assert (count, name, version, state) == ("1", NAME, "1", "lottery")
    assert problem == "Waiting has no such state; keep it until nobody is in it"
    await shell.write(state="stock", definition=2)
    [found] = json.loads((await shell.run("check", "--app", module.__name__, "--json")).stdout)
    assert found["reason"] == "newer code has written them; this is version 1"
