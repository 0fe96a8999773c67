"""The outermost middleware of an HTTP application, as plain ASGI, without a framework or copies of the body.

```
RequestContextMiddleware            binds the context, answers errors, logs and measures each request
└── the application's middleware    whenever it was added
    └── ProblemMiddleware           turns errors into problems, which pass through that middleware as responses
        └── SecurityMiddleware      knows the caller, and refuses whom the route's policies do not let in
            └── IdempotencyMiddleware   runs a keyed write once; see `_keyed.py`
                └── TextMiddleware      refuses text that no database stores; not when our own services call
                    └── HeadMiddleware  answers `HEAD` as `GET`
                        └── the application
```

https://asgi.readthedocs.io/en/latest/specs/www.html
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, cast

from prometheus_client import Histogram

from hybridkit._asgi_types import ASGIApp, Message, RawHeaders, Receive, Scope, Send
from hybridkit._header_fields import Fields
from hybridkit.adapters._http._deadlines import Deadlines
from hybridkit.adapters._http._edge import Edge
from hybridkit.adapters._http._limits import (
    AmbiguousHeadError,
    BodyLimits,
    LimitedReceive,
    check_head,
    check_target,
)
from hybridkit.adapters._http._problems import is_upstream_error, problem_body, problem_headers, problem_of
from hybridkit.adapters._http._spans import METHODS, end_request_span, request_span
from hybridkit.context import (
    REQUEST_ID_HEADER,
    REQUEST_TIMEOUT_HEADER,
    USER_ID_HEADER,
    RequestContext,
    bind,
    current,
    has_noted_user,
    serving,
    to_http,
    with_noted_user,
)
from hybridkit.errors import (
    DeadlineExceededError,
    HybridkitError,
    InvalidHeaderError,
    OutcomeUnknownError,
    RejectedError,
)
from hybridkit.observability import exemplar, get_logger, is_tracing, metrics, report_error

type FailureHandler = Callable[[Scope, Receive, Send, Exception], Awaitable[bool]]

PROBE_PATHS: Final = frozenset({"/health", "/ready", "/metrics"})

ABORT_EXTENSION: Final = "hybridkit.abort"
"""The key in a scope's `extensions` of a function that closes the connection, to take back half a response."""

RESPONSE_COOKIES: Final = "hybridkit.response_cookies"
"""The key in a scope of its response's `ResponseCookies`."""

RESPONSE_HEADERS: Final = "hybridkit.response_headers"
"""The key in a scope of a list of headers that the response gets, whatever kind of response it becomes."""

_REQUEST_ID: Final = REQUEST_ID_HEADER.encode()
_CONTEXT_HEADERS: Final = (REQUEST_ID_HEADER, REQUEST_TIMEOUT_HEADER)
_CONTEXT_FIELDS: Final = frozenset(name.encode() for name in (*_CONTEXT_HEADERS, USER_ID_HEADER))

_log = get_logger("hybridkit.http")


