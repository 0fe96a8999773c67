"""Which partitions of the outbox this replica publishes: taken, renewed, handed over, and lost."""

import time
from collections.abc import Collection, Sequence
from typing import Final
from uuid import uuid4

from hybridkit.dataservice._outbox._protocol import Lease, Outbox
from hybridkit.observability import get_logger

__all__ = ["Holdings"]

RENEW_SECONDS: Final = 1.0

_log = get_logger("hybridkit.relay")


class Holdings:
    """The leases of one replica.

    Args:
        outbox: where they are.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._owner = uuid4().hex
        self._leases: dict[int, Lease] = {}
        self._surplus: frozenset[int] = frozenset()
        self._renew_at = 0.0

    def __repr__(self) -> str:
        return f"Holdings(partitions={sorted(self._leases)}, surplus={sorted(self._surplus)})"

    @property
    def partitions(self) -> Collection[int]:
        """All of them, also those that another replica is to have."""
        return self._leases.keys()

    @property
    def open(self) -> Collection[int]:
        """Those whose rows may be taken up."""
        return self._leases.keys() - self._surplus

    def seconds_left(self, lease: Lease) -> float:
        """For how long a row may be published that was taken up under that lease; 0 once it may not."""
        held = self._leases.get(lease.partition)
        if held is None or held.fence != lease.fence or lease.partition in self._surplus:
            return 0.0
        return max(held.valid_until - time.monotonic(), 0.0)

    def of(self, partitions: Collection[int]) -> Sequence[Lease]:
        """The leases of those partitions that this replica has."""
        return [self._leases[partition] for partition in partitions if partition in self._leases]

    async def renew(self, *, busy: Collection[int]) -> None:
        """Say that this replica lives, when it is time to; hand over what another one is to have.

        Args:
            busy: partitions with rows under way: they are handed over once these are done.
        """
        if time.monotonic() >= self._renew_at:
            held = await self._outbox.acquire(self._owner)
            self._replace(held.leases)
            self._surplus = _beyond(held.share, self._leases, busy=busy)
            self._renew_at = time.monotonic() + RENEW_SECONDS
        if done := self._surplus - set(busy):
            await self._outbox.release(self._owner, done)
            self.lose(done)

    def lose(self, partitions: Collection[int]) -> None:
        """Another replica has them, or may have them."""
        self._replace([lease for lease in self._leases.values() if lease.partition not in partitions])
        self._surplus -= set(partitions)

    async def leave(self) -> None:
        """Hand over everything."""
        await self._outbox.release(self._owner)
        self._replace([])

    def _replace(self, leases: Sequence[Lease]) -> None:
        before = self._leases.keys()
        self._leases = {lease.partition: lease for lease in leases}
        if before != self._leases.keys():
            _log.info("the relay publishes other partitions", partitions=sorted(self._leases))


def _beyond(kept: int, partitions: Collection[int], *, busy: Collection[int]) -> frozenset[int]:
    """Which of them to give back: first those where nothing is under way."""
    idle_last = sorted(partitions, key=lambda partition: (partition not in busy, partition))
    return frozenset(idle_last[kept:])
