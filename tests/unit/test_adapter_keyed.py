"""A keyed write of an API: it runs once, and its answer is for whoever may have it."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from hybridkit.context import current
from tests.helpers.apis import Api, key, orders_app, problem

NOT_KEPT = (409, "IDEMPOTENCY_ANSWER_NOT_KEPT")


@pytest.fixture
def done() -> list[Any]:
    """What the application has done."""
    return []


@pytest.fixture
def app(done: list[Any]) -> FastAPI:
    return orders_app(done)


@pytest.fixture
async def keyed(app: FastAPI, serve_keyed: Api) -> AsyncGenerator[httpx.AsyncClient]:
    async with serve_keyed(app) as client:
        yield client


# ── once ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_keyed_write_runs_once_and_its_answer_is_given_again(
    keyed: httpx.AsyncClient, done: list[Any]
) -> None:
    """The replay is marked and equal but for its request id."""
    body = {"amount": 1, "note": "чай"}
    first = await keyed.post("/orders", json=body, headers=key('"k-1"'))
    second = await keyed.post("/orders", json=body, headers=key('"k-1"'))
    assert len(done) == 1
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["content-length"] == first.headers["content-length"]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert first.json()["claim"] == "http:anonymous:POST:test:%2Forders:k-1"


async def test_a_refused_write_is_not_kept(keyed: httpx.AsyncClient, done: list[Any]) -> None:
    """After a 400 the repetition runs again."""
    for _ in range(2):
        refused = await keyed.post("/orders", json={"amount": -1}, headers=key("k"))
        assert refused.status_code == 400
    assert len(done) == 2


async def test_a_request_that_does_not_fit_may_be_mended_under_its_key(
    keyed: httpx.AsyncClient, done: list[Any]
) -> None:
    """After a 422 another body runs under the same key."""
    assert (await keyed.post("/orders", json={"amount": "x"}, headers=key("k"))).status_code == 422
    assert (await keyed.post("/orders", json={"amount": 1}, headers=key("k"))).status_code == 201
    assert len(done) == 1


async def test_writes_without_a_key_and_reads_with_one_run_each_time(
    keyed: httpx.AsyncClient, done: list[Any]
) -> None:
    """Neither is ever replayed."""
    for _ in range(2):
        await keyed.post("/orders", json={"amount": 1})
    reads = [await keyed.get("/orders", headers=key("k")) for _ in range(2)]
    assert len(done) == 4
    assert not any("idempotency-replayed" in read.headers for read in reads)


async def test_a_key_out_of_syntax_or_two_keys_or_a_body_too_large_are_refused(
    keyed: httpx.AsyncClient,
) -> None:
    """They are answered with 422, 400 and 413."""
    bad_key = await keyed.post("/orders", json={"amount": 1}, headers=key("x" * 300))
    two_keys = await keyed.post(
        "/orders", json={"amount": 1}, headers=[("idempotency-key", "a"), ("idempotency-key", "b")]
    )
    too_large = await keyed.post("/orders", content=b"x" * 1_100_000, headers=key("k"))
    assert (bad_key.status_code, two_keys.status_code, too_large.status_code) == (422, 400, 413)


async def test_one_key_at_once_runs_once(app: FastAPI, serve_keyed: Api, done: list[Any]) -> None:
    """A repetition during the first run gets 409 with `Retry-After`."""
    going, go_on = asyncio.Event(), asyncio.Event()

    @app.post("/slow")
    async def slow() -> int:
        done.append("slow")
        going.set()
        await go_on.wait()
        return len(done)

    async with serve_keyed(app) as client:
        first = asyncio.create_task(client.post("/slow", headers=key("k")))
        await going.wait()
        meanwhile = await client.post("/slow", headers=key("k"))
        go_on.set()
        assert (await first).json() == 1
        assert problem(meanwhile) == (409, "IDEMPOTENCY_IN_PROGRESS")
        assert meanwhile.headers["retry-after"] == "1"  # not the lease, within which most work is long done
        assert "http:" not in meanwhile.text
        assert (await client.post("/slow", headers=key("k"))).json() == 1


@pytest.mark.parametrize("kind", ["function", "thread"])
async def test_every_kind_of_route_runs_once_under_its_claim(
    app: FastAPI, serve_keyed: Api, done: list[Any], kind: str
) -> None:
    """This holds for functions in the event loop and in threads."""

    def work() -> str | None:
        done.append(1)
        claim = current().claim
        return claim.key if claim else None

    async def in_the_loop() -> str | None:
        return work()

    routes: dict[str, Any] = {"function": in_the_loop, "thread": work}
    app.post("/work")(routes[kind])
    async with serve_keyed(app) as client:
        answers = [await client.post("/work", headers=key("k")) for _ in range(2)]
    assert [answer.json() for answer in answers] == ["http:anonymous:POST:test:%2Fwork:k"] * 2
    assert done == [1]