class RequestContextMiddleware:
    """Binds the request's context and deadline, adds the headers of the edge, answers errors, and logs one line.

    Args:
        app: the application.
        internal: whether the callers are our own services: their `X-User-ID` is believed, and they are told why
            something failed. Other callers are told only that it did.
        body_limits: the limits of request bodies; 1 MiB without them.
        streams: the registry for open event streams.
        edge: the rules for browsers, proxies and deadlines; the defaults without it.
        answer_error: answers an error of other middleware, or returns False for one that it does not know.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        internal: bool = False,
        body_limits: BodyLimits | None = None,
        streams: "EventStreams | None" = None,
        edge: Edge | None = None,
        answer_error: "FailureHandler | None" = None,
    ) -> None:
        self.app = app
        self.internal = internal
        self.body_limits = body_limits or BodyLimits({})
        self.streams = streams or EventStreams()
        self.edge = edge or Edge(internal=internal)
        self.answer_error = answer_error
        self.handle_failure: FailureHandler | None = None
        self.deadlines = Deadlines()
        # An external caller's claim to act for a user is not believed.
        self._context_headers = (*_CONTEXT_HEADERS, USER_ID_HEADER) if internal else _CONTEXT_HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        app, edge, fields = self.app, self.edge, Fields(scope["headers"])
        try:
            fields.check()
            if edge.proxies is not None:
                edge.proxies.apply(scope, fields)
            if edge.cors is not None:
                app = edge.cors.preflight(scope, fields) or app
            context = _context_of(fields, self._context_headers, edge.seconds_for(scope["path"]))
        except InvalidHeaderError as error:
            context, app = _context_of_refused(fields), _refusing(error)
        with serving(context):
            cycle = _RequestCycle(scope, fields, receive, send, context=context, middleware=self)
            if scope["path"] in PROBE_PATHS or not is_tracing():
                await cycle.run(app)
                return
            with request_span(scope, fields, internal=self.internal) as span:
                try:
                    await cycle.run(app)
                finally:
                    end_request_span(span, scope, route=_template(scope), status=cycle.status)


class ProblemMiddleware:
    """Turns errors into problems inside of other middleware, which can then add to the responses, as CORS does.

    Args:
        app: the application.
        internal: as in `RequestContextMiddleware`.
        handle_failure: answers an error in the application's own way, or returns False when it has none.
    """

    def __init__(
        self, app: ASGIApp, *, internal: bool = False, handle_failure: "FailureHandler | None" = None
    ) -> None:
        self.app = app
        self.internal = internal
        self.handle_failure = handle_failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        response = _BufferedResponse(send)
        try:
            await self.app(scope, receive, response.send)
        except Exception as error:  # any error becomes a response, unless one has been sent
            if not response.is_replaceable:
                raise
            if self.handle_failure and await self.handle_failure(scope, receive, send, error):
                _log_failure(error, "request failed", is_expected=False)
                return
            await _send_problem(error, scope, send, internal=self.internal)
        else:
            await response.flush()


class ResponseCookies:
    """The cookies that a response sets, whatever becomes the response: a route's value, its own, or an error."""

    __slots__ = ("_values", "are_sent")

    def __init__(self) -> None:
        self.are_sent = False
        """Whether the head of the response has been sent, so that it can't take more."""
        self._values: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"ResponseCookies({list(self._values)}, are_sent={self.are_sent})"  # values may be secrets

    def set(self, name: str, value: str) -> None:
        """Set a cookie, in place of an earlier one with the name.

        Args:
            name: the cookie's name.
            value: the value and the attributes, in ASCII.
        """
        self._values[name] = value

    def onto(self, headers: RawHeaders) -> RawHeaders:
        """Return the headers of a response with the cookies, and without leave to store it, if there are any."""
        self.are_sent = True
        if not self._values:
            return headers
        others = [field for field in headers if field[0].lower() != b"cache-control"]
        lines = [(b"set-cookie", f"{name}={value}".encode()) for name, value in self._values.items()]
        return [*others, *lines, (b"cache-control", b"no-store")]


class EventStreams:
    """The open event streams, which a stopping server has to end, as their clients would not.

    An event stream (`text/event-stream`) ends as if its source had ended. Its client reconnects by itself, to another
    replica (https://html.spec.whatwg.org/multipage/server-sent-events.html#processing-model).
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"EventStreams({len(self._tasks)} open)"

    def __contains__(self, task: object) -> bool:
        return task in self._tasks

    def add(self, task: "asyncio.Task[Any]") -> None:
        """Register the task that serves an event stream."""
        self._tasks.add(task)

    def discard(self, task: "asyncio.Task[Any]") -> None:
        """Forget a task whose event stream has ended."""
        self._tasks.discard(task)

    def end(self) -> None:
        """Cancel the open event streams; each completes its response."""
        for task in list(self._tasks):
            task.cancel()


class _BufferedResponse:
    """A response on its way to the client. A 500 is held back, as an error with more to say may follow."""

    __slots__ = ("_buffered", "_send", "status")

    def __init__(self, send: Send) -> None:
        self.status: int | None = None
        self._send = send
        self._buffered: list[Message] | None = None

    @property
    def is_replaceable(self) -> bool:
        """Whether nothing of the response has been sent."""
        return self.status is None or self._buffered is not None

    async def send(self, message: Message) -> None:
        """Send the next message, or hold it back."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status == 500:
                self._buffered = []
        if self._buffered is None:
            await self._send(message)
        else:
            self._buffered.append(message)

    async def flush(self) -> None:
        """Send the messages that were held back."""
        buffered, self._buffered = self._buffered, None
        for message in buffered or ():
            await self._send(message)


