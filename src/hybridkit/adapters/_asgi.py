"""What stands around every request of an HTTP application, as plain ASGI: no framework, no copies of the body.

```
RequestContextMiddleware            whose request is it, until when; what came of it (access log, problem, metrics)
└── the application's middleware    whenever it was added
    └── ProblemMiddleware           errors as problems, which pass through that middleware as answers do
        └── IdempotencyMiddleware   a keyed write runs once; see `_keyed.py`
            └── TextMiddleware      text that no database takes; not where our own services call
                └── HeadMiddleware  `HEAD` as `GET`
                    └── the application
```

https://asgi.readthedocs.io/en/latest/specs/www.html
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from typing import Any, Final, cast

from prometheus_client import Histogram

from hybridkit._asgi_types import ASGIApp, Message, Receive, Scope, Send
from hybridkit._header_fields import Fields
from hybridkit.adapters._limits import AmbiguousHeadError, BodyLimits, LimitedReceive, check_head
from hybridkit.adapters._problems import is_upstream_error, problem_body, problem_headers, problem_of
from hybridkit.context import (
    REQUEST_ID_HEADER,
    REQUEST_TIMEOUT_HEADER,
    USER_ID_HEADER,
    RequestContext,
    bind,
    current,
    noting_user,
    to_http,
    with_noted_user,
)
from hybridkit.errors import HybridkitError, InvalidHeaderError, OutcomeUnknownError, RejectedError
from hybridkit.observability import get_logger, metrics

__all__ = [
    "ABORT_EXTENSION",
    "EventStreams",
    "ProblemMiddleware",
    "RequestContextMiddleware",
]

type FailureHandler = Callable[[Scope, Receive, Send, Exception], Awaitable[bool]]
type RawHeaders = list[tuple[bytes, bytes]]

PROBE_PATHS: Final = frozenset({"/health", "/ready", "/metrics"})
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"})

ABORT_EXTENSION: Final = "hybridkit.abort"
"""In a scope's `extensions`: closes the connection at once. Half a response can't be taken back in another way."""

_REQUEST_ID: Final = REQUEST_ID_HEADER.encode()
_CONTEXT_HEADERS: Final = (REQUEST_ID_HEADER, REQUEST_TIMEOUT_HEADER)

_log = get_logger("hybridkit.http")


class RequestContextMiddleware:
    """Binds the request's context, answers with its id, turns errors into problems, and logs one line at the end.

    Args:
        app: the application.
        internal: the callers are our own services: their `X-User-ID` is believed, and they are told why something
            failed. Everybody else learns that it did.
        body_limits: how long bodies may get; 1 MiB without them.
        streams: gets the event streams that are open.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        internal: bool = False,
        body_limits: BodyLimits | None = None,
        streams: "EventStreams | None" = None,
    ) -> None:
        self.app = app
        self.internal = internal
        self.body_limits = body_limits or BodyLimits({})
        self.streams = streams or EventStreams()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        app, fields = self.app, Fields(scope["headers"])
        try:
            fields.check()
            # From outside nobody is believed who they act for.
            context = _context_of(fields, *_CONTEXT_HEADERS, *((USER_ID_HEADER,) if self.internal else ()))
        except InvalidHeaderError as error:
            context, app = _context_of_refused(fields), _refusing(error)
        with bind(context), noting_user():
            await _RequestCycle(scope, send, context, self).run(app, receive)


class ProblemMiddleware:
    """Turns errors into problems where other middleware stands around the application, and adds to responses (CORS).

    Args:
        app: the application.
        internal: as in `RequestContextMiddleware`.
        handle_failure: answers an error in the application's own way; false where it has none.
    """

    def __init__(
        self, app: ASGIApp, *, internal: bool = False, handle_failure: "FailureHandler | None" = None
    ) -> None:
        self.app = app
        self.internal = internal
        self.handle_failure = handle_failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the server."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        response = _BufferedResponse(send)
        try:
            await self.app(scope, receive, response.send)
        except (
            Exception
        ) as error:  # whatever the application raises becomes a response, as long as none is out
            if not response.is_replaceable:
                raise
            if self.handle_failure and await self.handle_failure(scope, receive, send, error):
                _log_failure(error, "request failed", is_expected=False)
                return
            await _send_problem(error, scope, send, internal=self.internal)
        else:
            await response.flush()


