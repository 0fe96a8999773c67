"""Writes with an `Idempotency-Key`: each runs once, and its response is stored and replayed.

```
first       … dependencies ── begin ── the work ── response complete ── recorded ── sent      then its background tasks
repetition  … dependencies ── begin ── the stored response
```

A route of FastAPI's claims the key after its dependencies have let the caller in, so that a caller that they refuse
learns nothing. For everything else the key is claimed before it runs.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from hybridkit._asgi_types import ASGIApp, Message, RawHeaders, Receive, Scope, Send
from hybridkit.adapters._http._asgi import send_response
from hybridkit.adapters._http._identity import UNDECLARED, Declared, claim_name, request_payload
from hybridkit.context import Claim, RequestContext, bind, current
from hybridkit.contract import IDEMPOTENCY_KEY_HEADER, IDEMPOTENCY_REPLAYED_HEADER, parse_key
from hybridkit.errors import (
    AnswerNotKeptError,
    HybridkitError,
    InProgressError,
    InvalidHeaderError,
    InvalidRequestError,
    KeyReusedError,
    RejectedError,
    RequestKeyReusedError,
)
from hybridkit.idempotency import MAX_RESULT_BYTES, Attempt, IdempotencyGuard, Outcome

KEYED: Final = "hybridkit.keyed"
"""The key of a scope's `KeyedRequest`."""

_KEY_HEADER: Final = IDEMPOTENCY_KEY_HEADER.encode()
_WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_DONE_REDIRECTS: Final = frozenset({301, 302, 303})
"""Redirects to the result of finished work. 307 and 308 ask for a repetition elsewhere, and 304 belongs to reads."""

_PER_RESPONSE: Final = frozenset(
    {
        # of the connection, https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        # of the moment
        b"age",
        b"date",
        b"server-timing",
        b"traceparent",
        b"traceresponse",
        b"x-request-id",
        # of the caller's session
        b"authentication-info",
        b"clear-site-data",
        b"proxy-authentication-info",
        b"set-cookie",
        b"set-cookie2",
        # made again
        b"content-length",
        IDEMPOTENCY_REPLAYED_HEADER.encode(),
    }
)


class IdempotencyMiddleware:
    """Runs a write with an `Idempotency-Key` once, and replays its response to repetitions.

    A response is stored when it is complete, before its last part is sent. Background tasks are not waited for, and
    their failure changes nothing. Stored are responses with 2xx, and redirects to the result (301, 302, 303); any other
    releases the key. A response of more than 32 KiB is sent, and recorded as done and not stored.

    Within the application the context carries the claim, so that each write to a data service and each event derives
    its identity from it: a rerun after a crash creates the same rows. A key belongs to the caller, method, host and
    path.

    Args:
        app: the application.
        guard: returns the guard of the running application, or None without one.
        claims_inside: returns whether the request goes to something that calls `KeyedRequest.begin` and `enter` itself;
            otherwise the middleware calls them before the application.
        internal: whether the callers are our own services, whose headers are believed.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        guard: Callable[[Scope], IdempotencyGuard | None],
        claims_inside: Callable[[Scope], bool] = lambda _: False,
        internal: bool = False,
    ) -> None:
        self.app = app
        self.guard = guard
        self.claims_inside = claims_inside
        self.internal = internal

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request; one without a key without a coroutine of its own."""
        key = None
        if scope["type"] == "http" and scope["method"] in _WRITES and KEYED not in scope:
            key = _key_in(scope)
        guard = None if key is None else self.guard(scope)
        if key is None or guard is None:
            return self.app(scope, receive, send)
        return self._serve(key, guard, scope, receive, send)

    async def _serve(
        self, key: str, guard: IdempotencyGuard, scope: Scope, receive: Receive, send: Send
    ) -> None:
        body = await _read_body(receive)
        async with guard.attempt() as attempt:
            keyed = scope[KEYED] = KeyedRequest(scope, attempt, key, body, send, internal=self.internal)
            run = self._run if self.claims_inside(scope) else self._claim_and_run
            await run(keyed, scope, _receive_again(body, receive))
            await keyed.conclude()

    async def _run(self, keyed: "KeyedRequest", scope: Scope, receive: Receive) -> None:
        try:
            await self.app(scope, receive, keyed.send)
        except Exception:
            if not keyed.is_stopped:  # else the error has kept the work from running
                raise

    async def _claim_and_run(self, keyed: "KeyedRequest", scope: Scope, receive: Receive) -> None:
        await keyed.begin()
        if not keyed.enter(is_authorized=False):
            return
        with bind(keyed.context()):
            try:
                await self.app(scope, receive, keyed.send)
            except HybridkitError as error:
                await keyed.refuse(error.status)
                raise