class _RequestCycle:
    """One request and its response. Each request makes one of these, so it is no more objects than it has to be."""

    __slots__ = (
        "_buffered",
        "_cookies",
        "_headers",
        "_is_complete",
        "_is_out_of_time",
        "_limited",
        "_send",
        "_sent_status",
        "_server_receive",
        "_task",
        "context",
        "fields",
        "middleware",
        "scope",
    )

    def __init__(
        self,
        scope: Scope,
        fields: Fields,
        receive: Receive,
        send: Send,
        *,
        context: RequestContext,
        middleware: RequestContextMiddleware,
    ) -> None:
        self.scope = scope
        self.fields = fields
        self.middleware = middleware
        self.context = context
        self._is_complete = False
        self._is_out_of_time = False
        self._server_receive = receive
        self._limited: LimitedReceive | None = None
        self._sent_status: int | None = None
        self._buffered: list[Message] | None = None  # a 500, as an error with more to say may follow
        self._send = send
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cookies = scope[RESPONSE_COOKIES] = ResponseCookies()
        self._headers: RawHeaders = [(_REQUEST_ID, to_http(context.request_id).encode())]
        scope[RESPONSE_HEADERS] = self._headers

    @property
    def status(self) -> int:
        """The response's status; 500 where there is none."""
        return self._sent_status or 500

    async def run(self, app: ASGIApp) -> None:
        started = time.perf_counter()
        metrics.http_server_in_flight.inc()
        try:
            self._admit()
            await app(self.scope, self.receive, self.send)
            if self._buffered is not None:
                await self._flush()
        except asyncio.CancelledError:
            if not await self._is_ended_on_purpose():
                raise
        except Exception as error:  # noqa: BLE001 - any error becomes a response
            if self._sent_status is None or self._buffered is not None:
                await self._replace(error)
            elif self._is_complete:  # of a background task, after the response
                _log_failure(error, "failed after the answer")
            else:
                await self._abort(error)
        finally:
            if self.context.deadline is not None:
                self.middleware.deadlines.discard(self)
            self.middleware.streams.discard(self._task)
            metrics.http_server_in_flight.dec()
            seconds = time.perf_counter() - started
            if has_noted_user():
                with bind(with_noted_user(current())):
                    self._record(seconds)
            else:
                self._record(seconds)

    def _admit(self) -> None:
        """Check the head of the request, and start the time for it."""
        if self.context.deadline is not None:
            self.context.check_deadline()
            self.middleware.deadlines.add(self, self.context.deadline)
        declared_bytes = check_head(self.scope, self.fields)
        if not self.middleware.internal:
            check_target(self.scope)
        if declared_bytes:
            self._limited = self._limited_receive(declared_bytes)

    async def receive(self) -> Message:
        """Return the server's next message, within the limits of the body."""
        if self._limited is None:
            self._limited = self._limited_receive(0)
        return await self._limited()

    def _limited_receive(self, declared_bytes: int) -> LimitedReceive:
        limit_bytes = self.middleware.body_limits.of(self.scope["path"])
        return LimitedReceive(
            self._server_receive, self.context, limit_bytes=limit_bytes, declared_bytes=declared_bytes
        )

    async def _is_ended_on_purpose(self) -> bool:
        """Complete the response of work that was cancelled; return whether the cancellation ends here."""
        if self._is_out_of_time and self._task.uncancel() == 0 and self._sent_status is None:
            await self._replace(DeadlineExceededError("the time ran out before it was done"))
            return True
        cancellations = self._task.cancelling()  # none when a task group of middleware handles it
        if self._task in self.middleware.streams and cancellations <= 1:
            for _ in range(cancellations):
                self._task.uncancel()
            await self._send({"type": "http.response.body", "body": b""})
            return True
        if self._sent_status is None:  # the server stops, and its grace period is over
            await self._replace(OutcomeUnknownError("the service was stopped before this was finished"))
        return False

    def run_out_of_time(self) -> None:
        """Cancel work that has no response yet; a response on its way goes on, as a stream does."""
        if self._sent_status is None:
            self._is_out_of_time = True
            self._task.cancel()

    async def send(self, message: Message) -> None:
        """Send the next message of the response, with the headers of the edge; hold a 500 back."""
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            _check_lines(headers)
            own = dict(headers)
            if own.get(b"content-type", b"").startswith(b"text/event-stream"):
                self.middleware.streams.add(self._task)
            added = self.middleware.edge.added_to(own, self.scope, self.fields, has_user=has_noted_user())
            message["headers"] = self._cookies.onto(headers + self._headers + added)
            self._sent_status = message["status"]
            if self._sent_status == 500:
                self._buffered = []
        else:
            self._is_complete = not message.get("more_body", False)
            if self._is_complete:
                self.middleware.streams.discard(self._task)
            if self.scope["method"] == "HEAD":  # RFC 9110, section 9.3.2
                message = {**message, "body": b""}
        if self._buffered is None:
            await self._send(message)
        else:
            self._buffered.append(message)

    async def _flush(self) -> None:
        buffered, self._buffered = self._buffered, None
        for message in buffered or ():
            await self._send(message)

    async def _abort(self, error: Exception) -> None:
        """Close the connection, as nothing else tells a client that its response is incomplete."""
        abort = self.scope.get("extensions", {}).get(ABORT_EXTENSION)
        if abort is None:
            raise error
        _log_failure(error, "answer cut")
        await abort()

    async def _replace(self, error: Exception) -> None:
        self._sent_status = self._buffered = None
        try:
            handle = self.middleware.handle_failure
            if handle is not None and await handle(self.scope, self.receive, self.send, error):
                _log_failure(error, "request failed", is_expected=False)
                await self._flush()
                return
        except Exception as another:  # noqa: BLE001 - a failure of the application's handler
            error = another
        try:
            answer = self.middleware.answer_error
            is_answered = answer is not None and await answer(self.scope, self.receive, self.send, error)
        except Exception as another:  # noqa: BLE001 - the error in another form, or a failure of its own
            error, is_answered = another, False
        if not is_answered:
            await _send_problem(error, self.scope, self.send, internal=self.middleware.internal)
        await self._flush()

    def _record(self, seconds: float) -> None:
        method, path, status = self.scope["method"], self.scope["path"], self.status
        known_method = method if method in METHODS else "OTHER"
        _duration(known_method, _template(self.scope), status).observe(seconds, exemplar())
        log = _log.debug if path in PROBE_PATHS else _log.info
        log(
            f"{method} {path} {status}",  # without the query, which may hold secrets
            **{
                "http.request.method": method,
                "url.path": path,
                "http.response.status_code": status,
                "duration_ms": round(seconds * 1000, 1),
                "client.ip": (self.scope.get("client") or ("",))[0],
            },
        )


