"""The log of parked keys: what a reader takes from it, and what is left for the next one."""

from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from hybridkit.errors import NotConnectedError
from hybridkit.messaging._frames import Deliver
from hybridkit.messaging._parking import Mark, ParkedKeys, _Log
from hybridkit.messaging._port import Delivered


class Port:
    """Takes note of acknowledgements."""

    def __init__(self) -> None:
        self.acked: list[int] = []

    def ack(self, tag: int) -> None:
        self.acked.append(tag)


def log_of(*entries: dict[str, Any] | bytes) -> _Log:
    log = _Log("me")
    for tag, entry in enumerate(entries, start=1):
        body = entry if isinstance(entry, bytes) else orjson.dumps(entry)
        log.delivered(Delivered(Deliver(tag, False, "", "q"), b"", body))
    return log


def mark(key: str, last: str, generation: int = 0) -> dict[str, Any]:
    return {"key": key, "generation": generation, "last": last}


def superseded(log: _Log) -> list[int]:
    port = Port()
    log.compact(cast("Any", port))
    return sorted(port.acked)


END = {"key": None, "end": "me"}


async def test_the_newest_mark_of_a_key_counts() -> None:
    log = log_of(mark("a", "1"), mark("b", "2"), mark("a", "3", 1), END)
    assert log.marks == {"a": Mark(1, "3"), "b": Mark(0, "2")}
    assert log.complete.is_set()
    assert superseded(log) == [1, 4]


async def test_a_key_that_was_freed_leaves_nothing() -> None:
    log = log_of(mark("a", "1"), {"key": "a"}, {"key": "b"}, END)
    assert log.marks == {}
    assert superseded(log) == [1, 2, 3, 4]


async def test_what_nobody_understands_is_removed() -> None:
    """So is the end of a reader that is gone."""
    log = log_of(
        b"no json", {"key": 5}, {"key": "a", "generation": "x", "last": "1"}, {"end": "another"}, END
    )
    assert log.marks == {}
    assert superseded(log) == [1, 2, 3, 4, 5]


async def test_what_comes_after_the_end_is_for_the_next_reader() -> None:
    log = log_of(END, mark("a", "1"))
    assert log.marks == {}
    assert superseded(log) == [1]


@pytest.mark.parametrize("entries", [(), (END,)], ids=["before", "after"])
async def test_a_channel_that_ends_before_the_end_is_noticed(entries: tuple[dict[str, Any], ...]) -> None:
    log = log_of(*entries)
    log.settled(1, multiple=False, accepted=True)
    log.returned(b"")
    log.closed("the connection was lost")
    assert log.complete.is_set()
    assert log.is_cut is not bool(entries)


async def test_a_log_that_was_cut_is_not_believed() -> None:
    """The connection was lost while it was read."""
    receivers: list[_Log] = []

    async def consume(*_: object) -> None:
        receivers[0].closed("lost")

    async def nothing() -> None: ...

    async def channel(**_: object) -> Any:
        return SimpleNamespace(basic_consume=consume, close=nothing)

    def port(_: object, log: _Log) -> Any:
        receivers.append(log)
        return SimpleNamespace(ack=lambda _: None, close=lambda _: None)

    link = cast("Any", SimpleNamespace(channel=channel, port=port))
    with pytest.raises(NotConnectedError, match=r"reads tests\.q\.parked"):
        await ParkedKeys("tests.q")._read(link, "me")


def test_a_key_is_held_up_to_the_generation_that_failed() -> None:
    keys = ParkedKeys("tests.q")
    assert not keys.holds("a", 0)
    assert not keys.is_last("a", "1")
    keys.park("a", "1", 1)
    keys.park("a", "2", 0)
    assert keys.holds("a", 0)
    assert keys.holds("a", 1)
    assert not keys.holds("a", 2)
    assert keys.is_last("a", "2")
    assert repr(keys) == "ParkedKeys('tests.q.parked', 1 keys)"
    assert keys.free("a").routing_key == "tests.q.parked"
    assert not keys.holds("a", 0)
