"""One established connection: writes commands, and gives each reply to the oldest command without one."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Protocol, cast

from hybridkit.coordination._redis._commands import Command
from hybridkit.coordination._redis._resp import INCOMPLETE, ReplyError, UnreadableReplyError, reply_reader


class Connection(Protocol):
    """An established connection: `OpenConnection`, or its slower stand-in `StreamedConnection`."""

    sent: deque[Command]
    """The commands without a reply, the oldest first."""

    takes_data: bool
    """Whether the socket takes data now."""

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
    """A protocol on an authenticated socket.

    A caller that is cancelled leaves its command in the row, so the reply is read and dropped: replies never shift.

    Args:
        owner: gets errors and the end.
        keep: the objects that would close the socket if they were collected.
    """

    def __init__(self, owner: Owner, *, keep: object = None) -> None:
        self.sent: deque[Command] = deque()
        self.takes_data = True
        self._owner = owner
        self._keep = keep
        self._reader = reply_reader()
        self._transport: asyncio.Transport | None = None

    def __repr__(self) -> str:
        return f"OpenConnection(sent={len(self.sent)}, open={self._transport is not None})"

    def take_over(self, transport: asyncio.Transport) -> None:
        """Become the protocol of a socket that another one has opened."""
        self.connection_made(transport)
        transport.set_protocol(self)
        transport.resume_reading()

    def write(self, commands: Iterable[Command]) -> None:
        """Send commands in one write."""
        transport = self._transport
        if transport is None:
            return
        self.sent.extend(commands)
        transport.write(b"".join([command.payload for command in commands]))

    def close(self, reason: str) -> None:
        """Close the socket at once; the commands without a reply go back to the owner."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        transport.abort()
        self._owner.lost(self, reason)

    # ── what the event loop calls ────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Give each complete reply to its command."""
        gets, sent = self._reader.gets, self.sent
        try:
            self._reader.feed(data)
            # A reply may close the connection: what came after it belongs to commands that are sent again.
            while self._transport is not None and (reply := gets()) is not INCOMPLETE:
                command = sent.popleft()
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
