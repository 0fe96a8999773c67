"""Several workers for one API: processes that share its socket, under Gunicorn.

```python
run_api(app, workers=4)
```

or, with the options of Gunicorn's own command:

```bash
gunicorn api_service.main:app --worker-class hybridkit.adapters.gunicorn.ApiWorker --workers 4 --bind 0.0.0.0:8000
```

Each worker is a process of its own kind: it opens its own resources, and stops in order. They share the port of the
API and the management port, whose `/metrics` adds up all of them and whose `/ready` is that of the worker which takes
the connection. Gunicorn replaces a worker that ends, and kills one whose event loop has not turned for `timeout`
seconds. A worker of the first ones that can't start ends them all, with exit code 3.

SIGTERM stops all in order, SIGQUIT after it ends what still runs.
"""

import asyncio
import faulthandler
import math
import os
import signal
import sys
import traceback
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from hybridkit._worker_metrics import VARIABLE, forget_ended_workers, share_metrics
from hybridkit.errors import HybridkitError, MissingExtraError

try:
    from gunicorn.app.base import BaseApplication
    from gunicorn.glogging import Logger
    from gunicorn.workers.base import Worker
except ImportError:
    raise MissingExtraError(__name__, extra="gunicorn") from None

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI

    from hybridkit.adapters._running import StopSignals
    from hybridkit.settings import ServiceSettings

__all__ = ["ApiWorker", "run_workers"]

BOOT_FAILED: Final = 3
"""The exit code with which a worker ends the whole server, https://docs.gunicorn.org/en/stable/custom.html."""

HEARTBEAT_SECONDS: Final = 1.0
SPARE_SECONDS: Final = 2
"""How much longer than a worker's own stop Gunicorn waits for it before it kills it."""


class ApiWorker(Worker):  # type: ignore[misc] # Gunicorn has no annotations
    """A worker of Gunicorn that serves an application of `create_app`."""

    @classmethod
    def setup(cls) -> None:
        """Let the metrics of the workers be added up; Gunicorn calls it before it loads the application."""
        if not _halting:
            share_metrics()
            _halting.append(_Halting())

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._has_started = False
        forget_ended_workers()

    def init_signals(self) -> None:
        """Leave the signals to the event loop, which takes them over in `run`."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # to reopen log files, which we don't have

    def run(self) -> None:
        """Serve until told to stop.

        Raises:
            SystemExit: the start failed.
        """
        from hybridkit.adapters._running import FAILED, run_process  # noqa: PLC0415 - loads prometheus-client; see `setup`

        faulthandler.enable()  # Gunicorn aborts a worker that hangs: its stack says where
        app = cast("FastAPI", self.wsgi)
        try:
            run_process(app.state.settings_class, partial(self._serve, app))
        except (Exception, SystemExit) as error:
            if self._has_started or self.age > self.cfg.workers:
                raise  # it is replaced: the others serve on, and what it lacks may come back
            if not isinstance(error, SystemExit):
                traceback.print_exception(error)
            elif isinstance(error.code, str):
                print(error.code, file=sys.stderr)  # noqa: T201 - the settings' problems, for whoever starts it
            sys.exit(BOOT_FAILED if _halting[0].is_first() else FAILED)

    async def _serve(self, app: "FastAPI", settings: "ServiceSettings", stop: "StopSignals") -> None:
        from hybridkit.adapters._running import Management  # noqa: PLC0415 - as above
        from hybridkit.adapters._server import serve  # noqa: PLC0415

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGQUIT, stop.receive, signal.SIGQUIT)
        beating = asyncio.create_task(self._beat(stop), name="hybridkit worker heartbeat")
        sockets: list[socket.socket] = [listener.sock for listener in cast("list[Any]", self.sockets)]
        limit = self.max_requests if self.cfg.max_requests else None
        try:
            await serve(
                app,
                settings,
                stop,
                management=Management.SHARED,
                sockets=sockets,
                max_requests=limit,
            )
        finally:
            self._has_started = stop.has_started
            beating.cancel()
            loop.remove_signal_handler(signal.SIGQUIT)

    async def _beat(self, stop: "StopSignals") -> None:
        """Tell Gunicorn that the loop turns, and stop when Gunicorn itself is gone."""
        while True:
            self.notify()
            if os.getppid() != self.ppid and not stop.asked.is_set():
                stop.receive(signal.SIGTERM)
            await asyncio.sleep(HEARTBEAT_SECONDS)


class _Halting:
    """The one worker whose exit code halts the server, of all that can't start.

    Gunicorn halts at the first `BOOT_FAILED`. A second one, which it meets while it halts, ends it with a stack trace
    and exit code 1.
    """

    def __init__(self) -> None:
        self._token, writer = os.pipe()
        os.set_blocking(self._token, False)
        os.write(writer, b"1")

    def is_first(self) -> bool:
        """Take the token that all workers of the server share."""
        with suppress(BlockingIOError):
            return bool(os.read(self._token, 1))
        return False


_halting: Final[list[_Halting]] = []


def run_workers(app: "FastAPI", workers: int) -> None:
    """Serve an application with several workers until SIGTERM; `run_api(app, workers=…)` calls it.

    Raises:
        SystemExit: the settings are unusable (code 1), a worker can't start (3), or the workers have stopped (0).
    """
    if VARIABLE not in os.environ:
        # prometheus-client is imported by now, and only looks for the variable then. The program begins anew.
        share_metrics()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # nosec B606 - the same program
    from hybridkit.observability import configure_logging  # noqa: PLC0415 - as in `run`

    try:
        settings: ServiceSettings = app.state.settings_class()
    except HybridkitError as error:
        sys.exit(str(error))
    configure_logging(settings)
    _Application(app, settings, workers).run()


class _Logger(Logger):  # type: ignore[misc] # as above
    """Gunicorn's own lines, among those of the service."""

    def setup(self, cfg: Any) -> None:
        """Leave the handling of records to `configure_logging`, which has been called before."""
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class _Application(BaseApplication):  # type: ignore[misc] # as above
    """Gunicorn, set up by the settings of an application instead of a command line."""

    def __init__(self, app: "FastAPI", settings: "ServiceSettings", workers: int) -> None:
        self._app = app
        self._settings = settings
        self._workers = workers
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        for name, value in {
            "bind": f"{host}:{settings.port}",
            "control_socket_disable": True,
            "logger_class": _Logger,
            "graceful_timeout": math.ceil(settings.shutdown_seconds) + SPARE_SECONDS,
            "proc_name": settings.service_name,
            "timeout": math.ceil(settings.loop_dead_seconds),
            "worker_class": ApiWorker,
            "workers": self._workers,
        }.items():
            if name in self.cfg.settings:  # older versions lack some
                self.cfg.set(name, value)

    def load(self) -> "FastAPI":
        return self._app
