"""One established connection: writes commands, and gives each reply to the oldest command without one."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from hybridkit.coordination._redis._commands import Command
from hybridkit.coordination._redis._resp import INCOMPLETE, ReplyError, UnreadableReplyError, reply_reader


class Connection(Protocol):
    """An established connection: `OpenConnection`, or its slower stand-in `StreamedConnection`."""

    sent: deque[Command]
    """The commands without a reply, the oldest first."""

    sent_bytes: int
    """Their size."""

    takes_data: bool
    """Whether the socket takes data now."""

    is_open: bool
    """Whether commands can be sent; their owner is told of the end, also while it does not use the connection yet."""

    def write(self, commands: Iterable[Command]) -> None:
        """Send commands in one write."""
        ...

    def close(self, reason: str) -> None:
        """Close the socket at once; the commands without a reply go back to the owner."""
        ...


class Owner(Protocol):
    """The receiver of what does not go to a command's caller."""

    def refused(self, command: Command, error: ReplyError) -> None:
        """Handle a command that Redis has answered with an error."""
        ...

    def lost(self, connection: Connection, reason: str) -> None:
        """Handle the end of the connection."""
        ...

    def writable(self) -> None:
        """Go on to write: the socket takes data again."""
        ...


class OpenConnection(asyncio.Protocol):
    """The protocol of an authenticated socket that another protocol has opened.

    A caller that is cancelled leaves its command in the row, so the reply is read and dropped: replies never shift.

    Args:
        transport: the socket.
        owner: gets errors and the end.
        keep: the object that would close the socket if it were collected.
    """

    def __init__(self, transport: asyncio.Transport, owner: Owner, *, keep: object) -> None:
        self.sent: deque[Command] = deque()
        self.sent_bytes = 0
        self.takes_data = True
        self.is_open = True
        self._owner = owner
        self._keep = keep
        self._reader = reply_reader()
        self._transport = transport
        transport.set_protocol(self)
        transport.resume_reading()

    def __repr__(self) -> str:
        return f"OpenConnection(sent={len(self.sent)}, open={self.is_open})"

    def write(self, commands: Iterable[Command]) -> None:
        """Send commands in one write."""
        self.sent.extend(commands)
        data = b"".join([command.payload for command in commands])
        self.sent_bytes += len(data)
        self._transport.write(data)

    def close(self, reason: str) -> None:
        """Close the socket at once; the commands without a reply go back to the owner."""
        if self.is_open:
            self.is_open = False
            self._transport.abort()
            self._owner.lost(self, reason)

    # ── what the event loop calls ────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Give each complete reply to its command."""
        gets, sent = self._reader.gets, self.sent
        try:
            self._reader.feed(data)
            # A reply may close the connection: what came after it belongs to commands that are sent again.
            while self.is_open and (reply := gets()) is not INCOMPLETE:
                command = sent.popleft()
                self.sent_bytes -= len(command.payload)
                if type(reply) is ReplyError:
                    self._owner.refused(command, reply)
                elif not command.reply.done():
                    command.reply.set_result(reply)
        except UnreadableReplyError as error:
            self.close(f"unreadable reply: {error}")
        except IndexError:
            self.close("a reply without a command")

    def connection_lost(self, exc: Exception | None) -> None:
        """Hand the commands without a reply back to the owner."""
        self.close("closed by Redis" if exc is None else f"{type(exc).__name__}: {exc}")

    def pause_writing(self) -> None:
        """Stop writing: the socket's buffer is full."""
        self.takes_data = False

    def resume_writing(self) -> None:
        """Go on writing."""
        self.takes_data = True
        self._owner.writable()
