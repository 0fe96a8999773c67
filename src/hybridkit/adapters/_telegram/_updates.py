"""The state of delivered updates, and the offset that confirms those that are finished.

Telegram forgets every update below the offset of a `getUpdates` call, so an offset may pass an update only when its
handler has finished, or when the update is stored on the shelf. Until then each answer has the update again, among new
ones.

https://core.telegram.org/bots/api#getupdates
"""

from collections.abc import Collection


class UpdateLog:
    """The updates that Telegram has delivered and not forgotten yet, and those whose handlers run."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._shelved: set[int] = set()
        """The running updates that are on the shelf, so that Telegram may forget them."""
        self._confirmable: set[int] = set()
        """The updates that Telegram has not forgotten yet and may forget: finished ones and those on the shelf."""

    def __repr__(self) -> str:
        return (
            f"UpdateLog(running={sorted(self._running)}, shelved={sorted(self._shelved)},"
            f" confirmable={sorted(self._confirmable)})"
        )

    @property
    def unfinished(self) -> Collection[int]:
        """The running updates that no offset may pass."""
        return self._running - self._shelved

    @property
    def unconfirmed_count(self) -> int:
        """The number of updates that Telegram delivers again unless an offset passes them."""
        return len(self.unfinished) + len(self._confirmable)

    @property
    def offset(self) -> int | None:
        """The offset for the next `getUpdates`; None when there is nothing to confirm.

        With None Telegram starts at its oldest update. That is right also after a week without updates, when Telegram
        goes on with a random id, which may be lower.
        """
        oldest = min(self.unfinished, default=None)
        passed = [number for number in self._confirmable if oldest is None or number < oldest]
        return max(passed) + 1 if passed else None

    def begin(self, update_id: int, *, shelved: bool = False) -> bool:
        """Start an update, and return False when it is known already and must not run again.

        Args:
            update_id: the id of the update.
            shelved: whether the update comes from the shelf.
        """
        if update_id in self._running or update_id in self._confirmable:
            return False
        self._running.add(update_id)
        if shelved:
            self._shelved.add(update_id)
        return True

    def mark_shelved(self, update_ids: Collection[int]) -> Collection[int]:
        """Note that updates are on the shelf, and return those that have finished meanwhile."""
        shelved = self._running.intersection(update_ids)
        self._shelved |= shelved
        self._confirmable |= shelved
        return set(update_ids) - shelved

    def is_shelved(self, update_id: int) -> bool:
        """Return whether an update is on the shelf."""
        return update_id in self._shelved

    def finish(self, update_id: int) -> None:
        """Note that the handler of an update has ended, with success or not."""
        if update_id not in self._shelved:
            self._confirmable.add(update_id)
        self.abandon(update_id)

    def abandon(self, update_id: int) -> None:
        """Note that the handler was cancelled, so that the update is delivered again by Telegram or the shelf."""
        self._running.discard(update_id)
        self._shelved.discard(update_id)

    def confirmed(self, offset: int | None) -> None:
        """Note that Telegram has answered a call with that offset."""
        if offset is not None:
            self._confirmable = {number for number in self._confirmable if number >= offset}
