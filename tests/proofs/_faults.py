"""The faults of the broker during the proof, in an order that follows from the seed."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import aio_pika
import httpx
from aio_pika.abc import AbstractChannel

from hybridkit.dev import Server
from hybridkit.errors import HybridkitError
from tests.proofs._books import ORDERS, TASKS, WATCHERS, Book, Deletion

CALM_SECONDS: Final = (2.0, 8.0)
ON_ONE_NODE: Final = (
    "kill",
    "freeze",
    "restart",
    "memory_alarm",
    "close_connections",
    "delete_queue",
    "delete_dead_letters",
)
ON_A_CLUSTER: Final = (*ON_ONE_NODE, "kill_leader", "rolling_restart")
WATERMARK: Final = "0.6"
HEALS_WITHIN_SECONDS: Final = 90.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault with its node, its duration, and the calm time before it."""

    kind: str
    calm_seconds: float
    seconds: float
    node: int

    def __str__(self) -> str:
        return f"{self.kind} (node {self.node}, {self.seconds:.1f} s)"


def schedule(seed: int, *, nodes: int, count: int) -> list[Fault]:
    """Yield the faults of a seed: each kind once in a random order, then again in another order, and so on."""
    dice = random.Random(seed)
    kinds = ON_ONE_NODE if nodes == 1 else ON_A_CLUSTER
    faults: list[Fault] = []
    while len(faults) < count:
        faults += [
            Fault(kind, dice.uniform(*CALM_SECONDS), _duration(kind, dice), dice.randrange(nodes))
            for kind in dice.sample(kinds, len(kinds))
        ]
    return faults[:count]


def _duration(kind: str, dice: random.Random) -> float:
    match kind:
        case "freeze":
            return dice.choice([dice.uniform(0.5, 4), dice.uniform(8, 30)])
        case "kill" | "kill_leader" | "memory_alarm":
            return dice.uniform(0.5, 12)
        case _:
            return 0.0


