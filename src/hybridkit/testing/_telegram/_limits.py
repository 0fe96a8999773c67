"""Telegram's limits for messages: those that a bot's sender has to keep.

At most 30 messages in a second, 20 in a minute to one group, and to one chat one in a second, with short bursts.

https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from hybridkit.testing._telegram._records import Params, RefusedError


class _Window(NamedTuple):
    name: str
    most: int
    seconds: float


_BOT: Final = _Window("bot", 30, 1.0)
_GROUP: Final = _Window("group", 20, 60.0)
_CHAT: Final = _Window("chat", 8, 5.0)  # one in a second, and three more at once

_METHODS: Final = ("send", "editmessage", "copymessage", "forwardmessage")


class LimitViolation(NamedTuple):
    """A call that one of Telegram's limits forbids.

    Attributes:
        limit: `bot` (30 messages a second), `chat` (one a second, with short bursts), `group` (20 a minute), or
            `retry_after` (a call to a chat before the time that a 429 has named).
        method: the method of the call.
        chat_id: the chat, as text.
    """

    limit: str
    method: str
    chat_id: str


class Limits:
    """Counts the messages of each chat, and notes the calls that are too many.

    Args:
        enforces: whether such a call is refused, with 429; it is noted anyway.
        clock: gives seconds that never go back.
    """

    def __init__(self, *, enforces: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.violations: list[LimitViolation] = []
        self._enforces = enforces
        self._clock = clock
        self._sent: dict[str, deque[float]] = {}
        self._not_before: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Limits(enforces={self._enforces}, violations={len(self.violations)})"

    def hold(self, chat_id: str, seconds: float) -> None:
        """Note that the bot was told to leave a chat alone for a time."""
        self._not_before[chat_id] = self._clock() + seconds

    def check(self, method: str, params: Params) -> None:
        """Count a call, if it is one that sends or edits a message.

        Raises:
            RefusedError: the call is over a limit, and limits are enforced.
        """
        name = method.lower()
        if not name.startswith(_METHODS) or name == "sendchataction":
            return
        now = self._clock()
        chat_id = params.get("chat_id", "")
        if now < self._not_before.get(chat_id, 0.0):
            self.violations.append(LimitViolation("retry_after", method, chat_id))
        windows = [("", _BOT)]
        if chat_id:
            windows.append((chat_id, _GROUP if chat_id.startswith(("-", "@")) else _CHAT))
        waits = 0.0
        for key, window in windows:
            sent = self._sent.setdefault(key, deque())
            while sent and sent[0] <= now - window.seconds:
                sent.popleft()
            if len(sent) >= window.most:
                self.violations.append(LimitViolation(window.name, method, chat_id))
                waits = max(waits, sent[0] + window.seconds - now)
        if waits and self._enforces:
            seconds = math.ceil(waits)
            self.hold(chat_id, seconds)
            raise RefusedError(429, f"Too Many Requests: retry after {seconds}", retry_after_seconds=seconds)
        for key, _ in windows:
            self._sent[key].append(now)
