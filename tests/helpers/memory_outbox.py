"""Doubles for a relay: an outbox in memory, and a publisher that confirms, fails or waits as it is told."""

import asyncio
import itertools
import time
from collections.abc import Collection, Sequence
from uuid import UUID, uuid4

from hybridkit.context import current
from hybridkit.dataservice._outbox._protocol import (
    PARTITIONS,
    AcquiredLeases,
    Backlog,
    Lease,
    ParkedRow,
    WaitingRow,
    fair_share,
    kept_share,
    partition_of,
)
from hybridkit.observability import trace_headers


class MemoryOutbox:
    """An outbox that forgets with the test."""

    def __init__(self) -> None:
        self.rows: dict[int, WaitingRow] = {}
        self.published: list[int] = []
        self.parked: dict[int, str] = {}
        self.replicas: set[str] = set()
        self.owners: dict[int, str] = {}
        self.fences = dict.fromkeys(range(PARTITIONS), 0)
        self.broken: Exception | None = None
        self.failures = 0
        self.marking = False
        self.mark_gate = asyncio.Event()
        self.mark_gate.set()
        self._sequences = itertools.count(1)
        self._changed = asyncio.Event()

    def add(self, ordering_key: str, event_type: str = "item.sold", **more: str) -> WaitingRow:
        row = WaitingRow(
            sequence=next(self._sequences),
            partition=partition_of(ordering_key),
            ordering_key=ordering_key,
            event_id=uuid4(),
            event_type=event_type,
            queue=more.get("queue"),
            request_id="the-request",
            user_id="ann",
            traceparent=more.get("traceparent"),
            body=b"{}",
        )
        self.rows[row.sequence] = row
        self._changed.set()
        return row

    def give(self, partition: int, owner: str) -> None:
        self.owners[partition] = owner
        self.fences[partition] += 1

    async def renew_leases(self, owner: str) -> AcquiredLeases:
        self._fail()
        self.replicas.add(owner)
        share = fair_share(len(self.replicas))
        for partition in range(PARTITIONS):
            if partition not in self.owners and list(self.owners.values()).count(owner) < share:
                self.give(partition, owner)
        mine = [partition for partition, its in self.owners.items() if its == owner]
        others = [list(self.owners.values()).count(other) for other in self.replicas - {owner}]
        kept = kept_share(len(mine), others, free=PARTITIONS - len(self.owners))
        valid_until = time.monotonic() + 9
        return AcquiredLeases(
            [Lease(partition, self.fences[partition], valid_until) for partition in mine], kept
        )

    async def release_leases(self, owner: str, partitions: Collection[int] | None = None) -> None:
        self._fail()
        if partitions is None:
            self.replicas.discard(owner)
        for partition in range(PARTITIONS) if partitions is None else partitions:
            if self.owners.get(partition) == owner:
                del self.owners[partition]

    async def waiting(
        self, partitions: Collection[int], *, without: Collection[str], limit: int
    ) -> Sequence[WaitingRow]:
        self._fail()
        done = {*self.published, *self.parked}
        rows = [
            row for row in self.rows.values() if row.sequence not in done and row.ordering_key not in without
        ]
        return [row for row in rows if row.partition in partitions][:limit]

    async def backlog(self, partitions: Collection[int]) -> Backlog:
        waiting = await self.waiting(partitions, without=(), limit=1000)
        parked = [number for number in self.parked if self.rows[number].partition in partitions]
        return Backlog(waiting=len(waiting), parked=len(parked), lag_seconds=float(len(waiting)))

    async def changed(self, *, timeout_seconds: float) -> None:
        await asyncio.wait({asyncio.ensure_future(self._changed.wait())}, timeout=timeout_seconds)
        self._changed.clear()

    async def mark(
        self, leases: Sequence[Lease], *, published: Sequence[WaitingRow], parked: Sequence[ParkedRow]
    ) -> Collection[int]:
        self._fail()
        self.marking = True
        await self.mark_gate.wait()
        self.marking = False
        held = {lease.partition for lease in leases if self.fences[lease.partition] == lease.fence}
        self.published += [row.sequence for row in published if row.partition in held]
        self.parked |= {each.row.sequence: each.reason for each in parked if each.row.partition in held}
        return {lease.partition for lease in leases} - held

    def _fail(self) -> None:
        if self.broken is not None:
            self.failures += 1
            raise self.broken


class MemoryPublisher:
    """Confirms at once, unless it was told to fail for an event, or to hold it."""

    def __init__(self) -> None:
        self.sent: list[UUID] = []
        self.queues: list[str | None] = []
        self.contexts: list[tuple[str, str | None]] = []
        self.traces: list[dict[str, str]] = []
        self.at_work: list[str] = []
        self.most_at_work = 0
        self.errors: dict[UUID, list[Exception]] = {}
        self.gates: dict[UUID, asyncio.Event] = {}

    async def publish_encoded(
        self, body: bytes, *, event_type: str, event_id: UUID, queue: str | None = None
    ) -> None:
        self.at_work.append(event_type)
        self.most_at_work = max(self.most_at_work, len(self.at_work))
        try:
            if gate := self.gates.get(event_id):
                await gate.wait()
            await asyncio.sleep(0)
            if errors := self.errors.get(event_id):
                raise errors.pop(0)
            self.sent.append(event_id)
            self.queues.append(queue)
            self.contexts.append((current().request_id, current().user_id))
            self.traces.append(trace_headers())
        finally:
            self.at_work.remove(event_type)
