"""The shared connection to a cluster: one connection to each master that owns slots, and one write per turn to each.

```
command ─► the owner of its key's slot ─► reply
              ▲            └─ MOVED: sent to the new owner · ASK: sent there once, behind ASKING
   table ◄────┴─ asked of any node that answers: at the start, after MOVED, and while an owner can't be reached
```

An owner that dies or freezes is replaced by one of its replicas after a while; the table is asked for until it names
the new owner, and the commands that wait for the old one go there.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, override

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from hybridkit._tasks import TaskSet
from hybridkit.coordination._redis._commands import Command, Script
from hybridkit.coordination._redis._handshake import open_connection
from hybridkit.coordination._redis._multiplexer import Multiplexer
from hybridkit.coordination._redis._node import NodeConnection
from hybridkit.coordination._redis._open_connection import Connection
from hybridkit.coordination._redis._resp import Part, ReplyError, encode
from hybridkit.coordination._redis._slots import SLOTS, Address, key_slot, redirection, slot_ranges
from hybridkit.errors import MisuseError, UnavailableError

ASK_EVERY_SECONDS: Final = 0.1
"""The pause between two questions for the table while an owner can't be reached."""

PAUSE_SECONDS: Final = 0.05
"""The pause before a command is sent again that a node can't carry out at the moment."""

MOST_REDIRECTIONS: Final = 5

_ASKED_AT_ONCE: Final = 3
"""The nodes that are asked for the table at the same time; the first answer is taken."""

_NOT_NOW: Final = frozenset({"CLUSTERDOWN", "TRYAGAIN", "LOADING", "MASTERDOWN", "READONLY"})
"""The codes of refusals that end with a new owner, or by themselves."""

_ASKING: Final = encode(("ASKING",))


class _SlotCommand(Command):
    """A command for the owner of a slot."""

    __slots__ = ("redirections", "slot")

    slot: int
    redirections: int


class _Owner(NodeConnection):
    """The connection to one master; what it can't carry out goes back to the cluster."""

    def __init__(self, cluster: "ClusterMultiplexer", address: Address, timeout_seconds: float) -> None:
        self.address = address
        self._cluster = cluster
        host, port = address
        super().__init__(self._connect_to, name=f"{host}:{port}", timeout_seconds=timeout_seconds)

    async def _connect_to(self, owner: NodeConnection) -> Connection:
        try:
            return await open_connection(self._cluster.make_connection(*self.address), owner)
        except UnavailableError:
            self._cluster.ask_for_table()
            raise

    @override
    def refused(self, command: Command, error: ReplyError) -> None:
        is_routed = isinstance(command, _SlotCommand) and self._cluster.redirect(self.address, command, error)
        if not is_routed:
            super().refused(command, error)

    @override
    def lost(self, connection: Connection, reason: str) -> None:
        super().lost(connection, reason)
        self._cluster.ask_for_table()


