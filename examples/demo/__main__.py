"""`python -m examples.demo`: the five services on real servers, and a scenario that shows what they promise.

It starts PostgreSQL, MongoDB, Redis and RabbitMQ as this machine has them (see `python -m hybridkit.dev servers`), then
the five services and a fake Telegram, plays the scenario, and stops everything. Exit code 0 means that every check
holds.
"""

import argparse
import asyncio
import logging
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import structlog

from examples.demo.report import Report, chapter, say
from examples.demo.scenario import play
from examples.demo.stack import SERVICES, make_stack
from hybridkit.dev import KINDS, LocalServers, Server
from hybridkit.errors import HybridkitError
from hybridkit.testing import Stack

INTERRUPTED = 130


def main() -> int:
    """Run the command, and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--keep-running", action="store_true", help="leave everything up until Ctrl-C")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the outcome there as JSON")
    parser.add_argument("--logs", type=Path, metavar="DIRECTORY", help="keep the services' logs there")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    report = Report()
    with tempfile.TemporaryDirectory(prefix="hybridkit-demo-") as scratch:
        try:
            asyncio.run(_run(report, options.logs or Path(scratch), keep_running=options.keep_running))
        except asyncio.CancelledError:
            say("\nInterrupted; everything is stopped.")
            return INTERRUPTED
        except (HybridkitError, TimeoutError) as error:
            report.check("the demo came to its end", False, str(error))
    if options.report:
        options.report.write_text(report.to_json())
    say(f"\n{report}")
    return 0 if report.passed else 1


async def _run(report: Report, logs: Path, *, keep_running: bool) -> None:
    with _Interrupts() as interrupts:
        async with _servers() as servers, _services(servers, logs) as stack:
            await play(stack, report)
            stack.check_running()
            if keep_running:
                say(f"\nEverything stays up until Ctrl-C; logs are in {logs}.")
                await interrupts.next()
            await _stop(stack, report)


@asynccontextmanager
async def _services(servers: list[Server], logs: Path) -> AsyncGenerator[Stack]:
    """Start the services and print where each one is."""
    async with AsyncExitStack() as opened:
        with chapter("Services") as watch:
            stack = await opened.enter_async_context(make_stack(servers, logs=logs))
            for name in SERVICES:
                say(f"  {name:<20} {stack.url(name)}")
            say(f"  ready after {watch}")
        yield stack


async def _stop(stack: Stack, report: Report) -> None:
    with chapter("The end: SIGTERM for one after the other, the last one started first") as watch:
        codes = await stack.stop_all()
        told = ", ".join(f"{name} {code}" for name, code in codes.items())
        report.check("every process has ended with exit code 0", not any(codes.values()), f"{watch}: {told}")


@asynccontextmanager
async def _servers() -> AsyncGenerator[list[Server]]:
    """Start four servers and print where each one comes from."""
    servers = LocalServers()
    with chapter("Servers") as watch:
        try:
            await asyncio.to_thread(servers.__enter__)
            started = await asyncio.to_thread(servers.start_all, KINDS)
            for server in started:
                say(f"  {server.kind:<20} {server.source}")
            say(f"  ready after {watch}")
            yield started
        finally:
            await asyncio.to_thread(servers.close)


class _Interrupts:
    """Cancels the running task on SIGTERM and Ctrl-C, or ends the wait for one of them."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._awaited: asyncio.Event | None = None

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)

    async def next(self) -> None:
        """Wait for the next signal."""
        self._awaited = asyncio.Event()
        await self._awaited.wait()
        self._awaited = None

    def _receive(self) -> None:
        if self._awaited is not None:
            self._awaited.set()
        elif self._task is not None:
            self._task.cancel()


if __name__ == "__main__":
    sys.exit(main())
