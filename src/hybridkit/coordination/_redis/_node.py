"""The connection to one node, made again whenever it is lost.

```
send ─► waiting ──(one write per turn)──► open.sent ──► reply
           ▲                                 │
           └────── the connection is lost ───┘     sent once more, within the command's deadline
```

A deadline that passes without a reply retires the connection: a server that is frozen, or a network path that has
become a black hole, looks healthy to TCP for minutes.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from hybridkit.coordination._failover import takes_no_writes
from hybridkit.coordination._redis._commands import Command, CommandRefusedError
from hybridkit.coordination._redis._open_connection import Connection
from hybridkit.coordination._redis._resp import ReplyError, encode
from hybridkit.errors import OverloadedError, UnavailableError
from hybridkit.observability import get_logger
from hybridkit.retry import Retry

_log = get_logger("hybridkit.coordination")

MAX_COMMANDS: Final = 20_000
MAX_BYTES: Final = 64 * 1024 * 1024
"""The commands without a reply, by number and size. More are refused: a server this far behind does not catch up."""

STABLE_SECONDS: Final = 1.0
"""A connection that lasted shorter than this does not make the pauses short again: a replica refuses each at once."""

_RECONNECT: Final = Retry.exponential(first_seconds=0.01, cap_seconds=0.25, attempts=sys.maxsize)

type Connect = Callable[["NodeConnection"], Awaitable[Connection]]
"""Opens an authenticated connection for its owner; an error says why it can't."""


