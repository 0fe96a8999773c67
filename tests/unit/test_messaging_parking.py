"""The log of parked keys: what a reader takes from it, and what is left for the next one."""

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.errors import NackedError, NotConnectedError
from hybridkit.messaging._amqp._frames import DeliverMethod
from hybridkit.messaging._amqp._port import IncomingMessage
from hybridkit.messaging._consuming import _parked_keys as parked_keys_module
from hybridkit.messaging._consuming._parked_keys import Mark, ParkedKeys, _LogReceiver
from hybridkit.messaging._publishing._writer import OutgoingMessage

QUEUE = "tests.q"


class Broker:
    """One queue with one reader at a time, in order; what is not acknowledged stays at its head.

    Attributes:
        entries: the bodies, the oldest first.
        window: how many a reader may have unacknowledged; until it asks for another number, as many as RabbitMQ takes.
        taken: how many publishes are taken before one is refused; None for all.
        cut_after: the number of deliveries after which the reader's channel is closed.
        meanwhile: what somebody else writes while the log is read.
    """

    def __init__(self, *entries: dict[str, Any] | bytes) -> None:
        self.entries = deque(each if isinstance(each, bytes) else orjson.dumps(each) for each in entries)
        self.window = 2_000
        self.taken: int | None = None
        self.cut_after: int | None = None
        self.meanwhile: list[OutgoingMessage] = []
        self._reader: Any = None
        self._delivered = 0
        self._held: dict[int, bytes] = {}

    async def forward(self, message: OutgoingMessage) -> None:
        if self.taken is not None:
            self.taken -= 1
            if self.taken < 0:
                raise NackedError("refused")
        self.entries.append(message.body)
        if b'"end"' in message.body:  # what somebody else writes after it, and before it is read
            self.entries.extend(each.body for each in self.meanwhile)
        self._deliver()

    def open_channel(self) -> Any:
        """A channel that messages come on; each is another one."""

        async def channel(**_: object) -> Any:
            return SimpleNamespace(
                basic_qos=self._qos, basic_consume=self._consume, close=self._close, is_closed=False, number=1
            )

        async def ask(work: Any, **_: object) -> Any:
            return await work

        def port(_: object, reader: Any) -> Any:
            self._reader, self._delivered, self._held = reader, 0, {}
            return SimpleNamespace(ack=self._ack, close=reader.closed, is_open=True)

        return cast("Any", SimpleNamespace(connection=SimpleNamespace(channel=channel, ask=ask, port=port)))

    async def _qos(self, *, prefetch_count: int) -> None:
        self.window = prefetch_count

    async def _consume(self, *_: object) -> None:
        self._deliver()

    async def _close(self, *_: object) -> None:
        self._reader = None

    def _deliver(self) -> None:
        while self._reader is not None and len(self._held) < min(self.window, len(self.entries)):
            if self._delivered == self.cut_after:
                self._reader.closed("lost")
                self._reader = None
                return
            body = self.entries[len(self._held)]
            self._delivered += 1
            self._held[self._delivered] = body
            self._reader.delivered(
                IncomingMessage(DeliverMethod(self._delivered, False, "", QUEUE), b"", body)
            )

    def _ack(self, tag: int, *, multiple: bool = False) -> None:
        acked = [each for each in self._held if each == tag or (multiple and each < tag)]
        assert tag in acked
        for each in acked:
            self.entries.remove(self._held.pop(each))
        self._deliver()


def mark(key: str, last: str, generation: int = 0) -> dict[str, Any]:
    return {"key": key, "generation": generation, "last": last}


async def read(broker: Broker, keys: ParkedKeys | None = None) -> dict[str, Mark]:
    """The marks that a process knows which takes over."""
    keys = keys or ParkedKeys(QUEUE)
    await keys.read(broker.open_channel(), broker.forward)
    return keys._marks


async def test_the_newest_mark_of_a_key_counts() -> None:
    """The marks are in one entry after the reading, a snapshot."""
    broker = Broker(mark("a", "1"), mark("b", "2"), mark("a", "3", 1))
    assert await read(broker) == {"a": Mark(1, "3"), "b": Mark(0, "2")}
    assert len(broker.entries) == 1  # a fold


async def test_a_key_that_was_freed_leaves_nothing() -> None:
    """Marks and the entries that free their keys are gone after the reading."""
    broker = Broker(mark("a", "1"), {"key": "a"}, {"key": "b"})
    assert await read(broker) == {}
    assert not broker.entries


async def test_what_nobody_understands_is_removed() -> None:
    """So is the end of a reader that is gone. None of it frees a key."""
    fold = {"key": None, "fold": "f", "part": 1, "of": 1, "marks": [["b", 0, "9"], ["c"], 5]}
    odd = (b"no json", {"key": 5}, {"key": "a", "generation": "x", "last": "1"}, {"end": "another"}, fold)
    broker = Broker(mark("a", "1"), *odd)
    assert await read(broker) == {"a": Mark(0, "1"), "b": Mark(0, "9")}
    assert len(broker.entries) == 1