class EventStreams:
    """The event streams that are open: a server that stops ends them, as no client ever would.

    An event stream (`text/event-stream`) ends as if its source had ended; its client connects again by itself, to
    another replica (https://html.spec.whatwg.org/multipage/server-sent-events.html#processing-model).
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"EventStreams({len(self._tasks)} open)"

    def __contains__(self, task: object) -> bool:
        return task in self._tasks

    def add(self, task: "asyncio.Task[Any]") -> None:
        """Keep the task that serves one."""
        self._tasks.add(task)

    def discard(self, task: "asyncio.Task[Any]") -> None:
        """Forget a task that has ended."""
        self._tasks.discard(task)

    def end(self) -> None:
        """Cancel those that are open; each completes its response."""
        for task in list(self._tasks):
            task.cancel()


class _BufferedResponse:
    """A response on its way out. A 500 is held back: an error may follow."""

    def __init__(self, send: Send) -> None:
        self.status: int | None = None
        self._send = send
        self._buffered: list[Message] | None = None

    @property
    def is_replaceable(self) -> bool:
        """Whether nothing of it is out."""
        return self.status is None or self._buffered is not None

    async def send(self, message: Message) -> None:
        """Pass its next part on, or hold it back."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status == 500:
                self._buffered = []
        if self._buffered is None:
            await self._send(message)
        else:
            self._buffered.append(message)

    async def flush(self) -> None:
        """Send what was held back."""
        buffered, self._buffered = self._buffered, None
        for message in buffered or ():
            await self._send(message)