class NodeConnection:
    """Commands to one node of Redis, over one connection at a time.

    Args:
        connect: opens a connection; it finds the address anew each time.
        name: the node in logs.
        timeout_seconds: the time for one attempt to connect, and the time after which a node without a connection
            counts as away: commands fail at once then, while the attempts go on.
    """

    def __init__(self, connect: Connect, *, name: str, timeout_seconds: float) -> None:
        self.name = name
        self._connect = connect
        self._timeout_seconds = timeout_seconds
        self.loop = asyncio.get_running_loop()
        self._open: Connection | None = None
        self._waiting: deque[Command] = deque()
        self._waiting_bytes = 0  # what is sent and has no reply yet is counted by the connection
        self._is_flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._pauses = _RECONNECT.pauses()
        self._opened_at = 0.0
        self._missing_since: float | None = None
        self._reason = ""
        self._is_closed = False

    def __repr__(self) -> str:
        state = "away" if self.is_away else "connecting" if self._open is None else "open"
        return f"NodeConnection({self.name!r}, {state}, waiting={len(self._waiting)})"

    @property
    def is_away(self) -> bool:
        """Whether there has been no connection for longer than a command waits."""
        missing_since = self._missing_since
        return missing_since is not None and self.loop.time() - missing_since > self._timeout_seconds

    @property
    def is_missing(self) -> bool:
        """Whether there should be a connection and is none."""
        return self._missing_since is not None

    def send(self, command: Command, *, even_if_away: bool = False) -> None:
        """Send a command with all others of this turn of the event loop; its `reply` gets the reply or an error.

        Errors of the reply:
            UnavailableError: there was no reply before the deadline, or the node is away. The command may have run.
            CommandRefusedError: Redis has answered with an error.
            OverloadedError: too many commands have no reply yet; this one was not sent.

        Args:
            command: may run twice without harm: it is sent again when its connection is lost.
            even_if_away: wait for the deadline also while the node is away.
        """
        opened, waiting = self._open, self._waiting
        size = self._waiting_bytes + len(command.payload)
        if opened is not None:
            is_too_much = (
                len(waiting) + len(opened.sent) >= MAX_COMMANDS or size + opened.sent_bytes > MAX_BYTES
            )
        elif self._is_closed or (self.is_away and not even_if_away):
            command.fail(self._unavailable())
            return
        else:
            is_too_much = len(waiting) >= MAX_COMMANDS or size > MAX_BYTES
        if is_too_much:
            command.fail(OverloadedError(f"too many commands wait for a reply of Redis at {self.name}"))
            return
        self._waiting_bytes = size
        waiting.append(command)
        if not self._is_flushing:
            self._is_flushing = True
            self.loop.call_soon(self._flush)

    async def close(self) -> None:
        """Close the connection; commands without a reply fail."""
        self._is_closed = True
        self._reason = "the client is closed"
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        if self._open is not None:
            self._open.close(self._reason)
        self._fail_waiting(deadline=float("inf"))
        await asyncio.sleep(0)  # a transport closes its socket in the next turn of the event loop

    def retire(self, reason: str) -> None:
        """Give up the present connection, if any, and open another."""
        if self._open is not None:
            self._open.close(reason)

    def release(self) -> list[Command]:
        """Close the connection until the next command, and return the commands without a reply, for another node."""
        self.retire("another node takes over")
        released = list(self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._missing_since = None
        return released

    # ── what the open connection tells ───────────────────────────────────────────────────────────

    def refused(self, command: Command, error: ReplyError) -> None:
        """Handle an error reply: send the script whole, look for the master, or fail the command."""
        if error.code == "NOSCRIPT" and command.call is not None:
            script, keys, arguments = command.call
            command.call = None
            command.payload = encode(script.in_full(keys, arguments))
            self._wait_first(command)
            self.writable()
        elif takes_no_writes(str(error)):
            self.retire(f"{error}")
            self._send_again(command, error)
        else:
            command.fail(CommandRefusedError(f"Redis refuses a command: {error}"))

    def lost(self, connection: Connection, reason: str) -> None:
        """Send what had no reply once more, over the next connection."""
        for command in reversed(connection.sent):
            self._send_again(command, reason)
        connection.sent.clear()
        if connection is not self._open:
            return
        now = self.loop.time()
        self._open, self._reason, self._missing_since = None, reason, now
        if self._is_closed:
            return
        # A server that refuses every command would fill the log.
        if now - self._opened_at >= STABLE_SECONDS:
            _log.warning("the connection to Redis is lost", node=self.name, reason=reason)
        self._fail_waiting(deadline=now)
        self._start_connecting()

    def writable(self) -> None:
        """Write what waits, in this turn."""
        if not self._is_flushing:
            self._is_flushing = True
            self.loop.call_soon(self._flush)

    # ── how ──────────────────────────────────────────────────────────────────────────────────────

    def _flush(self) -> None:
        self._is_flushing = False
        opened, waiting = self._open, self._waiting
        if opened is None:
            if waiting:  # they may have been released to another node
                self._start_connecting()
        elif opened.takes_data:
            opened.write(waiting)
            waiting.clear()
            self._waiting_bytes = 0
        self._set_timer()

    def _send_again(self, command: Command, why: object) -> None:
        if command.is_final or self._is_closed:
            command.fail(self._unavailable(str(why)))
        elif not command.reply.done():
            command.is_final = True
            self._wait_first(command)

    def _wait_first(self, command: Command) -> None:
        self._waiting.appendleft(command)
        self._waiting_bytes += len(command.payload)

    def _start_connecting(self) -> None:
        if self._connecting is None and not self._is_closed:
            if self._missing_since is None:
                self._missing_since = self.loop.time()
            self._connecting = self.loop.create_task(
                self._keep_connecting(), name=f"hybridkit redis {self.name}"
            )

    async def _keep_connecting(self) -> None:
        if self.loop.time() - self._opened_at < STABLE_SECONDS:
            await asyncio.sleep(next(self._pauses))
        else:
            self._pauses = _RECONNECT.pauses()
        was_away = False
        while True:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    opened = await self._connect(self)
                if opened.is_open:  # it may have been lost in the turn of its first reply
                    break
            except Exception as error:  # noqa: BLE001 - whatever the reason is, the next attempt may find it gone
                self._reason = f"{type(error).__name__}: {error}"
            if self.is_away and not was_away:
                was_away = True
                _log.warning("Redis does not answer", node=self.name, reason=self._reason)
            await asyncio.sleep(next(self._pauses))
        self._open, self._connecting = opened, None
        self._opened_at, self._missing_since = self.loop.time(), None
        if was_away:
            _log.info("Redis answers again", node=self.name)
        self._flush()

    def _set_timer(self) -> None:
        if self._timer is not None:
            return
        sent = self._open.sent if self._open is not None else None
        oldest = sent or self._waiting
        if oldest:
            self._timer = self.loop.call_at(oldest[0].deadline, self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._timer = None
        now = self.loop.time()
        opened = self._open
        if opened is not None and opened.sent and opened.sent[0].deadline <= now:
            opened.close("no reply before a command's deadline")
        self._fail_waiting(deadline=now)
        self._set_timer()

    def _fail_waiting(self, *, deadline: float) -> None:
        """Fail the waiting commands whose deadline is not later."""
        waiting = self._waiting
        self._waiting = deque(command for command in waiting if command.deadline > deadline)
        self._waiting_bytes = sum(len(command.payload) for command in self._waiting)
        for command in waiting:
            if command.deadline <= deadline:
                command.fail(self._unavailable())

    def _unavailable(self, reason: str | None = None) -> UnavailableError:
        return UnavailableError(f"no reply from Redis at {self.name}: {reason or self._reason}")
