"""Tell other services of the process's start, health and stop, without waiting for anything."""

import asyncio
import os
import socket
import time
from typing import Final, Self

from hybridkit.errors import HybridkitError
from hybridkit.events import Event
from hybridkit.events.process import HealthDegraded, HealthRestored, ServiceStarted, ServiceStopping
from hybridkit.lifespan import Health, Readiness
from hybridkit.messaging import RobustPublisher
from hybridkit.observability import get_logger
from hybridkit.settings import ServiceSettings

LOOK_SECONDS: Final = 5.0
"""The interval of looks at the readiness, which others may ask for more often or never."""

_log = get_logger("hybridkit.process")


class ProcessEvents:
    """Publishes an event at each change of the process's readiness, from the start to the stop.

    Args:
        publisher: the publisher; what it can't send now is lost.
        settings: the settings, which name the service.
        health: the health that is told of.
        look_seconds: the interval of looks at the readiness.
    """

    def __init__(
        self,
        publisher: RobustPublisher,
        settings: ServiceSettings,
        health: Health,
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._publisher = publisher
        self._service = settings.service_name
        self._version = settings.service_version
        self._instance = f"{socket.gethostname()}:{os.getpid()}"
        self._health = health
        self._look_seconds = look_seconds
        self._is_told = False
        self._degraded_since: float | None = None
        self._looking: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"ProcessEvents({self._service!r}, {self._instance!r})"

    async def __aenter__(self) -> Self:
        """Begin to look."""
        self._health.on_change(self._tell)
        self._looking = asyncio.create_task(self._look(), name="hybridkit process events")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._look_seconds)
            await self._health.readiness()

    def _tell(self, readiness: Readiness) -> None:
        who = {"service": self._service, "instance": self._instance}
        if readiness.status == "draining":
            self._publish(ServiceStopping(**who))
            return
        if not self._is_told:
            self._is_told = True
            self._publish(ServiceStarted(**who, version=self._version))
        if readiness.status == "not_ready":
            self._degraded_since = time.monotonic()
            down = {name: it.detail or "" for name, it in readiness.dependencies.items() if not it.up}
            self._publish(HealthDegraded(**who, reasons=down))
        elif self._degraded_since is not None:
            seconds = round(time.monotonic() - self._degraded_since, 1)
            self._degraded_since = None
            self._publish(HealthRestored(**who, degraded_seconds=seconds))

    def _publish(self, event: Event) -> None:
        try:
            self._publisher.publish_nowait(event)
        except HybridkitError as error:
            _log.warning("an event of the process was lost", event_type=event.message_type, reason=str(error))
