"""Outcomes that Redis was sent and has not confirmed."""

import asyncio
from typing import Final

from hybridkit.coordination._redis._resp import Part
from hybridkit.errors import UnavailableError
from hybridkit.idempotency._records import COOLDOWN_SECONDS, Records
from hybridkit.idempotency._scripts import FINISH

MAX_UNSETTLED: Final = 1000
"""The most outcomes that are kept, of up to 32 KiB each. The oldest go first: their leases end soonest."""


class Unsettled:
    """The sender of unconfirmed outcomes: at once, then once a second while Redis is away, then all that have gathered.

    Until then such a claim looks held, and after its lease like one whose holder died. Each outcome carries its
    holder's token, so sending it twice or late changes nothing.

    Args:
        records: asks Redis.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._ends: dict[tuple[str, Part], tuple[Part, ...]] = {}
        self._telling: asyncio.Task[None] | None = None

    def add(self, key: str, token: Part, *arguments: Part) -> None:
        """Keep an outcome, with the arguments of `FINISH`, until Redis confirms it."""
        self._ends[key, token] = (token, *arguments)
        if len(self._ends) > MAX_UNSETTLED:
            del self._ends[next(iter(self._ends))]
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell(), name="hybridkit unsettled claims")

    async def _tell(self) -> None:
        while self._ends:
            try:
                claim, arguments = next(iter(self._ends.items()))
                await self._records.ask(FINISH, claim[0], *arguments)
                if self._ends.get(claim) is arguments:
                    del self._ends[claim]
            except UnavailableError:
                await asyncio.sleep(COOLDOWN_SECONDS)

    def __repr__(self) -> str:
        return f"Unsettled({len(self._ends)})"