async def test_what_others_write_meanwhile_is_for_the_next_reader() -> None:
    """It is newer than the fold, though it stands before it."""
    broker = Broker(mark("a", "1"), mark("b", "1"))
    other = ParkedKeys(QUEUE)
    broker.meanwhile = [other.park("a", "2", 1), other.free("b"), other.park("c", "3", 0)]
    assert await read(broker) == {"a": Mark(0, "1"), "b": Mark(0, "1")}
    broker.meanwhile = []
    assert await read(broker) == {"a": Mark(1, "2"), "c": Mark(0, "3")}


async def test_more_keys_may_be_parked_than_the_broker_leaves_with_a_reader_by_itself() -> None:
    """It would be 2,000; and a fold has many of them."""
    broker = Broker(*(mark(str(number), "1") for number in range(5_000)))
    for _ in range(2):
        assert await read(broker) == {str(number): Mark(0, "1") for number in range(5_000)}
        assert len(broker.entries) == 10


async def test_a_log_may_be_longer_than_what_a_reader_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """What says nothing any more takes no place, whatever it is."""
    monkeypatch.setattr(parked_keys_module, "PREFETCH", 10)
    old = [each for n in range(200) for each in (mark("a", str(n)), {"key": "b"}, {"end": str(n)}, b"odd")]
    assert await read(Broker(*old, mark("b", "5"))) == {"a": Mark(0, "199"), "b": Mark(0, "5")}


async def test_the_own_entries_are_folded_while_the_process_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each dead letter of a parked key writes one: without an end, if nobody reads them."""
    monkeypatch.setattr(parked_keys_module, "SNAPSHOT_AFTER", 10)
    broker, keys = Broker(), ParkedKeys(QUEUE)
    open_channel = broker.open_channel()
    for number in range(100):
        await keys.read(open_channel, broker.forward)
        await broker.forward(keys.park("a", str(number), 0))
        keys.written("a")
        assert len(broker.entries) <= 12
    assert await read(broker) == {"a": Mark(0, "99")}


async def test_what_this_process_writes_meanwhile_is_known_to_it() -> None:
    """A mark that is on its way while the log is read again is not in what was read."""
    broker, keys = Broker(mark("a", "1"), mark("b", "1"), mark("c", "1")), ParkedKeys(QUEUE)
    await read(broker, keys)
    before, freed = keys.park("d", "1", 0), keys.free("a")
    keys.outdated()
    await read(broker, keys)
    assert set(keys._marks) == {"b", "c", "d"}
    for entry, key in ((before, "d"), (freed, "a")):
        await broker.forward(entry)
        keys.written(key)
    assert await read(broker) == keys._marks


@pytest.mark.parametrize("taken", range(4), ids=lambda number: f"after {number}")
async def test_a_fold_that_was_not_completed_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """What it stands for is still in the log, with the fold before it."""
    monkeypatch.setattr(parked_keys_module, "MARKS_PER_ENTRY", 2)
    broker = Broker(*(mark(key, "1") for key in "abcdef"))
    await read(broker)
    broker.entries.extend(orjson.dumps(each) for each in ({"key": "a"}, mark("b", "2")))
    broker.taken = taken
    with pytest.raises(NackedError):
        await read(broker)
    broker.taken = None
    assert await read(broker) == {"b": Mark(0, "2")} | {key: Mark(0, "1") for key in "cdef"}


@pytest.mark.parametrize("seen", [0, 2, 3], ids=lambda number: f"after {number}")
async def test_a_log_that_was_cut_is_not_believed(seen: int) -> None:
    """The connection was lost while it was read."""
    broker, keys = Broker(mark("a", "1"), mark("b", "1"), mark("c", "1")), ParkedKeys(QUEUE)
    broker.cut_after = seen
    with pytest.raises(NotConnectedError, match=r"reads tests\.q\.parked"):
        await read(broker, keys)
    broker.cut_after = None
    assert set(await read(broker, keys)) == {"a", "b", "c"}


async def test_a_silent_broker_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading that gets no entry in its time fails."""
    monkeypatch.setattr(parked_keys_module, "READ_SECONDS", 0.0)
    inbox = _LogReceiver()
    inbox.settled(1, multiple=False, accepted=True)
    inbox.returned(b"")
    with pytest.raises(NotConnectedError, match="was not read in"):
        await inbox.next(QUEUE)


CHANGES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["park", "free", "crash", "read"])), max_size=30
)


@settings(max_examples=60)
@given(changes=CHANGES, size=st.sampled_from([1, 2, 100]))
async def test_every_reader_knows_what_was_written(changes: Iterable[tuple[str, str]], size: int) -> None:
    """Whatever was folded before, and wherever a reader has died."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parked_keys_module, "MARKS_PER_ENTRY", size)
        broker, writer = Broker(), ParkedKeys(QUEUE)
        expected: dict[str, Mark] = {}
        for number, (key, what) in enumerate(changes):
            match what:
                case "park":
                    await broker.forward(writer.park(key, str(number), 0))
                    expected[key] = Mark(0, str(number))
                case "free":
                    await broker.forward(writer.free(key))
                    expected.pop(key, None)
                case "crash":  # while it writes its second entry or a later one
                    broker.taken = number % 5 + 1
                    with suppress(NackedError):
                        await read(broker)
                    broker.taken = None
                case _:
                    assert await read(broker) == expected
        assert await read(broker) == expected
        assert await read(broker) == expected


def test_a_key_is_held_up_to_the_generation_that_failed() -> None:
    """The highest generation and the last event count; a message that was redriven more often runs."""
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
