"""The HTTP server of the management port, by bytes on a socket."""

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import orjson
import pytest

from hybridkit.errors import UnavailableError
from hybridkit.lifespan import Health, HealthServer
from hybridkit.lifespan import _health as health_module
from hybridkit.lifespan import _stacks as stacks_module
from hybridkit.lifespan._stacks import render_stacks
from hybridkit.observability import render_metrics


@pytest.fixture
def health() -> Health:
    health = Health(cache_seconds=0.0)
    health.started()
    return health


@pytest.fixture
async def server(health: Health) -> AsyncGenerator[HealthServer]:
    async with HealthServer(health, port=0, metrics=render_metrics) as server:
        yield server


async def exchange(server: HealthServer, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    answer = await reader.read(-1)
    writer.close()
    return answer


async def get(server: HealthServer, target: str, *headers: str) -> tuple[int, str, bytes]:
    lines = [f"GET {target} HTTP/1.1", "Host: localhost", *headers, "", ""]
    head, _, body = (await exchange(server, "\r\n".join(lines).encode())).partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    return int(head.split(b" ", 2)[1]), head.decode(), body


async def test_health_answers_while_the_loop_turns(server: HealthServer) -> None:
    """The answer is JSON, and doesn't depend on any probe."""
    status, head, body = await get(server, "/health")
    assert (status, body) == (200, b'{"status":"alive"}')
    assert "content-type: application/json" in head


async def test_ready_answers_what_the_probes_say(server: HealthServer, health: Health) -> None:
    """It is 503 with the reason while one is down; a query in the URL is ignored."""
    assert (await get(server, "/ready?verbose"))[0] == 200

    async def down() -> None:
        raise UnavailableError("down")

    health.add("redis", down)
    status, _, body = await get(server, "/ready")
    assert status == 503
    assert orjson.loads(body)["dependencies"]["redis"]["detail"] == "UnavailableError: down"


async def test_metrics_come_from_the_callable_in_the_form_that_was_asked_for(server: HealthServer) -> None:
    """All lines of `Accept` count as one list."""
    status, head, body = await get(server, "/metrics")
    assert status == 200
    assert "content-type: text/plain; version=" in head
    assert b"# HELP hybridkit_" in body
    lines = ("Accept: text/html;q=0.1", "ACCEPT: application/openmetrics-text; version=1.0.0")  # one list
    _, head, body = await get(server, "/metrics", *lines)
    assert "content-type: application/openmetrics-text" in head
    assert body.endswith(b"# EOF\n")


async def test_without_a_callable_there_are_no_metrics(health: Health) -> None:
    """The path is not found."""
    async with HealthServer(health, port=0) as server:
        assert (await get(server, "/metrics"))[0] == 404


async def test_stacks_of_threads_and_tasks_are_shown_for_development_only(health: Health) -> None:
    """A waiting task is shown with its place; without the callable the path is not found."""

    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    waiting = [asyncio.create_task(wait_for_ever(), name=f"waiting {number}") for number in range(3)]
    async with HealthServer(health, port=0, stacks=render_stacks) as server:
        status, head, body = await get(server, "/debug/stacks")
    assert status == 200
    assert "content-type: text/plain" in head
    for shown in (b"thread MainThread\n", b"task waiting 0\n", b"in wait_for_ever"):
        assert shown in body
    async with HealthServer(health, port=0) as server:
        assert (await get(server, "/debug/stacks"))[0] == 404
    for task in waiting:
        task.cancel()


async def test_a_process_of_many_tasks_shows_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of the others is told."""
    monkeypatch.setattr(stacks_module, "MAX_TASKS", 2)
    waiting = [asyncio.create_task(asyncio.Event().wait(), name=f"0 {number}") for number in range(3)]
    shown = render_stacks()
    assert ("task 0 1\n" in shown, "task 0 2\n" in shown) == (True, False)
    assert f"and {len(asyncio.all_tasks()) - 2} more tasks" in shown
    for task in waiting:
        task.cancel()


async def test_broken_metrics_leave_the_rest_alone(
    health: Health, logs: list[MutableMapping[str, Any]]
) -> None:
    """They answer 500 and are logged; health is still answered."""

    def broken(accept: str) -> tuple[bytes, str]:
        raise LookupError(accept)

    async with HealthServer(health, port=0, metrics=broken) as server:
        assert (await get(server, "/metrics"))[0] == 500
        assert (await get(server, "/health"))[0] == 200
    assert [line["event"] for line in logs] == ["the metrics can't be collected"]


async def test_there_is_nothing_else(server: HealthServer) -> None:
    """Other paths are not found."""
    assert (await get(server, "/"))[0] == 404


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", b"405"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n", b"400"),
        (b"GET /health\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", b"431"),
    ],
    ids=["another method", "no host", "another version", "another protocol", "TLS", "too large"],
)
async def test_other_requests_are_refused(server: HealthServer, request_bytes: bytes, status: bytes) -> None:
    """The status says why, and no body is read."""
    assert (await exchange(server, request_bytes)).startswith(b"HTTP/1.1 " + status)


async def test_half_a_request_is_not_answered(server: HealthServer) -> None:
    """Its sender has gone, so the connection just ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /hea")
    writer.write_eof()
    assert await reader.read(-1) == b""
    writer.close()


async def test_who_dawdles_is_dropped(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that doesn't come within the time holds no connection."""
    monkeypatch.setattr(health_module, "REQUEST_TIMEOUT_SECONDS", 0.05)
    async with HealthServer(health, port=0) as server:
        assert await exchange(server, b"GET /health HTTP/1.1\r\n") == b""


async def test_the_end_does_not_wait_for_open_connections(health: Health) -> None:
    """They are closed, and no new one is accepted."""
    async with HealthServer(health, port=0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await get(server, "/health")  # answered after the first connection was accepted
    assert await reader.read(-1) == b""
    writer.close()
    with pytest.raises(OSError, match=r"refused|failed"):
        await asyncio.open_connection("127.0.0.1", server.port)


async def test_a_taken_port_is_an_error_at_the_start(server: HealthServer, health: Health) -> None:
    """The process doesn't run without its health."""
    with pytest.raises(OSError, match="in use"):
        async with HealthServer(health, port=server.port):
            pass


def test_its_repr_tells_where_it_listens(health: Health) -> None:
    """It also shows the health that it serves."""
    assert repr(HealthServer(health, port=9003)) == "HealthServer(127.0.0.1:9003, Health(ready, probes=[]))"
