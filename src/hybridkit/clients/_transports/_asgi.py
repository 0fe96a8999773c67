"""A transport to an ASGI application in the same process, for tests.

As a real server does, and httpx's ASGI transport doesn't, it passes a body on while it is being made, opens and closes
the application's lifespan, goes on with a handler whose caller has left, and shows it nothing of the caller's context
but the headers. https://asgi.readthedocs.io/en/latest/specs/
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

from hybridkit._asgi_types import ASGIApp, Message
from hybridkit._tasks import TaskSet
from hybridkit.clients._transports._base import (
    EndsWhenCancelled,
    Request,
    Response,
    StreamedResponse,
    headers_of,
    read_body,
)
from hybridkit.errors import OutcomeUnknownError, UnavailableError

GRACE_SECONDS: Final = 1.0
"""The time that handlers, and then the lifespan, have to end once the transport is closed."""
VERSION: Final = {"version": "3.0", "spec_version": "2.4"}


class AsgiTransport(EndsWhenCancelled):
    """Sends to an application in the same process; its lifespan begins with the first request and ends at `aclose`.

    Args:
        application: one of FastAPI's, Starlette's, or any other of ASGI 3.
    """

    def __init__(self, application: ASGIApp) -> None:
        self._application = application
        self._lifespan: _Lifespan | None = None
        self._handling = TaskSet()

    def __repr__(self) -> str:
        return f"AsgiTransport(started={self._lifespan is not None})"

    async def send(self, request: Request) -> Response:
        """See `Transport.send`."""
        async with self.stream(request) as answer:
            body = await read_body(
                answer.chunks, request=request, status=answer.status, headers=answer.headers
            )
            return Response(status=answer.status, headers=answer.headers, body=body)

    @asynccontextmanager
    async def stream(self, request: Request) -> AsyncGenerator[StreamedResponse]:
        """See `Transport.stream`."""
        if self._lifespan is None:
            self._lifespan = _Lifespan(self._application)
        state = await self._lifespan.started()
        cycle = _RequestCycle(request)
        self._handling.start(cycle.run(self._application, state), context=Context())
        try:
            start = await cycle.next("http.response.start")
            try:
                status, headers = int(start["status"]), _headers(start)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise OutcomeUnknownError(f"{request}: the head of its answer is none: {error!r}") from error
            yield StreamedResponse(status=status, headers=headers, chunks=cycle.chunks())
        finally:
            cycle.left.set()

    async def aclose(self) -> None:
        """Give the handlers, and then the lifespan, a second each to end."""
        if not await self._handling.wait(seconds=GRACE_SECONDS):
            for task in self._handling:
                task.cancel()
        if self._lifespan is not None:
            await self._lifespan.aclose()
            self._lifespan = None


class _RequestCycle:
    """One request and its answer; the application waits until each message has been taken."""

    def __init__(self, request: Request) -> None:
        self.left = asyncio.Event()
        self._request = request
        self._asked = False
        # One at a time, as a socket's flow control would hold the application back from filling the memory.
        self._messages: asyncio.Queue[Message | Exception | None] = asyncio.Queue(maxsize=1)

    async def run(self, application: ASGIApp, state: Mapping[str, Any]) -> None:
        end: Exception | None = None
        try:
            await application(_scope(self._request, state), self._receive, self._send)
        except Exception as error:  # noqa: BLE001 - it is the caller's to see, as the cause of a lost answer
            end = error
        await self._put(end)

    async def next(self, kind: str) -> Message:
        message = await self._messages.get()
        if isinstance(message, Exception):
            raise OutcomeUnknownError(f"{self._request}: the application raised {message!r}") from message
        if message is None or message["type"] != kind:
            found = "ended" if message is None else f"sent {message['type']}"
            raise OutcomeUnknownError(f"{self._request}: the application {found} instead of {kind}")
        return message

    async def chunks(self) -> AsyncGenerator[bytes]:
        more = True
        while more:
            message = await self.next("http.response.body")
            more = message.get("more_body", False)
            if body := message.get("body", b""):
                yield body

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self._put(message)

    async def _put(self, message: Message | Exception | None) -> None:
        """Wait until the message is taken, or until the caller has left."""
        if self.left.is_set():
            return
        putting = asyncio.ensure_future(self._messages.put(message))
        leaving = asyncio.ensure_future(self.left.wait())
        try:
            await asyncio.wait((putting, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()
            leaving.cancel()


class _Lifespan:
    """The application's start and end, in a task of its own; nothing where the application has no lifespan."""

    def __init__(self, application: ASGIApp) -> None:
        self._state: dict[str, Any] = {}
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked = False
        self._closing = asyncio.Event()
        self._task = asyncio.create_task(self._run(application), context=Context())

    async def started(self) -> dict[str, Any]:
        """Wait for the start, and return a copy of the lifespan's state for one request."""
        await asyncio.shield(self._started)
        return self._state.copy()

    async def aclose(self) -> None:
        self._closing.set()
        await asyncio.wait((self._task,), timeout=GRACE_SECONDS)
        self._task.cancel()

    async def _run(self, application: ASGIApp) -> None:
        scope = {"type": "lifespan", "asgi": VERSION, "state": self._state}
        # An application without a lifespan raises:
        # https://asgi.readthedocs.io/en/latest/specs/lifespan.html#scope
        with suppress(Exception):
            await application(scope, self._receive, self._send)
        if not self._started.done():
            self._started.set_result(None)

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._closing.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        if self._started.done():
            return
        if message["type"] == "lifespan.startup.failed":
            why = message.get("message", "")
            self._started.set_exception(UnavailableError(f"the application did not start: {why}"))
        else:
            self._started.set_result(None)


def _scope(request: Request, state: Mapping[str, Any]) -> dict[str, Any]:
    url = urlsplit(request.url)
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in request.headers.items()]
    length = [(b"content-length", str(len(request.body)).encode())] if request.body else []
    return {
        "type": "http",
        "asgi": VERSION,
        "http_version": "1.1",
        "method": request.method,
        "scheme": url.scheme,
        "path": unquote(url.path) or "/",
        "raw_path": url.path.encode() or b"/",
        "root_path": "",
        "query_string": url.query.encode(),
        "headers": [(b"host", url.netloc.encode()), *headers, *length],
        "server": (url.hostname, url.port or (443 if url.scheme == "https" else 80)),
        "client": ("127.0.0.1", 123),
        "state": state,
    }


def _headers(start: Message) -> dict[str, str]:
    raw = cast("list[tuple[bytes, bytes]]", start.get("headers", []))
    return headers_of(raw)
