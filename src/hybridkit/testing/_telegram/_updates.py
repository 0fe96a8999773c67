"""The updates that wait for the bot, and the two ways to them: `getUpdates` and the webhook."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

MAX_UPDATES_AT_ONCE: Final = 100
FIRST_UPDATE_ID: Final = 1001

# Whose absence in `allowed_updates` means that they are not delivered: https://core.telegram.org/bots/api#getupdates
_ONLY_WHEN_NAMED: Final = frozenset({"chat_member", "message_reaction", "message_reaction_count"})


class Updates:
    """Updates by their ids, and those of them that the bot has not confirmed.

    Args:
        changed: is called after each change.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.confirmed_update_id = 0
        self._changed = changed
        self._known: dict[int, dict[str, Any]] = {}
        self._pending: set[int] = set()
        self._again: set[int] = set()
        self._next_id = FIRST_UPDATE_ID
        self._allowed: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Updates({len(self._known)} known, {len(self._pending)} pending)"

    def __getitem__(self, update_id: int) -> dict[str, Any]:
        return self._known[update_id]

    @property
    def next_id(self) -> int:
        """The id of the next update."""
        return self._next_id

    @property
    def pending(self) -> list[int]:
        """The ids of those that wait, the oldest first."""
        return sorted(self._pending | self._again)

    def allow(self, types: Iterable[str] | None) -> None:
        """Deliver these types of updates from now on; None leaves it as it is, and an empty list is Telegram's default.

        As at Telegram, this doesn't concern the updates that have come before.
        """
        if types is not None:
            self._allowed = frozenset(types)

    def add(self, update: Mapping[str, Any]) -> int:
        """Keep an update until it is confirmed, unless the bot doesn't want its type, and return its id."""
        update_id = self._next_id
        self._next_id += 1
        self._known[update_id] = {"update_id": update_id, **update}
        if self._is_wanted(update):
            self._pending.add(update_id)
            self._changed()
        return update_id

    def _is_wanted(self, update: Mapping[str, Any]) -> bool:
        if self._allowed:
            return any(name in self._allowed for name in update)
        return not any(name in _ONLY_WHEN_NAMED for name in update)

    def redeliver(self, update_id: int) -> None:
        """Deliver an update once more.

        Raises:
            KeyError: no update has had this id.
        """
        self._again.add(self._known[update_id]["update_id"])
        self._changed()

    def confirm_below(self, offset: int) -> None:
        """Forget all updates below the offset of a `getUpdates` call."""
        self.confirmed_update_id = max(self.confirmed_update_id, offset - 1)
        self._pending = {each for each in self._pending if each > self.confirmed_update_id}
        self._changed()  # also ends an older poll

    def take(self, limit: int) -> list[dict[str, Any]]:
        """Return the oldest updates for a `getUpdates` call; they still wait for their confirmation."""
        taken = self.pending[: min(limit, MAX_UPDATES_AT_ONCE)]
        self._again.difference_update(taken)
        return [self._known[update_id] for update_id in taken]

    def confirm(self, update_id: int) -> None:
        """Forget one update, which the webhook has accepted."""
        self._pending.discard(update_id)
        self._again.discard(update_id)
        self._changed()

    def is_confirmed(self, update_id: int) -> bool:
        """Return whether the bot has confirmed an update."""
        return update_id in self._known and update_id not in self._pending


def chat_of(update: Mapping[str, Any]) -> object:
    """Return what updates share that are delivered in order: their chat or user, or the update itself."""
    event = _members(next((update[name] for name in update if name != "update_id"), None))
    message = _members(event.get("message"))  # a button's message has the chat
    for named in (message, event):
        for owner in ("chat", "from", "user"):
            if "id" in (found := _members(named.get(owner))):
                return found["id"]
    return update["update_id"]


def _members(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
