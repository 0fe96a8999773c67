"""The server of `run_api`: uvicorn with limits that hold before the application is called, and a stop in order.

```
SIGTERM → readiness turns red → event streams end → requests finish → the sockets close
```
"""

import asyncio
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

from hybridkit.adapters._running import Management
from hybridkit.errors import MissingExtraError

try:
    import uvicorn

    from hybridkit.adapters._http._connection import Connection, H11Connection
except ImportError:
    raise MissingExtraError("hybridkit.adapters.fastapi", extra="fastapi") from None

if TYPE_CHECKING:
    from fastapi import FastAPI

    from hybridkit.adapters._http._asgi import EventStreams
    from hybridkit.adapters._running import StopSignals
    from hybridkit.lifespan import ServiceResources
    from hybridkit.settings import ServiceSettings

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than our clients keep an idle connection (30 s), so that none is closed with a request on its way."""

DRAIN_SHARE: Final = 0.7
"""The share of `shutdown_seconds` for requests to finish; the rest is for closing their resources."""

CHECK_SECONDS: Final = 1.0
"""The interval of the checks for slow clients."""


async def serve(
    app: "FastAPI",
    settings: "ServiceSettings",
    stop: "StopSignals",
    *,
    management: Management = Management.OWN,
    sockets: list[socket.socket] | None = None,
    max_requests: int | None = None,
) -> None:
    """Start an application of `create_app`, and serve it until it is asked to stop.

    Args:
        app: the application.
        settings: its settings.
        stop: says when to stop, and when to hurry.
        management: whose the management port is.
        sockets: where to listen; None listens at the settings' host and port.
        max_requests: the number of requests after which to stop; None for no end.
    """
    app.state.settings, app.state.management = settings, management
    async with app.router.lifespan_context(app):
        stop.started(app.state.resources)
        await Server(app, settings, stop, max_requests=max_requests).serve(sockets)


class Server(uvicorn.Server):
    """Serves an application until it is asked to stop.

    The socket stays open until readiness is red, and no signal is raised again at the end.

    Args:
        app: an application of `create_app` whose lifespan has been entered.
        settings: host, port, and the time for a stop.
        stop: says when to stop, and when to hurry.
        max_requests: the number of requests after which to stop; None for no end.
    """

    def __init__(
        self,
        app: "FastAPI",
        settings: "ServiceSettings",
        stop: "StopSignals",
        *,
        max_requests: int | None = None,
    ) -> None:
        self._resources: ServiceResources = app.state.resources
        self._streams: EventStreams = app.state.event_streams
        self._stop = stop
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=_connection_class(),
                lifespan="off",  # opened around the server: an error in it is an exception, not a log line
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # its reading of lists believes more than the settings say
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                limit_max_requests=max_requests,
                timeout_graceful_shutdown=max(int(settings.shutdown_seconds * DRAIN_SHARE), 1),
            )
        )

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave the signals to `StopSignals`."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until asked to stop."""
        watching = [
            asyncio.create_task(self._watch_stop(), name="hybridkit stop"),
            asyncio.create_task(self._watch_peers(), name="hybridkit slow peers"),
        ]
        try:
            await super().serve(sockets)
        finally:
            for task in watching:
                task.cancel()

    async def _watch_stop(self) -> None:
        await self._stop.asked.wait()
        await self._resources.announce()
        self.should_exit = True
        self._streams.end()
        await self._stop.hurried.wait()
        for task in self.server_state.tasks:
            task.cancel()
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _watch_peers(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = time.monotonic()
            for connection in list(cast("set[object]", self.server_state.connections)):
                if isinstance(connection, Connection):
                    connection.check(now)


def _connection_class() -> type[asyncio.Protocol]:
    """Return the class with the parser in C when the extra `fast` is installed, otherwise the one in Python."""
    try:
        from hybridkit.adapters._http._httptools_connection import HttpToolsConnection  # noqa: PLC0415 - an extra of its own
    except ImportError:
        return H11Connection
    return HttpToolsConnection