async def _send_problem(error: Exception, scope: Scope, send: Send, *, internal: bool) -> None:
    problem = problem_of(error, instance=scope["path"], request_id=current().request_id, internal=internal)
    if problem.status >= 500:
        _log_failure(error, "request failed", is_expected=problem.code != "INTERNAL")
    body = problem_body(problem)
    headers = [*problem_headers(problem, error), (b"content-length", b"%d" % len(body))]
    if isinstance(error, AmbiguousHeadError):
        headers.append((b"connection", b"close"))
    await send_response(send, problem.status, headers, body)


def _log_failure(error: Exception, event: str, *, is_expected: bool = True) -> None:
    """Log an error: one of ours by its message, any other and our own mistakes with the traceback.

    An upstream's refusal needs no traceback, as it names the request.
    """
    with bind(with_noted_user(current())):
        if is_expected and isinstance(error, HybridkitError) and (error.retryable or error.status != 500):
            _log.warning(event, reason=f"{type(error).__name__}: {error}")
        else:
            is_answer = isinstance(error, RejectedError) and is_upstream_error(error)
            place = {} if is_answer else {"exc_info": error}
            report_error(error)
            _log.error(event, reason=f"{type(error).__name__}: {error}", **place)


def _check_lines(headers: RawHeaders) -> None:
    """Refuse a header with the end of a line in it, which would forge more headers, or a second response.

    Raises:
        ValueError: a header has a control character; no value is in the message.
    """
    octets = b"".join([part for field in headers for part in field])
    if b"\n" in octets or b"\r" in octets or b"\0" in octets:
        raise ValueError("a header of the response has a line break or a zero byte")


async def send_response(send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
    """Send a complete response."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


def _template(scope: Scope) -> str:
    """Return the matched route as declared; a metric's label must not have as many values as there are paths."""
    # FastAPI includes routers by reference, and keeps the complete template apart.
    included = scope.get("fastapi", {}).get("effective_route_context")
    return getattr(included, "path", None) or getattr(scope.get("route"), "path", None) or "unknown"


@lru_cache(maxsize=4096)
def _duration(method: str, route: str, status: int) -> Histogram:
    """Return the histogram for some labels; cached, as the look-up costs as much as the observation."""
    return metrics.http_server_duration.labels(method, route, status)


def _context_of(fields: Fields, names: Sequence[str], within_seconds: float | None = None) -> RequestContext:
    """Return the context that some headers carry, with a deadline in that time at the latest.

    Raises:
        InvalidHeaderError: a header has several values, or can't be parsed.
    """
    if not fields.has_any(_CONTEXT_FIELDS):  # as from most browsers
        return RequestContext.from_http_headers({}, within_seconds=within_seconds)
    found: dict[str, str] = {}
    for name in names:
        value = fields.single(name)
        if value is not None:
            found[name] = value
    return RequestContext.from_http_headers(found, within_seconds=within_seconds)


def _context_of_refused(fields: Fields) -> RequestContext:
    """Return a context with the request's id, if it has a valid one, so that its sender finds the refusal."""
    try:
        return _context_of(fields, [REQUEST_ID_HEADER])
    except InvalidHeaderError:
        return RequestContext()


def _refusing(error: HybridkitError) -> ASGIApp:
    async def refuse(_: Scope, __: Receive, ___: Send) -> None:
        raise error

    return refuse
