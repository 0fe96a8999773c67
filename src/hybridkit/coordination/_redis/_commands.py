"""Commands: encoded once, kept until their reply comes."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hybridkit.coordination._redis._resp import Part
from hybridkit.errors import UnavailableError

if TYPE_CHECKING:
    import asyncio

type ScriptCall = tuple["Script", Sequence[str], Sequence[Part]]
"""A script with its keys and arguments."""


class CommandRefusedError(UnavailableError):
    """Redis has answered a command with an error: it is out of memory, or the key has a value of another type."""


class Script:
    """A Lua script that Redis knows by its SHA-1, and that is sent whole where Redis does not know it.

    It may run twice with the same arguments: a connection that breaks leaves the first run in doubt, and the script is
    sent again. Its effect and its reply have to be the same then.

    Args:
        name: for logs.
        text: the Lua source.
    """

    __slots__ = ("_sha", "name", "text")

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        return f"Script({self.name!r})"

    def by_digest(self, keys: Sequence[str], arguments: Sequence[Part]) -> tuple[Part, ...]:
        """Return the command that runs the script by its SHA-1."""
        return "EVALSHA", self._sha, len(keys), *keys, *arguments

    def in_full(self, keys: Sequence[str], arguments: Sequence[Part]) -> tuple[Part, ...]:
        """Return the command that runs the script, and makes Redis know it."""
        return "EVAL", self.text, len(keys), *keys, *arguments


class Command:
    """A command under way.

    Attributes:
        payload: the command as bytes.
        reply: gets the reply or an error; its owner may cancel it at any time.
        deadline: the time of the event loop at which the caller stops to wait.
        is_final: whether it is not sent again on another connection.
        call: the script's call, for a server that does not know the script; None for a plain command.
    """

    __slots__ = ("call", "deadline", "is_final", "payload", "reply")

    def __init__(
        self,
        payload: bytes,
        reply: "asyncio.Future[Any]",
        deadline: float,
        call: "ScriptCall | None" = None,
        *,
        is_final: bool = False,
    ) -> None:
        self.payload = payload
        self.reply = reply
        self.deadline = deadline
        self.call = call
        self.is_final = is_final

    def fail(self, error: Exception) -> None:
        """Give the caller an error, unless it has left."""
        if not self.reply.done():
            self.reply.set_exception(error)
