"""The projections of a process, from the start of a worker to its end."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Final, Self

from hybridkit._tasks import TaskSet
from hybridkit.clients._client import PostgresDataClient
from hybridkit.clients._projections._follower import Follower, Pauses, ReadLog
from hybridkit.errors import DeclarationError
from hybridkit.streams import LogPage, Projection

_END_SECONDS: Final = 1.0


class ProjectionRunner:
    """Projections that run inside the block; each follows its stream on its own, so one that fails stops no other.

    Args:
        projections: the projections.
        client: the client of the data service with their positions and records.
        read: returns what reads the log of a projection's stream; by default the client does.
        pauses: the times between two looks.

    Attributes:
        followers: each projection of this process by its id.

    Raises:
        DeclarationError: two of them have the same name and version, or one has no handler.
    """

    def __init__(
        self,
        projections: Sequence[Projection],
        client: PostgresDataClient,
        *,
        read: Callable[[Projection], ReadLog] | None = None,
        pauses: Pauses | None = None,
    ) -> None:
        for name, count in Counter(projection.id for projection in projections).items():
            if count > 1:
                raise DeclarationError(
                    f"{count} projections are called {name}: give each a name or version of its own"
                )
        if empty := [projection.id for projection in projections if not projection.events]:
            raise DeclarationError(f"{', '.join(empty)}: a projection without a handler projects nothing")
        reads = read or partial(log_reader, client)
        self.followers = {each.id: Follower(each, client, reads(each), pauses=pauses) for each in projections}
        self._tasks = TaskSet()

    def __repr__(self) -> str:
        return f"ProjectionRunner({list(self.followers)}, running={len(self._tasks)})"

    async def __aenter__(self) -> Self:
        for name, follower in self.followers.items():
            self._tasks.start(follower.run(), name=f"hybridkit projection {name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.drain(budget_seconds=_END_SECONDS)

    async def drain(self, *, budget_seconds: float) -> bool:
        """Begin no further commit, and wait for those that run; one that doesn't end in time is cancelled.

        A commit that is cancelled counts as a whole or not at all, and another run goes on from there.

        Args:
            budget_seconds: the time for all of it.

        Returns:
            Whether all ended in time.
        """
        for follower in self.followers.values():
            follower.stop()
        if await self._tasks.wait(seconds=budget_seconds):
            return True
        await self._tasks.cancel(seconds=_END_SECONDS)
        return False

    async def probe(self, projection_id: str) -> str:
        """Return the state of a projection in one sentence, for `/ready`.

        Raises:
            UnavailableError: it has failed at an event, or its data service doesn't answer.
        """
        return self.followers[projection_id].probe()


def log_reader(client: PostgresDataClient, projection: Projection) -> ReadLog:
    """Return what reads the log of a projection's stream with a client."""

    async def read(after: str | None) -> LogPage:
        # All types, so that the position moves on past those without a handler, and they are not read again.
        return await client.log(projection.source, after=after)

    return read
