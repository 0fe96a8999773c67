"""What an adapter adds to the framework beneath it: a trivial route through an API of ours, beside bare FastAPI.

Each side is a process of its own, since tracing is a process's; the sides take turns. What counts is the CPU time of
the whole process per request, its threads included: log lines are written, and sampled spans are encoded and sent to a
collector, which is another process and takes everything.

Two ways of asking: *served* is a server with sixteen connections that another process keeps busy, as in production;
the other rows call the application in a loop, where bare FastAPI fits into the processor's caches and more doesn't. So
the loop shows a change best, and the server what a request costs.

Start-up is the import of all that a kind of process needs, from bytecode, as of an installed package.
"""

import argparse
import asyncio
import compileall
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import hybridkit
from benchmarks._report import Result, show
from hybridkit.dev import LocalServers, free_port

TURNS: Final = 3

COLLECTOR: Final = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""

ROWS: Final = {
    "api": ("plain", 1, 1.5),
    "api_authenticated": ("secured", 1, 2.0),
    "api_authenticated_two_limits": ("limited", 1, 2.2),
    "api_authenticated_two_limits_50_in_flight": ("limited", 50, 2.2),
    "api_tracing_on": ("traced", 1, 4.0),
    "api_tracing_sampled_out": ("sampled_out", 1, 4.0),
}
"""Our side, the requests in flight, and how many times bare FastAPI it may cost, by the name of the row."""

SERVED: Final = {
    "served": ("bare", "FastAPI"),
    "served_beside_an_access_log": ("bare_access_log", "FastAPI, access log"),
}
"""The other side and its name; uvicorn writes its access log unless told not to, and we write a line of our own."""

MOST_SERVED: Final = 1.5
CONNECTIONS: Final = 16
SERVED_REQUESTS: Final = 8_000
REQUEST: Final = (
    b"GET %b HTTP/1.1\r\nhost: 127.0.0.1:8000\r\naccept: */*\r\naccept-encoding: gzip, deflate\r\n"
    b"user-agent: benchmark/1.0\r\n\r\n"
)

START_LIMIT_SECONDS: Final = 1.5
KINDS: Final = {
    "api": "hybridkit.adapters.fastapi",
    "worker": "hybridkit.adapters.worker, hybridkit.messaging",
    "bot": "hybridkit.adapters.aiogram",
}
"""The modules of each kind of process."""


def measure() -> Iterable[Result]:
    """Yield a result for each row."""
    yield from _served()
    yield from _in_a_loop()
    yield from _start_ups()


def _in_a_loop() -> Iterable[Result]:
    with _collector() as url, LocalServers() as servers:
        os.environ["REDIS_URL"] = servers.start("redis", private=True).url
        sides = [*dict.fromkeys(pair for _, n, _ in ROWS.values() for pair in [("bare", n)])]
        sides += [(side, in_flight) for side, in_flight, _ in ROWS.values()]
        found: dict[tuple[str, int], list[float]] = {each: [] for each in sides}
        for _ in range(TURNS):
            for each in sides:
                found[each].append(_microseconds(*each, url))
    for name, (side, in_flight, most) in ROWS.items():
        yield Result(
            name=name,
            ours=statistics.median(found[side, in_flight]),
            peer=statistics.median(found["bare", in_flight]),
            peer_name="FastAPI",
            unit="us",
            goal=1 / most,
        )


def _microseconds(side: str, in_flight: int, collector_url: str) -> float:
    environment = {**os.environ}
    environment.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    if side in {"traced", "sampled_out"}:
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector_url
    command = [sys.executable, "-m", "benchmarks._api_side", side, "--in-flight", str(in_flight)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    return float(run.stderr.split()[-1])


def _served() -> Iterable[Result]:
    found: dict[str, list[float]] = {"ours": [], **{side: [] for side, _ in SERVED.values()}}
    for _ in range(TURNS):
        for side, microseconds in found.items():
            with _server(side) as port:
                microseconds.append(asyncio.run(_load(port)))
    for name, (side, peer_name) in SERVED.items():
        yield Result(
            name=f"api_{name}",
            ours=statistics.median(found["ours"]),
            peer=statistics.median(found[side]),
            peer_name=peer_name,
            unit="us",
            goal=1 / MOST_SERVED,
        )


@contextmanager
def _server(side: str) -> Generator[int]:
    """Run one side behind its server, and give its port."""
    port = free_port()
    environment = {
        **os.environ,
        "ENVIRONMENT": "test",
        "LOG_FORMAT": "json",
        "MANAGEMENT_PORT": "0",
        "PORT": str(port),
        "SERVICE_NAME": "benchmark",
    }
    command = [sys.executable, "-m", "benchmarks._api_server", side, str(port)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield port
        finally:
            process.terminate()


async def _load(port: int) -> float:
    """Return the CPU time of a request in microseconds, by what the server says of itself before and after."""
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS)]

    async def keep_busy(requests: int) -> None:
        await asyncio.gather(*(_ask_often(each, requests // CONNECTIONS) for each in connections))

    await keep_busy(SERVED_REQUESTS // 10)
    began = float(await _ask(connections[0], b"/cpu"))
    await keep_busy(SERVED_REQUESTS)
    ended = float(await _ask(connections[0], b"/cpu"))
    for _, writer in connections:
        writer.close()
    return (ended - began) / SERVED_REQUESTS * 1e6


async def _ask_often(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], requests: int) -> None:
    for _ in range(requests):
        await _ask(connection, b"/items/7")


async def _ask(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: bytes) -> bytes:
    reader, writer = connection
    writer.write(REQUEST % path)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 200"), head
    return await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))


def _start_ups() -> Iterable[Result]:
    compileall.compile_dir(Path(hybridkit.__file__).parent, quiet=1)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(TURNS):
        for kind, seconds in found.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            code = f"import hybridkit.settings, {KINDS[kind]}"
            subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603 - our own interpreter
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    for kind, seconds in found.items():
        yield Result(
            name=f"start_of_{kind}",
            ours=statistics.median(seconds),
            peer=START_LIMIT_SECONDS,
            peer_name="limit",
            unit="s",
            goal=1.0,
        )


@contextmanager
def _collector() -> Generator[str]:
    """Run a collector that takes everything, and give its URL."""
    command = [sys.executable, "-c", COLLECTOR]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.adapters", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    as_json = parser.parse_args().json
    for result in measure():
        show(result, as_json=as_json)


if __name__ == "__main__":
    main()
