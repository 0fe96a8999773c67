"""What the idempotency guard costs: a claim alone, among others, in a consumer, and for an HTTP request.

The peer of a claim is what people write by hand on redis-py: `SET NX` to begin and `SET` to finish, which forget the
payload, the lease and whoever crashed. The peer of a request with an `Idempotency-Key` is the same request without.
Sides ask one Redis on this machine and take turns on one event loop; what counts is the CPU time of this process.
"""

import argparse
import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import Any, Final

import uvloop
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks._report import Result, show
from benchmarks.messaging import ROUNDS, Bench
from benchmarks.toolkit import Comparison, Operation, compare, plain_redis
from hybridkit.adapters.fastapi import create_app
from hybridkit.coordination import connect_redis
from hybridkit.dev import LocalServers
from hybridkit.idempotency import Acquired, IdempotencyGuard, Outcome
from hybridkit.settings import RedisSettings

LIMIT_MICROSECONDS: Final = 25.0
"""The most that begin and finish may cost at 100 in flight."""
MOST_OF_A_REQUEST: Final = 1.3
"""The most that a request with a key may cost, in requests without."""


class NewOrder(BaseModel):
    """The body of the measured request."""

    product: str
    quantity: int


class Order(NewOrder):
    """The answer to the measured request."""

    id: int


async def measure(url: str) -> AsyncGenerator[Result]:
    """Yield the results that need Redis alone."""
    async with connect_redis(url) as redis, plain_redis(url) as plain:
        numbers = count()
        guard = IdempotencyGuard(redis)

        async def claim() -> None:
            acquired = await guard.begin(f"orders:order:{next(numbers)}", b"payload")
            assert isinstance(acquired, Acquired)
            await guard.finish(acquired, Outcome.COMPLETED)

        async def naive() -> None:
            key = f"naive:{next(numbers)}"
            assert await plain.set(key, "token", nx=True, ex=30)
            await plain.set(key, "done", ex=86_400)

        pair = Comparison(
            name="guard begin + finish, 100 in flight",
            ours=claim,
            peer=naive,
            peer_name="redis-py SET NX + SET",
        )
        among_others = await compare(pair)
        yield among_others
        yield replace(among_others, peer=LIMIT_MICROSECONDS, peer_name="limit", goal=1.0)
        yield await compare(replace(pair, name="guard begin + finish, alone", in_flight=1, goal=1.0))

    async with orders(url) as app:
        keys = count()
        yield await compare(
            Comparison(
                name="POST with an Idempotency-Key",
                ours=lambda: post(app, (b"idempotency-key", f"key-{next(keys)}".encode())),
                peer=_posting(app),
                peer_name="without",
                goal=1 / MOST_OF_A_REQUEST,
            )
        )


@asynccontextmanager
async def orders(redis_url: str) -> AsyncGenerator[FastAPI]:
    """Run an application with one route."""
    app = create_app(RedisSettings, title="orders")
    app.state.settings = RedisSettings.model_validate({"service_name": "orders", "redis_url": redis_url})

    @app.post("/orders", status_code=201)
    async def create(order: NewOrder) -> Order:
        return Order(id=1, **order.model_dump())

    async with app.router.lifespan_context(app):
        yield app


def _posting(app: FastAPI) -> Operation:
    return lambda: post(app)


async def post(app: FastAPI, *headers: tuple[bytes, bytes]) -> None:
    """Call the application as a server does, and check the status."""
    body = b'{"product":"book","quantity":1}'
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/orders",
        "raw_path": b"/orders",
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"orders"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "state": {},
        "app": app,
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        assert message.get("status", 201) == 201, message

    await app(scope, receive, send)


def main() -> None:
    """Read the command line, start the servers, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument(
        "--without-consume", action="store_true", help="leave out the part that needs RabbitMQ"
    )
    chosen = parser.parse_args()

    async def show_all(url: str) -> None:
        async for result in measure(url):
            show(result, as_json=chosen.json)

    with LocalServers() as servers:
        redis = servers.start("redis", private=True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(show_all(redis.url))
        if not chosen.without_consume:
            bench = Bench(servers.start("rabbitmq").url, servers, rounds=ROUNDS, flat_events=0)
            for result in bench.consume_guarded():
                show(result, as_json=chosen.json)


if __name__ == "__main__":
    main()
