"""The shared connection to a cluster of scripted nodes: where commands go, and what becomes of those that move."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from redis.asyncio import Connection
from redis.crc import key_slot as slot_by_redis_py

from hybridkit.coordination import connect_redis
from hybridkit.coordination._connection import multiplexer_of
from hybridkit.coordination._redis import _cluster
from hybridkit.coordination._redis._cluster import ClusterMultiplexer
from hybridkit.coordination._redis._commands import CommandRefusedError, Script
from hybridkit.coordination._redis._slots import SLOTS, key_slot, redirection, slot_ranges
from hybridkit.errors import MisuseError, UnavailableError
from tests.helpers import until
from tests.helpers.scripted_redis import ScriptedRedis, bulk, until_told

SCRIPT = Script("test", "return ARGV[1]")
HALF = SLOTS // 2
LOW, HIGH = "b", "a"
"""Keys of the lower and of the upper half of the slots."""


class Node(ScriptedRedis):
    """A node that answers with its own name, unless a test says otherwise."""

    def __init__(self, name: str, cluster: "Nodes") -> None:
        super().__init__(self._answer)
        self.name = name.encode()
        self._cluster = cluster
        self.tell: Callable[[list[bytes]], bytes | None] = lambda _: bulk(self.name)

    def _answer(self, command: list[bytes]) -> bytes | None:
        if command[0] == b"CLUSTER":
            self._cluster.asked += 1
            return self._cluster.table()
        return b"+OK\r\n" if command[0] == b"ASKING" else self.tell(command)

    @property
    def words(self) -> list[bytes]:
        return [command[0] for command in self.commands if command[0] != b"CLUSTER"]


class Nodes:
    """Two nodes; the table gives the lower half of the slots to the first, and the upper to the second."""

    def __init__(self) -> None:
        self.one, self.two = Node("one", self), Node("two", self)
        self.owners = [self.one, self.two]
        self.asked = 0

    def table(self) -> bytes:
        def node(owner: Node) -> bytes:
            return b"*3\r\n" + bulk(b"127.0.0.1") + b":%d\r\n" % owner.port + bulk(owner.name)

        first, second = self.owners
        halves = ((0, HALF - 1, first, second), (HALF, SLOTS - 1, second, first))
        return b"*2\r\n" + b"".join(
            b"*4\r\n:%d\r\n:%d\r\n" % (start, end) + node(owner) + node(replica)
            for start, end, owner, replica in halves
        )


@asynccontextmanager
async def cluster(*, seconds: float = 20.0) -> AsyncGenerator[tuple[Nodes, ClusterMultiplexer]]:
    nodes = Nodes()
    async with AsyncExitStack() as stack:
        for node in (nodes.one, nodes.two):
            await stack.enter_async_context(node.open())
        url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{nodes.one.port},127.0.0.1:{nodes.two.port}"
        client = await stack.enter_async_context(connect_redis(url, timeout_seconds=seconds / 2))
        shared = multiplexer_of(client)
        assert isinstance(shared, ClusterMultiplexer)
        yield nodes, shared


@pytest.mark.parametrize(
    "key", ["", "a", "user:1", "{user}:1", "x{user}y{z}", "{}a", "a{", "a{b", "ключ", "{{a}}"]
)
def test_a_key_has_the_slot_that_redis_gives_it(key: str) -> None:
    """That of its hash tag; as text and as bytes."""
    assert key_slot(key) == key_slot(key.encode()) == slot_by_redis_py(key.encode())


def test_a_node_may_leave_its_own_host_out() -> None:
    """It is the one that was asked."""
    reply = [[0, 5, [b"", 7001, b"id"], [None, 7002, b"id"], [b"?", 7003, b"id"], [b"h", 7004, b"id"]]]
    [found] = slot_ranges(reply, asked=("asked", 1))
    assert found == (0, 5, ("asked", 7001), [("asked", 7002), ("asked", 7003), ("h", 7004)])
    assert redirection("MOVED 3999 :6381", asked=("asked", 1)) == (3999, ("asked", 6381))
    assert redirection("ASK 3999 ::1:6381", asked=("asked", 1)) == (3999, ("::1", 6381))


async def test_commands_of_one_turn_are_one_write_to_each_owner() -> None:
    """The first ones wait for the table, which is asked for once."""
    async with cluster() as (nodes, shared):
        keys = [LOW, HIGH] * 10
        assert await asyncio.gather(*(shared.execute("GET", key) for key in keys)) == [b"one", b"two"] * 10
        assert await asyncio.gather(*(shared.run(SCRIPT, [key], 1) for key in keys)) == [b"one", b"two"] * 10
        assert nodes.one.reads[-2:] == nodes.two.reads[-2:] == [10, 10]
        assert await shared.execute("PING") == b"one"
        assert await shared.run(SCRIPT, [], 1) == b"one"
        assert not shared.is_away
        assert "127.0.0.1:1" in repr(shared)


async def test_keys_in_different_slots_are_a_mistake_that_is_not_sent() -> None:
    """The error says how to give them one slot."""
    async with cluster() as (nodes, shared):
        with pytest.raises(MisuseError, match=r"different slots.*same hash tag"):
            await shared.run(SCRIPT, [LOW, HIGH])
        assert await shared.run(SCRIPT, ["{t}:1", "{t}:2"]) in {b"one", b"two"}
        assert nodes.one.words + nodes.two.words == [b"EVALSHA"]


async def test_a_command_follows_its_slot_to_the_new_owner() -> None:
    """And so do the next ones at once; the table is asked for again."""
    async with cluster() as (nodes, shared):
        await shared.execute("GET", LOW)
        asked = nodes.asked
        nodes.owners = [nodes.two, nodes.two]
        nodes.one.tell = lambda _: f"-MOVED {key_slot(LOW)} 127.0.0.1:{nodes.two.port}\r\n".encode()
        assert await shared.execute("GET", LOW) == b"two"
        assert await shared.execute("GET", LOW) == b"two"
        await until(lambda: nodes.asked > asked and not nodes.one.clients)
        assert nodes.one.words == [b"GET", b"GET"]


async def test_a_slot_that_is_being_moved_is_asked_for_behind_asking() -> None:
    """Both in one write, and the owner stays the same; a script that is unknown there is sent whole."""
    async with cluster() as (nodes, shared):
        await shared.execute("GET", LOW)
        await shared.execute("GET", HIGH)
        ask = f"-ASK {key_slot(LOW)} 127.0.0.1:{nodes.two.port}\r\n".encode()
        nodes.one.tell = lambda _: ask
        nodes.two.tell = lambda command: (
            b"-NOSCRIPT No matching script.\r\n" if command[0] == b"EVALSHA" else bulk(b"moving")
        )
        assert await shared.execute("GET", LOW) == b"moving"
        assert nodes.two.reads[-1] == 2
        assert nodes.two.words == [b"GET", b"ASKING", b"GET"]
        assert await shared.run(SCRIPT, [LOW]) == b"moving"
        assert nodes.one.words[-1] == b"EVAL" or nodes.two.words[-1] == b"EVAL"


async def test_a_command_is_not_sent_in_circles() -> None:
    """Two nodes that each name the other."""
    async with cluster() as (nodes, shared):
        await shared.execute("GET", LOW)
        nodes.one.tell = lambda _: f"-MOVED {key_slot(LOW)} 127.0.0.1:{nodes.two.port}\r\n".encode()
        nodes.two.tell = lambda _: f"-MOVED {key_slot(LOW)} 127.0.0.1:{nodes.one.port}\r\n".encode()
        with pytest.raises(UnavailableError, match="from one to the other"):
            await shared.execute("GET", LOW)


@pytest.mark.parametrize("code", ["CLUSTERDOWN", "TRYAGAIN", "LOADING"])
async def test_a_node_that_can_not_do_it_now_is_asked_again(code: str) -> None:
    """Over the same connection, after a pause."""
    async with cluster() as (nodes, shared):
        await shared.execute("GET", LOW)
        told = iter([f"-{code} not now\r\n".encode()] * 2)
        nodes.one.tell = lambda _: next(told, bulk(b"now"))
        connections = nodes.one.connections
        assert await shared.execute("GET", LOW) == b"now"
        assert nodes.one.connections <= connections + nodes.asked


async def test_a_node_that_never_can_is_told_at_the_deadline() -> None:
    """With the words of Redis; another refusal is told at once."""
    async with cluster(seconds=0.5) as (nodes, shared):
        await shared.execute("GET", LOW)
        nodes.one.tell = lambda _: b"-CLUSTERDOWN Hash slot not served\r\n"
        await until_told(shared, "Hash slot not served")
        nodes.one.tell = lambda _: b"-WRONGTYPE no list\r\n"
        with pytest.raises(CommandRefusedError, match="WRONGTYPE"):
            await shared.execute("GET", LOW)


@pytest.mark.parametrize("is_frozen", [True, False])
async def test_commands_that_wait_for_a_dead_owner_go_to_its_successor(
    monkeypatch: pytest.MonkeyPatch, is_frozen: bool
) -> None:
    """As soon as a node names it; what was in flight is sent again there."""
    monkeypatch.setattr(_cluster, "ASK_EVERY_SECONDS", 0.01)
    async with cluster() as (nodes, shared):
        await shared.execute("GET", LOW)
        nodes.one.tell = lambda _: None
        waiting = shared.execute("GET", LOW)
        await until(lambda: nodes.one.words == [b"GET", b"GET"])
        if is_frozen:
            shared.retire("as after a deadline")
            nodes.one.freeze()
            await until(lambda: nodes.asked > 3)
        else:
            shared.make_connection = lambda host, port: usual(host, 1 if port == nodes.one.port else port)
            nodes.one.cut()
        nodes.owners = [nodes.two, nodes.two]
        assert await waiting == b"two"
        await until(lambda: len(shared._nodes) == 1)


async def test_while_no_node_answers_commands_fail_and_the_cluster_is_away() -> None:
    """At the deadline first, and at once then, with the reason."""
    client = connect_redis("redis+cluster://127.0.0.1:1,127.0.0.1:2", timeout_seconds=0.05)
    shared = multiplexer_of(client)
    assert not shared.is_away
    shared.retire("nothing is open yet")
    await until_told(shared, "no node gives the table")
    await until(lambda: shared.is_away)
    await client.aclose()
    await client.aclose()


async def test_an_owner_that_is_away_does_not_make_the_cluster_away() -> None:
    """Its keys fail, and those of the others work."""
    async with cluster(seconds=0.4) as (nodes, shared):
        await shared.execute("GET", LOW)
        await shared.execute("GET", HIGH)
        nodes.one.freeze()
        with pytest.raises(UnavailableError):
            await shared.execute("GET", LOW)

        async def fails_at_once() -> bool:
            asked = shared.execute("GET", LOW)
            at_once = asked.done()
            await asyncio.wait([asked])
            assert asked.exception()
            return at_once

        await until(fails_at_once)
        assert not shared.is_away
        assert await shared.execute("GET", HIGH) == b"two"


async def test_a_command_that_is_to_be_sent_again_fails_when_the_client_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not wait for ever."""
    monkeypatch.setattr(_cluster, "PAUSE_SECONDS", 0.5)
    async with cluster() as (nodes, shared):
        await shared.execute("GET", LOW)
        nodes.one.tell = lambda _: b"-TRYAGAIN not now\r\n"
        waiting = shared.execute("GET", LOW)
        owner = shared._owners[key_slot(LOW)]
        assert owner is not None
        await until(lambda: len(nodes.one.words) == 2 and owner._open and not owner._open.sent)
        await shared.close()
        with pytest.raises(UnavailableError, match="the Redis client is closed"):
            await waiting


async def test_a_client_that_has_asked_nothing_is_closed() -> None:
    """A script with keys in different slots asks nothing."""
    async with cluster() as (nodes, shared):
        with pytest.raises(MisuseError):
            await shared.run(SCRIPT, [LOW, HIGH])
        await shared.close()
        assert nodes.asked == 0


def test_a_client_of_a_cluster_goes_from_one_event_loop_to_the_next() -> None:
    """With a table and connections of its own."""

    async def use() -> None:
        async with cluster() as (_, shared):
            kept.append(shared)
            assert await shared.execute("GET", LOW) == b"one"

    kept: list[ClusterMultiplexer] = []
    asyncio.run(use())
    asyncio.run(kept[0].close())


def usual(host: str, port: int) -> Connection:
    return Connection(host=host, port=port, protocol=2)