class ClusterMultiplexer(Multiplexer):
    """Commands and scripts for a cluster, each sent to the owner of its key's slot.

    The key of a command is its second part, as in `execute("GET", key)`; a command without a key goes to the owner of
    whatever slot that part has, and one without a second part to any owner.

    Args:
        make_connection: makes a connection of redis-py to a host and port, not connected yet.
        seeds: the nodes that are asked for the table first, and whenever all others are gone.
        name: the cluster in logs and errors.
        timeout_seconds: the time from the call to the reply or an error.
    """

    def __init__(
        self,
        make_connection: Callable[[str, int], AbstractConnection],
        seeds: Sequence[Address],
        *,
        name: str,
        timeout_seconds: float,
    ) -> None:
        super().__init__(lambda: make_connection(*seeds[0]), name=name, timeout_seconds=timeout_seconds)
        self.make_connection = make_connection
        self._seeds = seeds
        self._reason = "the cluster has not been asked for its table yet"
        self._owners: list[_Owner | None] = [None] * SLOTS
        self._nodes: dict[Address, _Owner] = {}
        self._known: set[Address] = set()
        self._asking: asyncio.Task[None] | None = None
        self._closing = TaskSet()

    @property
    @override
    def is_away(self) -> bool:
        """Whether no owner of slots can be reached."""
        if self._node is None or not self._nodes:
            return super().is_away
        return all(node.is_away for node in self._nodes.values())

    @override
    def run(
        self, script: Script, keys: Sequence[str], *arguments: Part, even_if_away: bool = False
    ) -> asyncio.Future[Any]:
        slots = {key_slot(key) for key in keys} or {0}
        command = self._command(slots.pop(), script.by_digest(keys, arguments))
        if slots:
            command.fail(
                MisuseError(
                    f"the keys of {script!r} are in different slots of the cluster: give them the same hash tag, the"
                    " part in braces, as in {orders:order:42}:lock"
                )
            )
            return command.reply
        command.call = (script, keys, arguments)
        self._dispatch(command, even_if_away=even_if_away)
        return command.reply

    @override
    def execute(self, *parts: Part, even_if_away: bool = False) -> asyncio.Future[Any]:
        command = self._command(key_slot(parts[1]) if len(parts) > 1 else 0, parts)
        self._dispatch(command, even_if_away=even_if_away)
        return command.reply

    @override
    def retire(self, reason: str) -> None:
        for node in self._nodes.values():
            node.retire(reason)

    @override
    async def close(self) -> None:
        without_owner, self._node = self._node, None  # so that nobody asks for the table any more
        if without_owner is None or without_owner.loop.is_closed():
            return
        asking, self._asking = self._asking, None
        if asking is not None:
            asking.cancel()
            await asyncio.wait({asking})
        nodes, self._nodes = self._nodes, {}
        self._owners = [None] * SLOTS
        for node in (*nodes.values(), without_owner):
            await node.close()
        await self._closing.wait()

    # ── what the nodes tell ──────────────────────────────────────────────────────────────────────

    def redirect(self, asked: Address, command: _SlotCommand, error: ReplyError) -> bool:
        """Send a command elsewhere, or again, where a node has refused it for its place; return whether that is so."""
        if error.code not in {"MOVED", "ASK", *_NOT_NOW}:
            return False
        command.redirections += 1
        if error.code in _NOT_NOW:
            self.ask_for_table()
            self._send_later(command, error)
        elif command.redirections > MOST_REDIRECTIONS:
            command.fail(
                UnavailableError(f"the nodes of Redis send a command from one to the other: {error}")
            )
        else:
            slot, address = redirection(str(error), asked=asked)
            node = self._node_at(address)
            if error.code == "ASK":
                asking = Command(_ASKING, node.loop.create_future(), command.deadline, is_final=True)
                asking.reply.cancel()
                node.send(asking, even_if_away=True)
            else:
                self._owners[slot] = node
                self.ask_for_table()
            node.send(command, even_if_away=True)
        return True

    def ask_for_table(self) -> None:
        """Ask for the table, and go on to ask while an owner can't be reached."""
        if self._node is not None and (self._asking is None or self._asking.done()):
            self._asking = self._node.loop.create_task(
                self._keep_asking(), name=f"hybridkit redis {self.name}"
            )

    # ── how ──────────────────────────────────────────────────────────────────────────────────────

    def _command(self, slot: int, parts: tuple[Part, ...]) -> _SlotCommand:
        loop = asyncio.get_running_loop()
        if self._node is None or self._node.loop is not loop:
            self._start()
        command = _SlotCommand(encode(parts), loop.create_future(), loop.time() + self.timeout_seconds)
        command.slot, command.redirections = slot, 0
        return command

    @override
    def _start(self) -> NodeConnection:
        node = super()._start()
        self._owners = [None] * SLOTS
        self._nodes, self._asking = {}, None
        return node

    @override
    async def _open(self, owner: NodeConnection) -> Connection:
        # The node of the base class is where commands wait, and fail, while no owner is known.
        self.ask_for_table()
        raise UnavailableError(self._reason)

    def _dispatch(self, command: _SlotCommand, *, even_if_away: bool = True) -> None:
        node = self._owners[command.slot] or self._node
        if node is None:
            command.fail(UnavailableError("the Redis client is closed"))
        else:
            node.send(command, even_if_away=even_if_away)

    def _send_later(self, command: _SlotCommand, error: ReplyError) -> None:
        loop = command.reply.get_loop()
        if loop.time() + PAUSE_SECONDS < command.deadline:
            loop.call_later(PAUSE_SECONDS, self._dispatch, command)
        else:
            command.fail(UnavailableError(f"Redis refuses a command for now: {error}"))

    def _node_at(self, address: Address) -> _Owner:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = _Owner(self, address, self.timeout_seconds)
        return node

    async def _keep_asking(self) -> None:
        while True:
            is_known = await self._ask()
            if is_known and not any(node.is_missing for node in self._nodes.values()):
                return
            await asyncio.sleep(ASK_EVERY_SECONDS)

    async def _ask(self) -> bool:
        """Ask a few nodes at a time, in any order, until one has given the table."""
        addresses = list({*self._known, *self._seeds})
        random.shuffle(addresses)  # nosec B311
        for start in range(0, len(addresses), _ASKED_AT_ONCE):
            chosen = addresses[start : start + _ASKED_AT_ONCE]
            questions = [asyncio.create_task(self._ask_one(address)) for address in chosen]
            try:
                for question in asyncio.as_completed(questions):
                    try:
                        asked, reply = await question
                    except (RedisError, OSError) as error:
                        self._reason = (
                            f"no node gives the table of the cluster: {type(error).__name__}: {error}"
                        )
                    else:
                        self._learn(reply, asked)
                        return True
            finally:
                for question in questions:
                    question.cancel()
        return False

    async def _ask_one(self, address: Address) -> tuple[Address, Sequence[Any]]:
        connection: Any = self.make_connection(*address)
        try:
            async with asyncio.timeout(self.timeout_seconds / 2):
                await connection.connect()
                await connection.send_command("CLUSTER", "SLOTS")
                return address, await connection.read_response(disable_decoding=True)
        finally:
            await connection.disconnect(nowait=True)

    def _learn(self, reply: Sequence[Any], asked: Address) -> None:
        owners: list[_Owner | None] = [None] * SLOTS
        known: set[Address] = set()
        for first, last, address, replicas in slot_ranges(reply, asked=asked):
            owners[first : last + 1] = [self._node_at(address)] * (last + 1 - first)
            known.update((address, *replicas))
        self._owners, self._known = owners, known
        used = set(owners)
        left = [node for node in self._nodes.values() if node not in used]
        releasing: list[NodeConnection] = [*left, *([self._node] if self._node is not None else [])]
        waiting = [command for node in releasing for command in node.release()]
        for node in left:
            del self._nodes[node.address]
            self._closing.start(node.close())
        for command in [
            each for each in waiting if isinstance(each, _SlotCommand)
        ]:  # not what only asked before one
            self._dispatch(command)
