"""Which partitions a replica keeps, gives back and takes."""

import pytest

from hybridkit.dataservice._outbox._partition_leases import PartitionLeases
from hybridkit.dataservice._outbox._protocol import kept_share
from tests.helpers.memory_outbox import MemoryOutbox


async def test_what_lies_beyond_the_share_goes_idle_first() -> None:
    """Partitions without rows under way are handed over, busy ones stay."""
    outbox = MemoryOutbox()
    held = PartitionLeases(outbox)
    await held.renew(busy=())
    await outbox.renew_leases("another")
    held._renew_at = 0
    busy = {0, 1, 2, *range(9, 14)}
    await held.renew(busy=busy)
    assert set(held.partitions) == busy
    assert repr(held) == f"PartitionLeases(partitions={sorted(busy)}, surplus=[])"


@pytest.mark.parametrize(
    ("mine", "others", "free", "kept"),
    [
        (16, [], 0, 16),
        (16, [0], 0, 8),
        (16, [0, 0], 0, 6),
        (8, [8, 0], 0, 6),
        (6, [6, 4], 0, 6),
        (12, [0], 4, 8),
        (10, [2], 4, 8),
        (10, [6], 0, 8),
        (9, [3], 4, 8),
        (9, [2, 1], 4, 6),
        (9, [5], 2, 8),
        (9, [6], 1, 8),
        (9, [6], 2, 9),
        (9, [8], 0, 9),
    ],
)
def test_only_what_another_replica_lacks_is_given_back(
    mine: int, others: list[int], free: int, kept: int
) -> None:
    """Free partitions are taken by the other replica first."""
    assert kept_share(mine, others, free=free) == kept
