"""Find the sagas whose timer was lost, and send it again: the row has the truth about time, the message only wakes.

A queue that was purged, a parked or a redriven timer then costs minutes, never a saga.
"""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

from hybridkit.clients import Find
from hybridkit.codec import now
from hybridkit.errors import HybridkitError, NotFoundError, StaleVersionError
from hybridkit.ids import derived_id
from hybridkit.messaging import RobustPublisher
from hybridkit.observability import get_logger, metrics
from hybridkit.resources import Filter
from hybridkit.sagas._commits import DataClient
from hybridkit.sagas._declaration import SagaDeclaration
from hybridkit.sagas._messages import timer_class
from hybridkit.sagas._records import SAGAS, SagaRecord, SagaStatus
from hybridkit.sagas._serving import LIVE, unserved

SWEEP_SECONDS: Final = 60.0
OVERDUE: Final = timedelta(seconds=90)
SLOT_SECONDS: Final = 300
"""The replicas send one timer for a wait in each such time: its id is the same, so the guard lets one of them run."""
PAGE_SIZE: Final = 100
MAX_FORGOTTEN: Final = 1_000
"""The most rows that one look deletes."""
MAX_TIMERS: Final = 10_000
"""The most timers that one look sends; the next look sends the others."""

_log = get_logger("hybridkit.sagas")


class Sweep:
    """The search for lost timers of one saga.

    Args:
        saga: the declaration.
        client: the data service with the rows.
        publisher: sends the timers.
    """

    def __init__(self, saga: SagaDeclaration[Any], client: DataClient, publisher: RobustPublisher) -> None:
        self._saga = saga
        self._client = client
        self._publisher = publisher

    def __repr__(self) -> str:
        return f"Sweep({self._saga.name!r})"

    async def run(self) -> None:
        """Look every minute, until it is cancelled; an error is logged, and the next minute looks again."""
        while True:
            try:
                await self.look()
                await self.measure()
                await self.forget()
            except HybridkitError as error:
                _log.warning("lost timers not looked for", saga=self._saga.name, error=str(error))
            except Exception as error:  # noqa: BLE001 - whatever it is, the next minute looks again
                _log.error("lost timers not looked for", saga=self._saga.name, exc_info=error)
            await asyncio.sleep(SWEEP_SECONDS)

    async def look(self) -> int:
        """Send the timers that are overdue by more than 90 seconds, and return their number."""
        moment, found = now(), 0
        async for record in self._find(*self._overdue(moment)).order_by("wake_at").page_size(PAGE_SIZE):
            await self._send(record, moment)
            found += 1
            if found == MAX_TIMERS:
                break
        if found:
            _log.warning("lost timers sent again", saga=self._saga.name, count=found)
        return found

    async def measure(self) -> None:
        """Set the gauges of sagas that have not ended."""
        name = self._saga.name
        running = SAGAS["status"] == SagaStatus.RUNNING
        conditions: dict[str, tuple[Filter, ...]] = {
            str(state.value): (running, SAGAS["state"] == str(state.value)) for state in self._saga.states
        }
        conditions[SagaStatus.UNDOING.value] = (SAGAS["status"] == SagaStatus.UNDOING,)
        for label, where in conditions.items():
            metrics.live_sagas.labels(name, label).set(await self._find(*where).count())
        metrics.failed_sagas.labels(name).set(await self._find(~SAGAS["error"].is_null()).count())
        moment = now()
        metrics.overdue_sagas.labels(name).set(await self._find(*self._overdue(moment)).count())
        groups = await unserved(self._saga, self._client)
        metrics.unserved_sagas.labels(name).set(sum(group.sagas for group in groups))
        for group in groups:
            _log.error(
                "live sagas can't be served by this code",
                saga=name,
                state=group.state,
                definition=group.definition,
                count=group.sagas,
                reason=group.reason,
            )
        oldest = await self._find(LIVE).order_by("created_at").first()
        age = timedelta(0) if oldest is None else moment - oldest.created_at
        metrics.saga_oldest.labels(name).set(max(age.total_seconds(), 0.0))

    async def forget(self) -> int:
        """Delete the rows of sagas that ended long ago, and return their number; one with an error stays."""
        ended = [status for status in SagaStatus if status.has_ended]
        long_ago = SAGAS["ended_at"] < now() - self._saga.keep
        found = self._find(SAGAS["status"].in_(ended), long_ago, SAGAS["error"].is_null())
        page = await found.page_size(MAX_FORGOTTEN).page()
        for record in page.items:
            with suppress(NotFoundError, StaleVersionError):  # another replica was faster
                await self._client.delete(SAGAS, record)
        return len(page.items)

    def _find(self, *conditions: Filter) -> Find[SagaRecord]:
        return self._client.find(SAGAS).where(SAGAS["saga"] == self._saga.name, *conditions)

    def _overdue(self, moment: datetime) -> tuple[Filter, ...]:
        return LIVE, SAGAS["wake_at"] < moment - OVERDUE

    async def _send(self, record: SagaRecord, moment: datetime) -> None:
        timer = timer_class(self._saga.name)(saga_id=record.id, entry=record.entry)
        slot = int(moment.timestamp()) // SLOT_SECONDS
        timer.identify_as(derived_id(f"saga:{record.id}", f"timer {record.entry} {slot}"), moment)
        await self._publisher.send(timer)
