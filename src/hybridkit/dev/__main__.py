"""`python -m hybridkit.dev servers | broker`: the servers of the stack on this machine until Ctrl-C."""

import argparse
import asyncio
import json
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from hybridkit.dev._broker import DevelopmentBroker
from hybridkit.dev._servers._choice import URL_VARIABLES
from hybridkit.dev._servers._local import LocalServers
from hybridkit.dev._servers._server import KINDS, Kind, ProcessServer, Server
from hybridkit.errors import HybridkitError, ServerStartError

CHECK_SECONDS: Final = 0.5

_HELP_KINDS = f"of {', '.join(URL_VARIABLES)}; without any, the four of the stack"


class _Interrupted(BaseException):
    """Raised in the main thread by SIGINT or SIGTERM."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code: 0 after a signal, 1 when a server is missing or has ended."""
    parser = argparse.ArgumentParser(prog="python -m hybridkit.dev", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    servers = commands.add_parser(
        "servers",
        help="start local servers and print their URLs",
        description="Start local servers, print their URLs and where each came from, and wait for Ctrl-C. "
        "Their data is thrown away. When one of them ends, all do, with exit code 1. "
        "A server given as URL in the environment is only named.",
    )
    servers.add_argument("kinds", nargs="*", metavar="KIND", help=_HELP_KINDS)
    servers.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    broker = commands.add_parser(
        "broker",
        help="run the development broker (AMQP 0-9-1) and print its URL",
        description="Run the development broker on 127.0.0.1, print its URL, and wait for Ctrl-C. It is for "
        "development and tests only: it keeps everything in memory, and anybody may connect.",
    )
    broker.add_argument("--port", type=int, default=5672, help="5672 by default; 0 for any that is free")
    options = parser.parse_args(arguments)
    if options.command == "broker":
        return _run_broker(options.port)
    if unknown := [kind for kind in options.kinds if kind not in URL_VARIABLES]:
        parser.error(f"unknown kind of server: {', '.join(unknown)} (choose from {', '.join(URL_VARIABLES)})")
    return _serve(options.kinds or KINDS, as_json=options.json)


def _serve(kinds: Sequence[Kind], *, as_json: bool) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    local = LocalServers()
    try:
        with local:
            started = local.start_all(kinds)
            print(_as_json(started) if as_json else _as_table(started), flush=True)  # noqa: T201
            _wait_until_one_ends(started)
    except _Interrupted:
        return 0
    except HybridkitError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _wait_until_one_ends(servers: Sequence[Server]) -> None:
    """Wait until a server has ended.

    Raises:
        ServerStartError: a server has ended by itself; the message has the end of its log.
    """
    ours = [server for server in servers if isinstance(server, ProcessServer)]
    pause = threading.Event()
    while all(server.is_running for server in ours):
        pause.wait(CHECK_SECONDS)
    ended = [
        f"{server.kind} ({server.source}) has ended; its log ends with:\n{server.log_tail()}"
        for server in ours
        if not server.is_running
    ]
    raise ServerStartError("\n".join(ended))


def _run_broker(port: int) -> int:
    try:
        asyncio.run(_serve_broker(port))
    except HybridkitError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


async def _serve_broker(port: int) -> None:
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with DevelopmentBroker(port=port) as broker:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted.set)
        print(broker.url, flush=True)  # noqa: T201
        await interrupted.wait()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # A second signal must not interrupt the clean-up after the first one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise _Interrupted


def _as_json(servers: Sequence[Server]) -> str:
    return json.dumps(
        {
            server.kind: {
                "url": server.url,
                "source": server.source,
                "is_real": server.is_real,
                "management_url": server.management_url,
            }
            for server in servers
        }
    )


def _as_table(servers: Sequence[Server]) -> str:
    urls = [_without_password(server) for server in servers]
    width = max(map(len, urls))
    lines = [
        f"{server.kind:<9} {url:<{width}}  {server.source}" for server, url in zip(servers, urls, strict=True)
    ]
    lines += [
        f"{'':<9} {server.management_url}  (HTTP API)"
        for server in servers
        if server.management_url and _is_ours(server)
    ]
    return "\n".join([*lines, "", "Ctrl-C stops them."])


def _is_ours(server: Server) -> bool:
    # A server given by URL is of the base class, which can't start or stop it.
    return type(server) is not Server


def _without_password(server: Server) -> str:
    parts = urlsplit(server.url)
    if _is_ours(server) or not parts.password:
        return server.url
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}"))


if __name__ == "__main__":
    sys.exit(main())
