"""Which updates are done, and the offset that confirms those and no others.

Telegram forgets every update below the offset of a `getUpdates` call, so an offset may pass an update only when its
handler has finished. Until then the update comes again with each answer, among new ones, and is recognised here.

https://core.telegram.org/bots/api#getupdates
"""

__all__ = ["UpdateLog"]


class UpdateLog:
    """The updates that Telegram has delivered and not been told to forget."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._finished: set[int] = set()

    def __repr__(self) -> str:
        return f"UpdateLog(running={sorted(self._running)}, finished={sorted(self._finished)})"

    @property
    def is_idle(self) -> bool:
        """Whether nothing is running."""
        return not self._running

    @property
    def offset(self) -> int | None:
        """What the next `getUpdates` may confirm; None where there is nothing to confirm.

        None lets Telegram start at its oldest update, which is right also after a quiet week, when it goes on with a
        random, perhaps lower, number.
        """
        oldest_running = min(self._running, default=None)
        passed = [number for number in self._finished if oldest_running is None or number < oldest_running]
        return max(passed) + 1 if passed else None

    def begin(self, update_id: int) -> bool:
        """Take an update that was delivered; False when it is known already and must not run again."""
        if update_id in self._running or update_id in self._finished:
            return False
        self._running.add(update_id)
        return True

    def finish(self, update_id: int) -> None:
        """Its handler is through, well or badly."""
        self._running.discard(update_id)
        self._finished.add(update_id)

    def abandon(self, update_id: int) -> None:
        """Its handler was broken off: Telegram has to deliver it again."""
        self._running.discard(update_id)

    def confirmed(self, offset: int | None) -> None:
        """Telegram has answered a call with that offset."""
        if offset is not None:
            self._finished = {number for number in self._finished if number >= offset}
