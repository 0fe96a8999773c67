"""Applications of `create_app` in memory, and requests to them with and without a client."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel

from hybridkit.adapters.fastapi import create_app
from hybridkit.context import current
from hybridkit.settings import ServiceSettings

type Api = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]


class Settings(ServiceSettings):
    """Settings of a service that needs nothing."""

    service_name: str = "test_service"


class Order(BaseModel):
    """The body of a write of `orders_app`."""

    amount: int
    note: str = ""


def orders_app(done: list[Any]) -> FastAPI:
    """Make an application with one write and one read, which add to `done` what they have done."""
    application = create_app(Settings, title="Test")

    @application.post("/orders", status_code=201)
    async def create(body: Order) -> dict[str, Any]:
        claim = current().claim
        done.append(body)
        if body.amount < 0:
            raise HTTPException(400, "no debts")
        return {"number": len(done), "claim": claim.key if claim else None, "note": body.note}

    @application.get("/orders")
    async def read() -> int:
        done.append("read")
        return len(done)

    return application


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient]:
    """Run an application, and give a client for it; its errors become responses."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


def fails(error: Exception) -> Callable[[], Awaitable[None]]:
    """Return a route that raises an error."""

    async def fail() -> None:
        raise error

    return fail


def raising(app: FastAPI, error: Exception) -> list[str]:
    """Add routes that raise an error (itself, in a dependency, in a mounted application), and return their paths."""
    fail = fails(error)
    app.add_api_route("/route", fail, methods=["POST"])
    app.add_api_route("/first", lambda: None, methods=["POST"], dependencies=[Depends(fail)])
    mounted = FastAPI()
    mounted.add_api_route("/route", fail, methods=["POST"])
    app.mount("/mounted", mounted)
    return ["/route", "/first", "/mounted/route"]


def key(name: str) -> dict[str, str]:
    """Return the header of an idempotency key."""
    return {"idempotency-key": name}


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Return the status and the code of a problem."""
    return answer.status_code, answer.json()["code"]


GONE = {"type": "http.disconnect"}


def scope_of(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": raw_headers(),
        "client": None,
        "server": ("test", 80),
    }


def raw_headers() -> list[tuple[bytes, bytes]]:
    """Those of the other requests here, as far as they count."""
    lines = httpx.Request("POST", "http://test/").headers.raw
    accepted = [
        (b"accept", b"*/*"),
        (b"accept-encoding", httpx.AsyncClient().headers["accept-encoding"].encode()),
    ]
    return [(name.lower(), value) for name, value in lines] + accepted + [(b"idempotency-key", b"k")]


def receive_of(bodies: Sequence[bytes]) -> Callable[[], Any]:
    messages = iter(bodies)

    async def receive() -> Any:
        body = next(messages, None)
        return GONE if body is None else {"type": "http.request", "body": body, "more_body": False}

    return receive
