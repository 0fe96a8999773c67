"""A client's connection: limits and deadlines that hold before an application is called.

```
a head        at most 64 KiB (431), complete within 20 s (408)
a body        at least 512 bytes per second, and over soon after its response, or the connection is closed
a response    its client reads some of it every 30 s, or the connection is closed
```

What uvicorn itself refuses (malformed HTTP, a wrong chunk, an unknown method) is answered as a problem too (RFC 9457).
"""

import asyncio
import sys
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from hybridkit._asgi_types import ASGIApp, Receive, Scope, Send
from hybridkit.adapters._http._asgi import ABORT_EXTENSION
from hybridkit.adapters._http._problems import http_problem, problem_headers
from hybridkit.observability import get_logger, metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from uvicorn.protocols.http.flow_control import FlowControl

HEAD_SECONDS: Final = 20.0
BODY_SECONDS: Final = 20.0
MIN_BODY_BYTES_PER_SECOND: Final = 512
WRITE_STALL_SECONDS: Final = 30.0
LINGER_SECONDS: Final = 5.0
"""How long the rest of a body is read and dropped after the response, so that the response can arrive."""

_log = get_logger("hybridkit.http")


class ExpectedPart(Enum):
    """The part of a request that the client has to send next."""

    NOTHING = "nothing"
    HEAD = "head"
    BODY = "body"


class Connection(asyncio.Protocol):
    """Limits, deadlines for the client, and a way to abort a response, for both of uvicorn's protocols.

    The hot path only counts bytes; once a second all connections are checked for slow clients.
    """

    transport: asyncio.Transport
    flow: "FlowControl"
    cycle: Any  # a class of this name exists in each protocol
    app: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = self._with_extension(self.app)
        self._lost = asyncio.Event()
        self._received_bytes = 0
        self._expected = ExpectedPart.HEAD
        self._phase = 0  # the number of changes of the expected part
        self._phase_seen = (-1, False)
        self._since = 0.0
        self._received_then = 0
        self._queued_bytes = 0
        self._queued_since = 0.0

    def data_received(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._expected is ExpectedPart.NOTHING and not self._answering:
            self.expect(ExpectedPart.HEAD)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost.set()

    def resume_writing(self) -> None:
        self._queued_bytes = -1  # the client has read something
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer malformed HTTP; called by uvicorn while it handles the parser's error."""
        self.refuse(getattr(sys.exception(), "error_status_hint", 400), msg)

    def refuse(self, status: int, detail: str) -> None:
        """Answer with a problem and close the connection; only close it while an earlier request is being answered."""
        _log.info("a connection was refused", reason=detail, **{"http.response.status_code": status})
        metrics.http_server_refused.labels(status).inc()
        if not self._answering:
            problem, body = http_problem(status, detail, instance="")
            fields = [
                *problem_headers(problem),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ]
            head = b"".join(b"%b: %b\r\n" % field for field in fields)
            self.transport.write(b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, problem.title.encode(), head, body))
        self.transport.close()

    def check(self, now: float) -> None:
        """Close the connection if the client is too slow.

        Args:
            now: the time by `time.monotonic`.
        """
        phase = (self._phase, self._answering)
        if phase != self._phase_seen or not self._waits_for_peer():
            self._phase_seen = phase
            self._begin_window(now)
        waited = now - self._since
        if self._expected is ExpectedPart.HEAD and waited > HEAD_SECONDS:
            self.refuse(408, "the head of the request did not come in time")
        elif self._expected is ExpectedPart.BODY and not self._answering and waited > LINGER_SECONDS:
            self._drop("it goes on with a body that is answered already")
        elif self._expected is ExpectedPart.BODY and waited > BODY_SECONDS:
            if self._received_bytes - self._received_then < waited * MIN_BODY_BYTES_PER_SECOND:
                self._drop("its body comes too slowly")
            self._begin_window(now)
        self._check_writing(now)

    def _check_writing(self, now: float) -> None:
        queued_bytes = self.transport.get_write_buffer_size()
        if queued_bytes == 0 or queued_bytes != self._queued_bytes:
            self._queued_bytes, self._queued_since = queued_bytes, now
        elif now - self._queued_since > WRITE_STALL_SECONDS:
            self._drop("it takes nothing of its answer")

    def _begin_window(self, now: float) -> None:
        self._since, self._received_then = now, self._received_bytes

    def _waits_for_peer(self) -> bool:
        """Return whether the server waits for the client, and not the client for the application."""
        if self._expected is not ExpectedPart.BODY:
            return self._expected is ExpectedPart.HEAD and not self._answering
        cycle = self.cycle
        return not (self.flow.read_paused or (cycle is not None and cycle.waiting_for_100_continue))

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def expect(self, part: ExpectedPart) -> None:
        """Set the part of a request that comes next."""
        self._expected = part
        self._phase += 1

    def _drop(self, reason: str) -> None:
        _log.info("a client was given up", reason=reason)
        self.transport.abort()

    async def _abort(self) -> None:
        self.transport.abort()  # `close` would wait for the client to read
        await self._lost.wait()

    def _with_extension(self, app: ASGIApp) -> ASGIApp:
        extensions = {ABORT_EXTENSION: self._abort}

        def serve(scope: Scope, receive: Receive, send: Send) -> "Awaitable[None]":
            scope["extensions"] = extensions
            return app(scope, receive, send)

        return serve


class H11Connection(Connection, H11Protocol):
    """The connection in pure Python; h11 limits the head's size, and `RequestContextMiddleware` its fields."""

    def handle_events(self) -> None:
        super().handle_events()
        theirs = self.conn.their_state
        if theirs is h11.SEND_BODY:
            expected = ExpectedPart.BODY
        elif theirs is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            expected = ExpectedPart.HEAD
        else:
            expected = ExpectedPart.NOTHING
        if expected is not self._expected:
            self.expect(expected)
