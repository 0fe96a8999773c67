"""One side of `benchmarks.adapters`, a process of its own: a trivial route, called as an ASGI application.

    python -m benchmarks._api_side bare
    python -m benchmarks._api_side limited --in-flight 50

It prints the microseconds of CPU time per request, its threads included, the median of many rounds.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import uvloop
from fastapi import FastAPI

from hybridkit.adapters.fastapi import create_app, rate_limited
from hybridkit.coordination import Rate
from hybridkit.observability import configure_logging
from hybridkit.security import OPEN, AccessTokens, KeyRing, Security, require
from hybridkit.settings import RedisSettings, ServiceSettings

ROUNDS: Final = 9
REQUESTS: Final = 1_000

SCOPE: Final[dict[str, Any]] = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/items/7",
    "raw_path": b"/items/7",
    "query_string": b"",
    "root_path": "",
    "headers": [
        (b"host", b"127.0.0.1:8000"),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"gzip, deflate"),
        (b"user-agent", b"benchmark/1.0"),
        (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ],
    "client": ("127.0.0.1", 40000),
    "server": ("127.0.0.1", 8000),
}


def bare() -> AbstractAsyncContextManager[FastAPI]:
    """Return FastAPI as it comes."""

    @asynccontextmanager
    async def opened() -> AsyncGenerator[FastAPI]:
        app = FastAPI()
        with_route(app)
        yield app

    return opened()


def ours(**environment: str) -> AbstractAsyncContextManager[FastAPI]:
    """Return an application of ours that writes its log lines as JSON, to nowhere."""

    @asynccontextmanager
    async def opened() -> AsyncGenerator[FastAPI]:
        os.environ.update({"ENVIRONMENT": "test", "SERVICE_NAME": "benchmark", "MANAGEMENT_PORT": "0"})
        os.environ.update({"LOG_FORMAT": "json", **environment})
        configure_logging(ServiceSettings())
        app = create_app(ServiceSettings, title="Benchmark", security=OPEN)
        with_route(app)
        async with app.router.lifespan_context(app):
            yield app

    return opened()


def secured(*, is_limited: bool) -> AbstractAsyncContextManager[FastAPI]:
    """Return an application of ours whose route needs a token with a scope, and has two rate limits if asked for."""

    @asynccontextmanager
    async def opened() -> AsyncGenerator[FastAPI]:
        os.environ.update({"ENVIRONMENT": "test", "SERVICE_NAME": "benchmark", "MANAGEMENT_PORT": "0"})
        os.environ.update({"LOG_FORMAT": "json"})
        configure_logging(ServiceSettings())
        tokens = AccessTokens(issuer="benchmark", audience="benchmark", keys=KeyRing.generated())
        app = create_app(RedisSettings, title="Benchmark", security=Security(tokens))
        rate = Rate.parse("10000/s", burst=100_000)
        limits = [rate_limited("items", per_caller=rate, in_total=rate)] if is_limited else []
        with_route(app, require(scope="items:read"), *limits)
        token = tokens.issue("ann", scopes=["items:read"]).encode()
        SCOPE["headers"].append((b"authorization", b"Bearer " + token))
        async with app.router.lifespan_context(app):
            yield app

    return opened()


def with_route(app: FastAPI, *dependencies: Any) -> None:
    """Add the trivial route."""

    @app.get("/items/{number}", dependencies=dependencies)
    async def read(number: int) -> dict[str, int]:  # pyright: ignore[reportUnusedFunction]
        return {"number": number}


SIDES: Final[dict[str, Callable[[], AbstractAsyncContextManager[FastAPI]]]] = {
    "bare": bare,
    "plain": ours,
    "secured": lambda: secured(is_limited=False),
    "limited": lambda: secured(is_limited=True),
    "traced": ours,
    "sampled_out": lambda: ours(TRACE_SAMPLE_RATIO="0"),
}


async def microseconds(app: FastAPI, in_flight: int) -> float:
    """Return the CPU time of one request, of so many at a time."""
    found = [await _round(app, in_flight) for _ in range(ROUNDS + 1)]
    return statistics.median(found[1:])  # the first one warms up


async def _round(app: FastAPI, in_flight: int) -> float:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    answered = 0

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal answered
        answered += message.get("status", 0) == 200

    async def ask(requests: int) -> None:
        for _ in range(requests):
            await app({**SCOPE}, receive, send)

    began = time.process_time()
    await asyncio.gather(*(ask(REQUESTS // in_flight) for _ in range(in_flight)))
    took = time.process_time() - began
    assert answered == REQUESTS
    return took / REQUESTS * 1e6


async def _measure(side: str, in_flight: int) -> float:
    async with SIDES[side]() as app:
        return await microseconds(app, in_flight)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="benchmarks._api_side", description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--in-flight", type=int, default=1, help="how many requests at a time")
    chosen = parser.parse_args()
    result = sys.stderr
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # for the process's life
    print(uvloop.run(_measure(chosen.side, chosen.in_flight)), file=result)