class KeyedRequest:
    """One request under a key, and its answer on its way out."""

    def __init__(
        self, scope: Scope, attempt: Attempt, key: str, body: bytes, send: Send, *, internal: bool
    ) -> None:
        self.is_stopped = False
        self._scope = scope
        self._attempt = attempt
        self._key = key
        self._body = body
        self._send = send
        self._internal = internal
        self._name = ""
        self._replacement: _StoredResponse | HybridkitError | None = None
        self._has_entered = False
        self._is_authorized = False
        self._head: Message | None = None
        self._response = _StoredResponse(500)

    def __repr__(self) -> str:
        return f"KeyedRequest({self._name!r}, is_stopped={self.is_stopped})"

    async def begin(self, declared: Declared = UNDECLARED) -> None:
        """Claim the key for the caller that the request comes from.

        Args:
            declared: what the route declares.

        Raises:
            UnavailableError: Redis is down, and the guard refuses.
        """
        self._name = claim_name(self._scope, self._key, declared, internal=self._internal)
        payload = request_payload(self._scope, self._body, declared)
        try:
            before = await self._attempt.begin(self._name, payload)
        except KeyReusedError as reused:
            self._replacement = RequestKeyReusedError(str(reused))
        except (InProgressError, RejectedError) as refusal:
            self._replacement = refusal
        else:
            if before is not None:
                self._replacement = _StoredResponse.load(before.result)

    def enter(self, *, is_authorized: bool = True) -> bool:
        """Return whether the work may run now; if not, the application's response is dropped.

        Args:
            is_authorized: whether the caller has been let in; otherwise the work itself has to check that.
        """
        self.is_stopped = self._replacement is not None
        self._has_entered = not self.is_stopped
        self._is_authorized = is_authorized
        return self._has_entered

    def context(self) -> RequestContext:
        """Return the current context with the claim."""
        return replace(current(), claim=Claim(self._name))

    async def refuse(self, status: int) -> None:
        """Record a response which says that the work is not done."""
        is_unbegun = not self._has_entered or (status in (401, 403) and not self._is_authorized)
        await self._attempt.finish(Outcome.FORGOTTEN if is_unbegun else Outcome.RELEASED)

    async def conclude(self) -> None:
        """Send the stored response, or raise the error, in place of work that was not run."""
        if not self.is_stopped:
            return
        if isinstance(self._replacement, HybridkitError):
            raise self._replacement
        if self._replacement is not None:
            await self._replacement.replay(self._send)

    async def send(self, message: Message) -> None:
        """Send a part of the application's response, after recording a complete one."""
        if self.is_stopped:
            return
        match message["type"]:
            case "http.response.start":
                self._response = _StoredResponse(message["status"], message.get("headers", ()))
                if self._response.has_length:  # a response in one piece can still be replaced by an error
                    self._head = message
                    return
            case "http.response.body" | "http.response.pathsend" | "http.response.zerocopysend":
                self._response.add(message)
                if not message.get("more_body", False):
                    await self._record()
                if self._head is not None:
                    head, self._head = self._head, None
                    await self._send(head)
            case _:
                pass  # hints and trailers are not stored
        await self._send(message)

    async def _record(self) -> None:
        if self._has_entered and self._response.is_final:
            await self._attempt.finish(Outcome.COMPLETED, self._response.to_record())
        else:
            await self.refuse(self._response.status)


class _StoredResponse:
    """A response as far as it can be replayed; without a body that is too large."""

    def __init__(self, status: int, headers: Any = ()) -> None:
        self.status = status
        fields = [(bytes(name).lower(), bytes(value)) for name, value in headers]
        self.has_length = any(name == b"content-length" for name, _ in fields)
        self.headers: RawHeaders = [field for field in fields if field[0] not in _PER_RESPONSE]
        self.body: bytearray | None = bytearray()

    @property
    def is_final(self) -> bool:
        """Whether the status says that the work is done."""
        return 200 <= self.status < 300 or self.status in _DONE_REDIRECTS

    def add(self, message: Message) -> None:
        """Store the next part of the body, unless the body gets too large or is in a file."""
        if self.body is None:
            return
        fits = len(self.body) + len(message.get("body", b"")) <= MAX_RESULT_BYTES
        if message["type"] == "http.response.body" and fits:
            self.body += message.get("body", b"")
        else:
            self.body = None

    def to_record(self) -> dict[str, Any] | None:
        """Return the response as JSON, or None when its body is not stored."""
        if self.body is None:
            return None
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.headers]
        return {"status": self.status, "headers": headers, "body": self.body.decode("latin-1")}

    @classmethod
    def load(cls, kept: dict[str, Any] | None) -> "_StoredResponse | AnswerNotKeptError":
        """Return the response of a record, or the error for a record without one."""
        if kept is None:
            return AnswerNotKeptError(
                "this was done before, and is not done again; its answer was too large to keep: read what it made"
            )
        answer = cls(kept["status"])
        answer.headers = [
            (name.encode("latin-1"), value.encode("latin-1")) for name, value in kept["headers"]
        ]
        answer.body = bytearray(kept["body"].encode("latin-1"))
        return answer

    async def replay(self, send: Send) -> None:
        """Send the response to a repetition."""
        body = bytes(self.body or b"")
        headers = [*self.headers, (IDEMPOTENCY_REPLAYED_HEADER.encode(), b"true")]
        if self.status != 204:  # https://www.rfc-editor.org/rfc/rfc9110#section-8.6
            headers.append((b"content-length", b"%d" % len(body)))
        await send_response(send, self.status, headers, body)


def _key_in(scope: Scope) -> str | None:
    """Return the key of a request, or None without one.

    Raises:
        InvalidRequestError: the key is malformed.
        InvalidHeaderError: the request has several keys.
    """
    lines = {value for name, value in scope["headers"] if name == _KEY_HEADER}
    if not lines:
        return None
    if len(lines) > 1:
        raise InvalidHeaderError(
            f"{IDEMPOTENCY_KEY_HEADER} is given more than once, with different values",
            field=IDEMPOTENCY_KEY_HEADER,
        )
    [line] = lines
    return parse_key(line.decode("latin-1"))


async def _read_body(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequestError("the caller left before its body was complete")
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)


def _receive_again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields the body once more, and then the server's further messages."""
    given = False

    async def once() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once
