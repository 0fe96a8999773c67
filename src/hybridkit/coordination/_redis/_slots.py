"""The slots of a cluster: a key's number, and the table of their owners.

https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from binascii import crc_hqx
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from hybridkit.coordination._redis._resp import Part

SLOTS: Final = 16_384

type Address = tuple[str, int]
"""A host and a port."""


class SlotRange(NamedTuple):
    """Slots with one owner.

    Attributes:
        first: the first slot.
        last: the last slot, included.
        owner: the address of the master.
        replicas: the addresses of its replicas.
    """

    first: int
    last: int
    owner: Address
    replicas: Sequence[Address]


def key_slot(key: Part) -> int:
    """Return the slot of a key: that of its hash tag, the first part in braces, if it has one that isn't empty."""
    data = key if isinstance(key, bytes) else str(key).encode()
    start = data.find(b"{") + 1
    if start and (end := data.find(b"}", start)) > start:
        data = data[start:end]
    return crc_hqx(data, 0) % SLOTS


def slot_ranges(reply: Sequence[Any], *, asked: Address) -> Iterator[SlotRange]:
    """Yield the ranges of a reply to `CLUSTER SLOTS`.

    Args:
        reply: the reply.
        asked: the address of the node that has given it, which leaves out a host that is its own.
    """
    for first, last, owner, *replicas in reply:
        yield SlotRange(first, last, _address(owner, asked), [_address(node, asked) for node in replicas])


def redirection(message: str, *, asked: Address) -> tuple[int, Address]:
    """Return the slot and the address of `MOVED 3999 127.0.0.1:6381` or `ASK 3999 127.0.0.1:6381`."""
    _, slot, place = message.split(" ")[:3]
    host, _, port = place.rpartition(":")
    return int(slot), (host or asked[0], int(port))


def _address(node: Sequence[Any], asked: Address) -> Address:
    host, port = node[:2]
    return (host.decode() if host and host != b"?" else asked[0]), port
