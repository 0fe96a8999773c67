"""Coalescing: reads of one moment become one request, for a client with `coalesce=True`.

A hundred tasks that each `get` a record in the same tick of the event loop cost one `:batch_get`. Only calls that
belong together are put together: of one resource, and of one context (request, user, deadline). So no call has
another request's deadline, and no request id stands for another request's reads. Calls outside of any context are put
together with each other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import batched
from typing import Any

from hybridkit._tasks import TaskSet
from hybridkit.context import bound
from hybridkit.contract import MAX_BATCH
from hybridkit.errors import NotFoundError, UnavailableError
from hybridkit.resources import Record, Resource
from hybridkit.resources._resource import AnyResource

type GetOne = Callable[[AnyResource, Any], Awaitable[Any]]
type GetBatch = Callable[[AnyResource, Sequence[Any]], Awaitable[Sequence[Any]]]
type Waiting = dict[Any, list[asyncio.Future[Any]]]
"""Calls that become one request: a future for each caller, by id."""
type GroupKey = tuple[AnyResource, tuple[str, str | None, float | None] | None]


class Coalescer:
    """Collects until the event loop has run what is ready, then asks once for each group.

    Args:
        get_one: reads one record, for a group with a single id.
        get_batch: reads up to 1,000 records, in the order of their ids, None for each that is not there.
    """

    def __init__(self, get_one: GetOne, get_batch: GetBatch) -> None:
        self._get_one = get_one
        self._get_batch = get_batch
        self._groups: dict[GroupKey, Waiting] = {}
        self._requests = TaskSet()

    def __repr__(self) -> str:
        return f"Coalescer({len(self._groups)} groups, {len(self._requests)} requests under way)"

    async def get[RecordT: Record[Any]](self, resource: Resource[RecordT, Any, Any], id: Any) -> RecordT:
        """Return the record with that id.

        Raises:
            NotFoundError: there is no such record; callers that asked for others get theirs.
        """
        loop = asyncio.get_running_loop()
        context = bound()
        whose = None if context is None else (context.request_id, context.user_id, context.deadline)
        key = (resource, whose)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = {}
            # Runs after all that is ready now, in a copy of this caller's context, and so does the request.
            loop.call_soon(self._send, key)
        # A future for each caller: one that is cancelled takes only its own with it.
        future: asyncio.Future[RecordT] = loop.create_future()
        group.setdefault(id, []).append(future)
        return await future

    async def aclose(self) -> None:
        """End the requests that are under way; callers that still wait get an `UnavailableError`."""
        await self._requests.cancel()

    def _send(self, key: GroupKey) -> None:
        resource, _ = key
        wanted = [
            (record_id, futures)
            for record_id, futures in self._groups.pop(key).items()
            if not all(future.cancelled() for future in futures)  # callers may leave before the send
        ]
        for some in batched(wanted, MAX_BATCH):
            task = self._requests.start(self._request(resource, dict(some)))
            _Interest(task, [future for _, futures in some for future in futures])

    async def _request(self, resource: AnyResource, waiting: Waiting) -> None:
        try:
            records = await self._ask(resource, list(waiting))
        except (
            asyncio.CancelledError
        ):  # by `aclose`: `_Interest` cancels only where no future is left to settle
            _settle(waiting, UnavailableError("the client was closed before the answer came"))
            raise
        except Exception as error:  # noqa: BLE001 - each caller that waits gets it
            _settle(waiting, error)
            return
        for record, futures in zip(records, waiting.values(), strict=True):
            for future in futures:
                if future.done():
                    continue
                if record is None:
                    future.set_exception(NotFoundError(f"{resource.name} has no such record"))
                else:
                    future.set_result(record)

    async def _ask(self, resource: AnyResource, ids: list[Any]) -> Sequence[Any]:
        if len(ids) > 1:
            return await self._get_batch(resource, ids)
        return [await self._get_one(resource, ids[0])]


class _Interest:
    """Cancels a request once no caller waits for it any more."""

    def __init__(self, task: asyncio.Task[None], futures: list[asyncio.Future[Any]]) -> None:
        self._task = task
        self._left = len(futures)
        for future in futures:
            future.add_done_callback(self._leave)

    def _leave(self, _: asyncio.Future[Any]) -> None:
        self._left -= 1
        if self._left == 0:
            self._task.cancel()  # without effect where they have left because it has ended


def _settle(waiting: Waiting, error: Exception) -> None:
    for futures in waiting.values():
        for future in futures:
            if not future.done():
                future.set_exception(error)
