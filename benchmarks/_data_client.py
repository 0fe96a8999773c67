"""What a call costs its caller: our client with all its resilience, plain httpx, and raw aiohttp.

All sides ask the same server, a process of its own that answers the same bytes to everything, so that it is never what
they wait for. They take turns on one event loop (uvloop, which our processes run on), and what counts is
`time.process_time` of this process per call, the best of many rounds. httpx has one `AsyncClient` without a limit of
connections; aiohttp one `ClientSession`, the same, read to the end.

`call` compares the wire alone: bytes in, bytes out, and nobody reads them. `get` is what an application does: a record,
validated by the same pydantic model on every side. `100 gets` compares our client with itself: calls of one moment that
become one `:batch_get`, against as many requests.
"""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Final, cast
from uuid import UUID

import aiohttp
import httpx
import uvloop
from pydantic import BaseModel, TypeAdapter

from benchmarks._report import Result, main
from hybridkit.clients import PostgresDataClient
from hybridkit.clients._pipeline._attempt import Intent
from hybridkit.codec import encode_json
from hybridkit.context import RequestContext, bind
from hybridkit.resources import Record, Resource

ROUNDS: Final = 5
CALLS: Final = 1024
CONCURRENCY: Final = 64
GOAL_HTTPX: Final = 5.0
GOAL_AIOHTTP: Final = 1 / 1.5
MANY: Final = 100
GOAL_COALESCED: Final = 4.0

type Call = Callable[[], Awaitable[object]]


class NewUser(BaseModel):
    """What a user is made of."""

    email: str
    display_name: str
    is_active: bool = True


class User(NewUser, Record):
    """The record that every call brings."""


USERS: Final = Resource("users", record=User, create=NewUser, update=NewUser)
USER_ID: Final = UUID("1f1e5477-3fd3-6f83-be8e-f44fe982b401")
PATH: Final = f"/v1/users/{USER_ID}"
IDS: Final = tuple(UUID(int=USER_ID.int + number) for number in range(MANY))


def _record(id: UUID) -> dict[str, object]:
    return {
        "id": str(id),
        "version": 3,
        "created_at": "2026-01-15T10:30:00Z",
        "updated_at": "2026-01-15T10:30:00.123Z",
        "etag": '"3-1f1e5477"',
        "email": "somebody@example.com",
        "display_name": "Somebody",
        "is_active": True,
    }


def _answer(body: bytes) -> bytes:
    head = (
        b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\netag: "3-1f1e5477"\r\n'
        b"x-request-id: 1f1e5477-3fd3-6f83-be8e-f44fe982b401\r\nserver-timing: db;dur=1.8\r\n"
        b"content-length: %d\r\n\r\n"
    )
    return head % len(body) + body


ONE: Final = _answer(encode_json(_record(USER_ID)))
ALL: Final = _answer(encode_json({"items": [_record(one) for one in IDS]}))


# ── the server ───────────────────────────────────────────────────────────────────────────────────


class _Fixed(asyncio.Protocol):
    """One answer per empty line: enough HTTP, as no body has one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *heads, self._rest = (self._rest + data).split(b"\r\n\r\n")
        self._transport.write(b"".join(ALL if b":batch_get " in head else ONE for head in heads))


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Fixed, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@asynccontextmanager
async def _server() -> AsyncGenerator[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks._data_client", "--serve", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.kill()
        await process.wait()


# ── the sides ────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def _calls(url: str) -> AsyncGenerator[tuple[Mapping[str, Call], Mapping[str, Call]]]:
    """By the side's name: a call that brings bytes, and one that brings a record."""
    adapter = TypeAdapter(User)
    intent = Intent(method="GET", path=PATH, safe=True)
    address = url + PATH
    async with (
        PostgresDataClient(url, service="benchmark") as client,
        httpx.AsyncClient(limits=httpx.Limits(max_connections=None)) as plain,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        pipeline = client._open_pipeline()  # noqa: SLF001 - the wire without the record

        async def ours() -> bytes:
            return (await pipeline.run(intent)).body

        async def by_httpx() -> bytes:
            return (await plain.get(address)).content

        async def by_aiohttp() -> bytes:
            async with session.get(address) as answer:
                return await answer.read()

        async def our_record() -> User:
            return await client.get(USERS, USER_ID)

        async def httpx_record() -> User:
            return adapter.validate_json(await by_httpx())

        async def aiohttp_record() -> User:
            return adapter.validate_json(await by_aiohttp())

        yield (
            {"ours": ours, "httpx": by_httpx, "aiohttp": by_aiohttp},
            {"ours": our_record, "httpx": httpx_record, "aiohttp": aiohttp_record},
        )


# ── the measurement ──────────────────────────────────────────────────────────────────────────────


async def _microseconds(call: Call, concurrency: int) -> float:
    """CPU time of this process per call."""

    async def caller() -> None:
        with bind(RequestContext()):
            for _ in range(each):
                await call()

    each = (CALLS if concurrency > 1 else CALLS // 4) // concurrency
    start = time.process_time()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return (time.process_time() - start) / (each * concurrency) * 1e6


async def _best(sides: Mapping[str, Call], concurrency: int) -> dict[str, float]:
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(ROUNDS):
        for name, call in sides.items():
            best[name] = min(best[name], await _microseconds(call, concurrency))
    return best


async def _measure() -> list[Result]:
    results: list[Result] = []
    async with _server() as url, _calls(url) as (bytes_of, records):
        for what, sides in (("call", bytes_of), ("get", records)):
            for concurrency in (1, CONCURRENCY):
                best = await _best(sides, concurrency)
                for peer, goal in (("httpx", GOAL_HTTPX), ("aiohttp", GOAL_AIOHTTP)):
                    results.append(
                        Result(
                            name=f"client {what}, {concurrency} at a time, CPU",
                            ours=best["ours"],
                            peer=best[peer],
                            peer_name=peer,
                            unit="µs",
                            goal=goal,
                        )
                    )
        results.append(await _coalesced(url))
    return results


async def _coalesced(url: str) -> Result:
    """Get a hundred records in one request, put together and one by one."""
    async with (
        PostgresDataClient(url, service="benchmark", coalesce=True) as together,
        PostgresDataClient(url, service="benchmark") as apart,
    ):

        async def gets(client: PostgresDataClient) -> None:
            with bind(RequestContext()):
                await asyncio.gather(*(client.get(USERS, one) for one in IDS))

        best = [float("inf"), float("inf")]
        for _ in range(ROUNDS):
            for side, client in enumerate((together, apart)):
                start = time.process_time()
                for _ in range(10):
                    await gets(client)
                best[side] = min(best[side], (time.process_time() - start) / 10 * 1e3)
    return Result(
        name=f"client {MANY} gets coalesced, CPU",
        ours=best[0],
        peer=best[1],
        peer_name="single",
        unit="ms",
        goal=GOAL_COALESCED,
    )


def measure() -> Iterable[Result]:
    """Our client beside plain httpx and raw aiohttp, by the CPU time of a call."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield from runner.run(_measure())


if __name__ == "__main__":
    if "--serve" in sys.argv:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as serving:
            serving.run(_serve())
    else:
        main(__doc__ or "", measure)