class _RequestCycle:
    """One request and its response."""

    def __init__(
        self,
        scope: Scope,
        send: Send,
        context: RequestContext,
        middleware: RequestContextMiddleware,
    ) -> None:
        self.scope = scope
        self.middleware = middleware
        self.context = context
        self._is_complete = False
        self._response = _BufferedResponse(send)
        self._send = send
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        started = time.perf_counter()
        metrics.http_server_in_flight.inc()
        try:
            self.context.check_deadline()
            declared_bytes = check_head(self.scope)
            limit_bytes = self.middleware.body_limits.of(self.scope["path"])
            limited = LimitedReceive(
                receive, self.context, limit_bytes=limit_bytes, declared_bytes=declared_bytes
            )
            await app(self.scope, limited, self.send)
            await self._response.flush()
        except asyncio.CancelledError:
            cancellations = self._task.cancelling()  # none where middleware's task group has taken note of it
            if self._task in self.middleware.streams and cancellations <= 1:
                for _ in range(cancellations):
                    self._task.uncancel()
                await self._send({"type": "http.response.body", "body": b""})
                return
            if self._response.status is None:  # the server stops and has waited long enough
                await self._replace(OutcomeUnknownError("the service was stopped before this was finished"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever the application raises becomes a response
            if self._response.is_replaceable:
                await self._replace(error)
            elif self._is_complete:  # of a background task, say: the response is out, and stands
                _log_failure(error, "failed after the answer")
            else:
                await self._abort(error)
        finally:
            self.middleware.streams.discard(self._task)
            metrics.http_server_in_flight.dec()
            with bind(with_noted_user(current())):
                self._record(time.perf_counter() - started)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if _is_event_stream(message):
                self.middleware.streams.add(self._task)
            headers = [*message.get("headers", ()), (_REQUEST_ID, to_http(self.context.request_id).encode())]
            message = {**message, "headers": headers}
        else:
            self._is_complete = not message.get("more_body", False)
            if self._is_complete:
                self.middleware.streams.discard(self._task)
            if self.scope["method"] == "HEAD":  # RFC 9110, section 9.3.2: whatever the application sends
                message = {**message, "body": b""}
        await self._response.send(message)

    async def _abort(self, error: Exception) -> None:
        """Close the connection: nothing else tells a client that what it got is half a response."""
        abort = self.scope.get("extensions", {}).get(ABORT_EXTENSION)
        if abort is None:
            raise error
        _log_failure(error, "answer cut")
        await abort()

    async def _replace(self, error: Exception) -> None:
        self._response = _BufferedResponse(self._send)
        await _send_problem(error, self.scope, self.send, internal=self.middleware.internal)
        await self._response.flush()

    def _record(self, seconds: float) -> None:
        method, path, status = self.scope["method"], self.scope["path"], self._response.status or 500
        known_method = method if method in _METHODS else "OTHER"
        _duration(known_method, _template(self.scope), status).observe(seconds)
        log = _log.debug if path in PROBE_PATHS else _log.info
        log(
            f"{method} {path} {status}",  # without the query, which may hold what nobody should read
            **{
                "http.request.method": method,
                "url.path": path,
                "http.response.status_code": status,
                "duration_ms": round(seconds * 1000, 1),
            },
        )


async def _send_problem(error: Exception, scope: Scope, send: Send, *, internal: bool) -> None:
    problem = problem_of(error, instance=scope["path"], request_id=current().request_id, internal=internal)
    if problem.status >= 500:
        _log_failure(error, "request failed", is_expected=problem.code != "INTERNAL")
    body = problem_body(problem)
    headers = [*problem_headers(problem), (b"content-length", b"%d" % len(body))]
    if isinstance(error, AmbiguousHeadError):
        headers.append((b"connection", b"close"))
    await send_response(send, problem.status, headers, body)


def _log_failure(error: Exception, event: str, *, is_expected: bool = True) -> None:
    """An error of ours says what happened; of any other, and of our own mistakes, the place is needed.

    What another service has answered says by itself which request that was.
    """
    with bind(with_noted_user(current())):
        if is_expected and isinstance(error, HybridkitError) and (error.retryable or error.status != 500):
            _log.warning(event, reason=f"{type(error).__name__}: {error}")
        else:
            is_answer = isinstance(error, RejectedError) and is_upstream_error(error)
            place = {} if is_answer else {"exc_info": error}
            _log.error(event, reason=f"{type(error).__name__}: {error}", **place)


def _is_event_stream(start: Message) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.get("headers", ())
    )


async def send_response(send: Send, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
    """A whole response at once."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


def _template(scope: Scope) -> str:
    """The matched route as it was declared: a label must not have as many values as there are paths."""
    # Since routers are included by reference, FastAPI keeps the whole template in a place of its own.
    included = scope.get("fastapi", {}).get("effective_route_context")
    return getattr(included, "path", None) or getattr(scope.get("route"), "path", None) or "unknown"


@lru_cache(maxsize=4096)
def _duration(method: str, route: str, status: int) -> Histogram:
    """The histogram of those labels, which costs as much to find as to observe."""
    return metrics.http_server_duration.labels(method, route, status)


def _context_of(fields: Fields, *names: str) -> RequestContext:
    """The context that those headers tell of.

    Raises:
        InvalidHeaderError: one of them has several values, or can't be read.
    """
    found = ((name, fields.single(name)) for name in names)
    return RequestContext.from_http_headers({name: value for name, value in found if value is not None})


def _context_of_refused(fields: Fields) -> RequestContext:
    """With the id that the request was sent under, so that its sender finds the refusal; if it has one."""
    try:
        return _context_of(fields, REQUEST_ID_HEADER)
    except InvalidHeaderError:
        return RequestContext()


def _refusing(error: HybridkitError) -> ASGIApp:
    async def refuse(_: Scope, __: Receive, ___: Send) -> None:
        raise error

    return refuse
