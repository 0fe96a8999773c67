"""Which updates are done, and the offset that confirms those and no others.

Telegram forgets every update below the offset of a `getUpdates` call, so an offset may pass an update only when its
handler has finished, or when it is shelved. Until then the update comes again with each answer, among new ones,
and is recognised here.

https://core.telegram.org/bots/api#getupdates
"""

from collections.abc import Collection

__all__ = ["UpdateLog"]


class UpdateLog:
    """The updates that Telegram has delivered and not been told to forget, and those that run."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._shelved: set[int] = set()
        """Of those that run: shelved, so that Telegram may forget them."""
        self._confirmable: set[int] = set()
        """Finished, or shelved; Telegram still has them."""

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
        """How many Telegram will deliver again, unless an offset passes them."""
        return len(self.unfinished) + len(self._confirmable)

    @property
    def offset(self) -> int | None:
        """What the next `getUpdates` may confirm; None where there is nothing to confirm.

        None lets Telegram start at its oldest update, which is right also after a quiet week, when it goes on with a
        random, perhaps lower, number.
        """
        oldest = min(self.unfinished, default=None)
        passed = [number for number in self._confirmable if oldest is None or number < oldest]
        return max(passed) + 1 if passed else None

    def begin(self, update_id: int, *, shelved: bool = False) -> bool:
        """Take an update; False when it is known already and must not run again.

        Args:
            update_id: of the update.
            shelved: it was not delivered but shelved.
        """
        if update_id in self._running or update_id in self._confirmable:
            return False
        self._running.add(update_id)
        if shelved:
            self._shelved.add(update_id)
        return True

    def mark_shelved(self, update_ids: Collection[int]) -> Collection[int]:
        """These are shelved from now on; answers those that have finished meanwhile."""
        shelved = self._running.intersection(update_ids)
        self._shelved |= shelved
        self._confirmable |= shelved
        return set(update_ids) - shelved

    def is_shelved(self, update_id: int) -> bool:
        """Whether it is shelved."""
        return update_id in self._shelved

    def finish(self, update_id: int) -> None:
        """Its handler is through, well or badly."""
        if update_id not in self._shelved:
            self._confirmable.add(update_id)
        self.abandon(update_id)

    def abandon(self, update_id: int) -> None:
        """Its handler was broken off: it has to be delivered again, by Telegram or from where it is shelved."""
        self._running.discard(update_id)
        self._shelved.discard(update_id)

    def confirmed(self, offset: int | None) -> None:
        """Telegram has answered a call with that offset."""
        if offset is not None:
            self._confirmable = {number for number in self._confirmable if number >= offset}
