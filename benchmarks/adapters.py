"""What an adapter adds to the framework beneath it: a trivial route through an API of ours, beside bare FastAPI.

Each side is a process of its own, since tracing is a process's; the sides take turns. What counts is the CPU time of
the whole process per request, its threads included: log lines are written, and sampled spans are encoded and sent to a
collector, which is another process and takes everything.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Final

from benchmarks._report import Result, show
from hybridkit.dev import LocalServers

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
    "api": ("plain", 1.5),
    "api_authenticated": ("secured", 2.0),
    "api_authenticated_two_limits": ("limited", 2.2),
    "api_tracing_on": ("traced", 4.0),
    "api_tracing_sampled_out": ("sampled_out", 4.0),
}
"""Our side and how many times bare FastAPI it may cost, by the name of the row."""


def measure() -> Iterable[Result]:
    """Yield a result for each row."""
    with _collector() as url, LocalServers() as servers:
        os.environ["REDIS_URL"] = servers.start("redis", private=True).url
        sides = ["bare", *(side for side, _ in ROWS.values())]
        found: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(TURNS):
            for side in sides:
                found[side].append(_microseconds(side, url))
    for name, (side, most) in ROWS.items():
        yield Result(
            name=name,
            ours=statistics.median(found[side]),
            peer=statistics.median(found["bare"]),
            peer_name="FastAPI",
            unit="us",
            goal=1 / most,
        )


def _microseconds(side: str, collector_url: str) -> float:
    environment = {**os.environ}
    environment.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    if side in {"traced", "sampled_out"}:
        environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector_url
    command = [sys.executable, "-m", "benchmarks._api_side", side]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    return float(run.stderr.split()[-1])


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