class Injector:
    """Injects faults into the nodes of a broker.

    Args:
        nodes: one node, or those of a cluster.
        book: the record of dead letters that are removed before their queue is deleted.

    Attributes:
        deletions: the deleted queues, with the times of their return.
        problems: what did not return as it should.
    """

    def __init__(self, nodes: Sequence[Server], book: Book) -> None:
        self._nodes = nodes
        self._book = book
        self.deletions: list[Deletion] = []
        self.problems: list[str] = []
        self._kinds: Mapping[str, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "restart": self._restart,
            "memory_alarm": self._memory_alarm,
            "close_connections": self._close_connections,
            "delete_queue": self._delete_queue,
            "delete_dead_letters": self._delete_dead_letters,
            "kill_leader": self._kill_leader,
            "rolling_restart": self._rolling_restart,
        }

    async def inject(self, fault: Fault) -> None:
        """Inject a fault, and undo it after its time."""
        await self._kinds[fault.kind](fault)

    async def take_dead_letters(self) -> int:
        """Record and remove the messages of all dead-letter queues, and return their number."""
        taken = 0
        for queue in (f"{ORDERS}.dlq", f"{TASKS}.dlq", f"{WATCHERS}.dlq", "hk.unrouted"):
            taken += await self._take(queue)
        return taken

    async def backlog(self) -> int:
        """Return the number of messages in all queues."""
        said = await self._ctl("list_queues", "messages", "--quiet", "--no-table-headers")
        return sum(int(word) for word in said.split())

    async def _kill(self, fault: Fault) -> None:
        await self._kill_node(self._nodes[fault.node], fault.seconds)

    async def _kill_leader(self, fault: Fault) -> None:
        said = await self._ctl("list_queues", "name", "leader", "--quiet", "--no-table-headers")
        leaders = dict(line.split() for line in said.splitlines() if line.startswith("ledger"))
        node = next(
            (each for each in self._nodes if getattr(each, "name", "") == leaders.get(ORDERS)),
            self._nodes[fault.node],
        )
        await self._kill_node(node, fault.seconds)

    async def _kill_node(self, node: Server, seconds: float) -> None:
        await asyncio.to_thread(node.kill)
        await asyncio.sleep(seconds)
        await self._bring_up(node.restart)

    async def _freeze(self, fault: Fault) -> None:
        node = self._nodes[fault.node]
        node.freeze()
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            node.resume()

    async def _restart(self, fault: Fault) -> None:
        await self._bring_up(self._nodes[fault.node].restart)

    async def _rolling_restart(self, _: Fault) -> None:
        for node in self._nodes:
            await self._bring_up(node.restart)
            await self._ctl("await_startup", node=node)

    async def _bring_up(self, restart: Callable[[], None]) -> None:
        for _ in range(3):
            try:
                await asyncio.to_thread(restart)
            except HybridkitError as error:
                self.problems.append(f"a node did not start: {str(error).partition('\n')[0]}")
            else:
                return

    async def _memory_alarm(self, fault: Fault) -> None:
        node = self._nodes[fault.node]
        await self._ctl("set_vm_memory_high_watermark", "0", node=node)
        await asyncio.sleep(fault.seconds)
        await self._ctl("set_vm_memory_high_watermark", WATERMARK, node=node)

    async def _close_connections(self, _: Fault) -> None:
        await self._ctl("close_all_connections", "the ledger")

    async def _delete_queue(self, _: Fault) -> None:
        """Delete the watchers' queue, whose messages are lost by definition until it is bound again."""
        async with self._channel() as channel:
            deleted = await channel.queue_delete(WATCHERS)
        at = time.monotonic()
        self._book.write("deleted", "-", WATCHERS, deleted.message_count)
        ends_at = at + HEALS_WITHIN_SECONDS
        while time.monotonic() < ends_at:
            if await self._insist(self._is_bound):
                break
            await asyncio.sleep(0.1)
        else:
            self.problems.append(f"{WATCHERS} was deleted and is not back after {HEALS_WITHIN_SECONDS:.0f} s")
        self._book.write("back", "-", WATCHERS)
        self.deletions.append(Deletion(WATCHERS, at, time.monotonic(), deleted.message_count or 0))

    async def _is_bound(self, node: Server) -> bool:
        # The management API: rabbitmqctl starts a machine of its own each time, and would report this seconds later.
        async with httpx.AsyncClient(timeout=5) as http:
            path = f"/api/bindings/%2F/e/hk.events/q/{WATCHERS}"
            answer = await http.get(f"{node.management_url}{path}")
        return answer.status_code == 200 and bool(answer.json())

    async def _delete_dead_letters(self, _: Fault) -> None:
        """Delete a dead-letter queue after recording its messages; later ones are in the broker's count."""
        queue = f"{ORDERS}.dlq"
        await self._take(queue)
        async with self._channel() as channel:
            deleted = await channel.queue_delete(queue)
        self._book.write("deleted", "-", queue, deleted.message_count)
        if deleted.message_count:
            at = time.monotonic()
            self.deletions.append(Deletion(ORDERS, at, at, deleted.message_count))

    async def _take(self, queue: str) -> int:
        taken = 0
        with suppress(aio_pika.exceptions.ChannelNotFoundEntity):
            async with self._channel() as channel:
                source = await channel.get_queue(queue, ensure=True)
                while message := await source.get(fail=False, timeout=10):
                    event_id = str(message.headers.get("hk_event_id"))
                    where = str(message.headers.get("hk_queue"))
                    is_dead = "hk_reason" in message.headers
                    self._book.write("dead" if is_dead else "parked", event_id, where, queue)
                    await message.ack()
                    taken += 1
        return taken

    @asynccontextmanager
    async def _channel(self) -> AsyncGenerator[AbstractChannel]:
        """Open a channel on any node that answers."""
        connection = await self._insist(self._connect)
        try:
            yield await connection.channel()
        finally:
            with suppress(Exception):
                await asyncio.wait_for(connection.close(), 5)

    async def _connect(self, node: Server) -> Any:
        return await asyncio.wait_for(aio_pika.connect(node.url), 5)

    async def _ctl(self, *words: str, node: Server | None = None) -> str:
        async def run(each: Server) -> str:
            return await asyncio.to_thread(each.ctl, *words)

        return str(await self._insist(run, only=node))

    async def _insist(self, action: Callable[[Server], Awaitable[Any]], *, only: Server | None = None) -> Any:
        """Repeat an action until a node performs it; nodes that are starting refuse."""
        error: Exception | None = None
        ends_at = time.monotonic() + HEALS_WITHIN_SECONDS
        while time.monotonic() < ends_at:
            for node in [only] if only else self._nodes:
                try:
                    return await action(node)
                except Exception as refused:  # noqa: BLE001 - whatever a broker under fault answers
                    error = refused
            await asyncio.sleep(0.5)
        raise TimeoutError(f"no node did it: {error}") from error
