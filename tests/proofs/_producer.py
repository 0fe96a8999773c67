"""A publisher of the ledger: `python -m tests.proofs._producer NAME URL FOLDER SEED`.

Publishes events and sends commands until SIGTERM, then until each of them is confirmed. An event whose outcome is
unknown is published again as the same object.
"""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from hybridkit.context import RequestContext, bind
from hybridkit.errors import HybridkitError, OutcomeUnknownError
from hybridkit.messaging import Receipt, RobustPublisher
from tests.proofs._books import Book
from tests.proofs._client import Fate, OrderPlaced, Sampler, ShipOrder, log_warnings, say, stopped_by_signal

TASKS = 50
MEAN_PAUSE_SECONDS = 1.0
BULK = 50
BULK_PAUSE_SECONDS = 3.0
DELAYS_SECONDS = (0.0, 0.0, 1.0, 2.0, 3.0, 5.0)


class Producer:
    """Publishes messages, with a record of each before it is published and after it is confirmed."""

    def __init__(self, publisher: RobustPublisher, book: Book, stopped: asyncio.Event, seed: int) -> None:
        self._publisher = publisher
        self._book = book
        self._stopped = stopped
        self._random = random.Random(seed)
        self._made = 0

    async def one_by_one(self) -> None:
        """Publish events and commands one after another."""
        while not self._stopped.is_set():
            await asyncio.sleep(self._random.expovariate(1 / MEAN_PAUSE_SECONDS))
            if self._random.random() < 0.3:
                delay_seconds = self._random.choice(DELAYS_SECONDS)
                command = ShipOrder(number=self._number(), fate=self._fate(), delay_seconds=delay_seconds)
                await self._insist(
                    command, "task", partial(self._publisher.send, command, delay_seconds=delay_seconds)
                )
            else:
                event = self._event()
                await self._insist(event, _kind(event), partial(self._publisher.publish, event))

    async def in_bulk(self) -> None:
        """Publish many events at once, and those that failed again one by one."""
        while not self._stopped.is_set():
            await asyncio.sleep(BULK_PAUSE_SECONDS)
            events = [self._event() for _ in range(BULK)]
            for event in events:
                self._book.write("plan", event.event_id, _kind(event))
            for event, answer in zip(events, await self._publisher.publish_many(events), strict=True):
                if isinstance(answer, Receipt):
                    self._book.write("confirm", event.event_id, _kind(event))
                elif self._may_repeat(event, _kind(event), answer):
                    again = partial(self._publisher.publish, event)
                    await self._insist(event, _kind(event), again, planned=True)

    async def _insist(
        self,
        message: OrderPlaced | ShipOrder,
        kind: str,
        publish: Callable[[], Awaitable[Receipt]],
        *,
        planned: bool = False,
    ) -> None:
        if not planned:
            self._book.write("plan", message.event_id, kind)
        while True:
            try:
                with bind(RequestContext()):
                    await publish()
            except HybridkitError as error:
                if not self._may_repeat(message, kind, error):
                    return
                await asyncio.sleep(self._random.uniform(0.05, 0.5))
            else:
                self._book.write("confirm", message.event_id, kind)
                return

    def _may_repeat(self, message: OrderPlaced | ShipOrder, kind: str, error: HybridkitError) -> bool:
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        if isinstance(error, OutcomeUnknownError):
            self._book.write("unknown", message.event_id, kind, what)
        elif error.retryable:
            self._book.write("unsent", message.event_id, kind, what)
        else:
            self._book.write("refused", message.event_id, kind, what)
            return False
        return True

    def _event(self) -> OrderPlaced:
        return OrderPlaced(number=self._number(), fate=self._fate())

    def _number(self) -> int:
        self._made += 1
        return self._made

    def _fate(self) -> Fate:
        chance = self._random.random()
        return "poison" if chance < 0.02 else "flaky" if chance < 0.1 else "plain"


def _kind(event: OrderPlaced) -> str:
    return "poison" if event.fate == "poison" else "order"


async def main(name: str, url: str, folder: Path, seed: int) -> None:
    """Publish until SIGTERM."""
    log_warnings(folder / f"{name}.log")
    stopped = stopped_by_signal()
    with Book(folder / f"{name}.book") as book:
        async with RobustPublisher(url, service=name) as publisher:
            sampler = Sampler(folder / f"{name}.samples", more=lambda: {"ready": publisher.is_ready})
            sampler.take("before")
            say("ready")
            producer = Producer(publisher, book, stopped, seed)
            async with asyncio.TaskGroup() as group:
                for _ in range(TASKS):
                    group.create_task(producer.one_by_one())
                group.create_task(producer.in_bulk())
                group.create_task(sampler.run_until(stopped))
            sampler.take("after")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
