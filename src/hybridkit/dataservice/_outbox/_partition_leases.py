"""The leases of one replica: which partitions of the outbox it publishes; renewed, handed over, and lost."""

import time
from collections.abc import Collection, Sequence
from typing import Final
from uuid import uuid4

from hybridkit.dataservice._outbox._protocol import Lease, Outbox
from hybridkit.observability import get_logger

RENEW_SECONDS: Final = 1.0
"""The pause between two renewals; a lease lasts ten times as long, so that a few may fail."""

_log = get_logger("hybridkit.relay")


class PartitionLeases:
    """The leases of one replica.

    Args:
        outbox: where they are kept.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._owner = uuid4().hex
        self._leases: dict[int, Lease] = {}
        self._surplus: frozenset[int] = frozenset()
        self._renew_at = 0.0

    def __repr__(self) -> str:
        return f"PartitionLeases(partitions={sorted(self._leases)}, surplus={sorted(self._surplus)})"

    @property
    def partitions(self) -> Collection[int]:
        """All partitions of this replica, also those that it has to hand over."""
        return self._leases.keys()

    @property
    def active(self) -> Collection[int]:
        """The partitions whose rows may be taken up."""
        return self._leases.keys() - self._surplus

    def seconds_left(self, lease: Lease) -> float:
        """Return for how long a row that was taken up under this lease may be published; 0 once it may not."""
        current = self._leases.get(lease.partition)
        # Another fence: the lease was lost and taken again, and another replica had the partition in between.
        if current is None or current.fence != lease.fence or lease.partition in self._surplus:
            return 0.0
        return max(current.valid_until - time.monotonic(), 0.0)

    def of(self, partitions: Collection[int]) -> Sequence[Lease]:
        """Return the leases of those partitions that this replica has."""
        return [self._leases[partition] for partition in partitions if partition in self._leases]

    async def renew(self, *, busy: Collection[int]) -> None:
        """Renew the leases when it is time to, take free partitions, and hand over what another replica is to have.

        Args:
            busy: partitions with rows under way: they are handed over once these are done.
        """
        if time.monotonic() >= self._renew_at:
            acquired = await self._outbox.renew_leases(self._owner)
            self._replace(acquired.leases)
            self._surplus = _beyond(acquired.share, self._leases, busy=busy)
            self._renew_at = time.monotonic() + RENEW_SECONDS
        if done := self._surplus - set(busy):
            await self._outbox.release_leases(self._owner, done)
            self.forget(done)

    def forget(self, partitions: Collection[int]) -> None:
        """Stop using leases that another replica has, or may have."""
        self._replace([lease for lease in self._leases.values() if lease.partition not in partitions])
        self._surplus -= set(partitions)

    async def release_all(self) -> None:
        """Hand over every partition, and stop counting among the replicas that share them."""
        await self._outbox.release_leases(self._owner)
        self._replace([])

    def _replace(self, leases: Sequence[Lease]) -> None:
        before = self._leases.keys()
        self._leases = {lease.partition: lease for lease in leases}
        if before != self._leases.keys():
            _log.info("the relay publishes other partitions", partitions=sorted(self._leases))


def _beyond(kept: int, partitions: Collection[int], *, busy: Collection[int]) -> frozenset[int]:
    """Return the partitions beyond the number that may be kept, first those without rows under way."""
    idle_last = sorted(partitions, key=lambda partition: (partition not in busy, partition))
    return frozenset(idle_last[kept:])
