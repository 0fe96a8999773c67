"""One HTTP/1.1 connection: a request out and its answer back, then the next ones.

An answer with a plain head is put together as its bytes come in. The bytes of any other are left to a reader.
"""

import asyncio
from collections.abc import Callable
from typing import Final, cast

from hybridkit.clients._transports._heads import PlainHead, plain_head

MAX_HEAD_BYTES: Final = 16 * 1024
"""The bytes in which a plain head has to end; h11 has the same limit for the others."""
MAX_WAITING_BYTES: Final = 256 * 1024
"""The bytes that may wait for the reader; the connection is read no further while there are more."""
MAX_BODY_AT_ONCE: Final = 1024 * 1024
"""A longer body is sent in pieces, so that the event loop can do other work in between."""
PIECE: Final = 64 * 1024

type PlainAnswer = tuple[PlainHead, bytes]


class Http1Connection(asyncio.Protocol):
    """A connection, for one request at a time.

    Args:
        on_lost: called with the connection once it is closed, by whichever side.

    Attributes:
        idle_since: when the last answer ended, by the event loop's clock.
    """

    def __init__(self, on_lost: Callable[["Http1Connection"], None]) -> None:
        self.idle_since = 0.0
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._error: Exception | None = None
        self._is_busy = False
        self._is_spent = False
        self._plain: asyncio.Future[PlainAnswer | None] | None = None
        self._head = PlainHead(status=0, headers={}, length=0, keeps_alive=False)
        self._limit_bytes = 0
        self._missing_bytes = 0
        self._received: list[bytes] = []
        self._waiting_bytes = 0
        self._has_more: asyncio.Future[None] | None = None
        self._can_write: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"Http1Connection(is_open={self.is_open}, is_busy={self._is_busy})"

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    # ── for the transport ────────────────────────────────────────────────────────────────────────

    async def ask(self, head: bytes, body: bytes, *, limit_bytes: int | None) -> PlainAnswer | None:
        """Send a request and return its answer, or None if that has no plain head: then `receive` has its bytes.

        Args:
            head: the request's head.
            body: its body, sent as far as the other side takes it before it answers.
            limit_bytes: an answer that announces more is returned without its body; None leaves any to `receive`.

        Raises:
            ConnectionError: the connection ended before the answer did.
        """
        self._is_busy = True
        plain: asyncio.Future[PlainAnswer | None] | None = None
        if limit_bytes is not None:
            plain = self._plain = self._loop.create_future()
            self._limit_bytes = limit_bytes
        if len(body) > MAX_BODY_AT_ONCE:
            self._write(head)
            await self._write_pieces(body, plain)
        else:
            self._write(head + body)
        return None if plain is None else await plain

    async def _write_pieces(self, body: bytes, plain: asyncio.Future[PlainAnswer | None] | None) -> None:
        for start in range(0, len(body), PIECE):
            if self._can_write is not None:
                await self._can_write
            if self._transport is None or (plain is not None and plain.done() and plain.result()):
                self._is_spent = True  # the other side still waits for the rest
                return
            self._transport.write(body[start : start + PIECE])

    async def receive(self) -> bytes:
        """Return the next bytes of the answer; none at the end of the connection.

        Raises:
            ConnectionError: the connection broke.
        """
        while not self._received:
            if self._transport is None:
                if self._error is not None:
                    raise ConnectionError(str(self._error)) from self._error
                return b""
            self._has_more = self._loop.create_future()
            await self._has_more
        data = b"".join(self._received)
        self._received.clear()
        if self._waiting_bytes > MAX_WAITING_BYTES and self._transport is not None:
            self._transport.resume_reading()
        self._waiting_bytes = 0
        return data

    def finish(self, *, keeps_alive: bool) -> bool:
        """End the use of the connection; return whether it can take another request, and close it if not."""
        self._is_busy = False
        if keeps_alive and not self._is_spent and not self._received and self.is_open:
            self.idle_since = self._loop.time()
            return True
        self.abort()
        return False

    def abort(self) -> None:
        """Close the connection at once, whatever it is in the middle of."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            raise ConnectionError("closed by the other side")
        self._transport.write(data)

    # ── for the event loop ───────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport of a new connection."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the answer; close a connection on which some come unasked."""
        if self._missing_bytes:
            self._take_body(data)
        elif self._plain is not None:
            self._take_head(data)
        elif self._is_busy:
            self._keep(data)
        else:
            self.abort()

    def _take_head(self, data: bytes) -> None:
        if self._received:
            data = b"".join((*self._received, data))
            self._received.clear()
        end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        if end < 0 and len(data) < MAX_HEAD_BYTES:
            self._received.append(data)
            return
        head = None if end < 0 else plain_head(data[:end])
        if head is None:
            self._answer(None)
            self._keep(data)
            return
        self._head = head
        if head.length > self._limit_bytes:
            self._is_spent = True
            self._answer((head, b""))
            return
        self._missing_bytes = head.length
        self._take_body(data[end + 4 :])

    def _take_body(self, data: bytes) -> None:
        self._received.append(data)
        self._missing_bytes -= len(data)
        if self._missing_bytes > 0:
            return
        body = data if len(self._received) == 1 else b"".join(self._received)
        self._received.clear()
        if self._missing_bytes:  # more than was announced: nobody knows what it is the answer to
            body = body[: self._missing_bytes]
            self._missing_bytes = 0
            self._is_spent = True
        self._answer((self._head, body))

    def _answer(self, answer: PlainAnswer | None) -> None:
        if self._plain is not None and not self._plain.done():
            self._plain.set_result(answer)
        self._plain = None
        if answer is not None and self._can_write is not None and not self._can_write.done():
            self._can_write.set_result(None)  # the rest of the request is of no interest any more

    def _keep(self, data: bytes) -> None:
        self._received.append(data)
        waited_bytes, self._waiting_bytes = self._waiting_bytes, self._waiting_bytes + len(data)
        if waited_bytes <= MAX_WAITING_BYTES < self._waiting_bytes and self._transport is not None:
            self._transport.pause_reading()
        if self._has_more is not None and not self._has_more.done():
            self._has_more.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell all who wait."""
        self._transport = None
        self._error = exc
        self._missing_bytes = 0
        plain, self._plain = self._plain, None
        if plain is not None and not plain.done():
            plain.set_exception(ConnectionError(str(exc or "closed by the other side")))
        for waiting in (self._has_more, self._can_write):
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        self._can_write = None
        self._on_lost(self)

    def pause_writing(self) -> None:
        """Hold back further pieces of a body."""
        self._can_write = self._loop.create_future()

    def resume_writing(self) -> None:
        """Let the next pieces go."""
        if self._can_write is not None and not self._can_write.done():
            self._can_write.set_result(None)
        self._can_write = None
