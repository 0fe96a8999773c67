"""The event loop that a connection belongs to: used in another one, or after a fork, it would never get a reply."""

import asyncio
import os

from hybridkit.errors import MisuseError


class LoopAffinity:
    """The process and the running event loop, at the time when this is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"LoopAffinity(process={self._process})"

    def check(self, what: str) -> None:
        """Refuse to go on in another process or event loop.

        Args:
            what: the subject of the error message.

        Raises:
            MisuseError: the caller is in a fork of the process, in another event loop, or in a thread without one.
        """
        if os.getpid() != self._process:
            raise MisuseError(f"{what} was opened before this process was forked; open one in here")
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            raise MisuseError(
                f"{what} was opened in an event loop, and is used in a thread without one;"
                " hand the call over with `loop.call_soon_threadsafe`"
            ) from None
        if here is not self._loop:
            raise MisuseError(f"{what} was opened in another event loop; open one in this one")
