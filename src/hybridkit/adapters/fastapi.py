"""The HTTP kind of process: a FastAPI application with its resources, and a server that stops in order.

```python
app = create_app(ApiSettings, title="Users")        # settings are read when the application starts, not here

@app.post("/users", status_code=201)
async def register(body: NewUser, postgres: Postgres) -> User: ...

def main() -> None:
    run_api(app)
```

Every request has a context (request id, deadline) and one log line. Errors are answered as problems (RFC 9457), those
of our clients by their meaning for the caller. A write with an `Idempotency-Key` runs once.

`/health`, `/ready` and `/metrics` are on the management port of `run_api`. The application's own port has them too, but
in production only `/health` and the bare status of `/ready`.
"""

import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from http.client import responses
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, cast, get_args
from warnings import catch_warnings, filterwarnings

from pydantic_core.core_schema import ErrorType

from hybridkit._asgi_types import Receive, Scope, Send
from hybridkit._syntax import json_pointer
from hybridkit.adapters._http._asgi import (
    RESPONSE_HEADERS,
    EventStreams,
    ProblemMiddleware,
    RequestContextMiddleware,
)
from hybridkit.adapters._http._edge import Edge
from hybridkit.adapters._http._head_requests import HeadMiddleware
from hybridkit.adapters._http._keyed import IdempotencyMiddleware
from hybridkit.adapters._http._limits import BodyLimits
from hybridkit.adapters._http._problems import (
    http_problem,
    json_form,
    problem_body,
    problem_headers,
    unwrapped,
)
from hybridkit.adapters._http._texts import TextMiddleware
from hybridkit.adapters._languages._problems import localized, validation_message
from hybridkit.adapters._languages._requests import RequestLanguage
from hybridkit.adapters._running import open_resources, provide_yielded, run_process
from hybridkit.adapters._server import serve
from hybridkit.adapters.localization import Localization, bind_translator
from hybridkit.codec import encode_json
from hybridkit.context import current
from hybridkit.contract import Problem, whole_characters
from hybridkit.coordination import Redis
from hybridkit.errors import (
    DeclarationError,
    FieldProblem,
    HybridkitError,
    InvalidRequestError,
    KeyMissingError,
    MissingExtraError,
    NoRouteError,
)
from hybridkit.idempotency import IdempotencyGuard
from hybridkit.lifespan import ServiceResources
from hybridkit.messaging import RobustPublisher
from hybridkit.security import OpenAccess, Security
from hybridkit.settings import EdgeSettings, RedisSettings, ServiceSettings

try:
    from fastapi import FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.types import ASGIApp

    from hybridkit.adapters._http._keyed_routes import claims_after_dependencies, is_routed, reads_body
    from hybridkit.adapters._http._openapi import complete_document, name_apart, operation_id
    from hybridkit.adapters._http._required_key import (
        IdempotencyKey,
        describe_required_keys,
        is_missing_key,
        require_idempotency_key,
    )
    from hybridkit.adapters._http._routing import add_own_routes, shorten
    from hybridkit.adapters._http._web_sessions import SessionCookies, WebSession
    from hybridkit.adapters._route_parameters import check_parameters
    from hybridkit.adapters._security._documents import describe_security
    from hybridkit.adapters._security._middleware import SecurityMiddleware
    from hybridkit.adapters._security._rate_limits import (
        LimitMiddleware,
        default_limiter,
        document_limits,
        rate_limited,
    )
    from hybridkit.adapters._security._routes import check_policies
except ImportError:
    raise MissingExtraError(__name__, extra="fastapi") from None

if TYPE_CHECKING:
    from hybridkit.adapters._security._login import login_routes

__all__ = [
    "IdempotencyKey",
    "IdempotencyMiddleware",
    "RequestContextMiddleware",
    "SessionCookies",
    "WebSession",
    "api_lifespan",
    "create_app",
    "login_routes",
    "rate_limited",
    "require_idempotency_key",
    "run_api",
]


def __getattr__(name: str) -> Any:
    # A login needs the extra `security`; an API without one doesn't.
    if name != "login_routes":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hybridkit.adapters._security import _login  # noqa: PLC0415 - an extra of its own

    return _login.login_routes


_UNREADABLE: Final = "There was an error parsing the body"
"""FastAPI's message for any error while a body was read."""
_TELLABLE: Final = frozenset(get_args(ErrorType)) - {
    "assertion_error",
    "get_attribute_error",
    "iteration_error",
    "json_invalid",
    "mapping_type",
    "union_tag_invalid",
    "uuid_parsing",
    "value_error",
}
"""Errors with pydantic's own messages, which do not quote the value; a validator's own message may."""
_OF_BODIES: Final = frozenset({"content-type", "content-length", "content-encoding", "transfer-encoding"})
"""Headers that describe a body, which an exception does not have."""

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

type AppLifespan = Callable[[FastAPI], AbstractAsyncContextManager[object]]


def create_app(
    settings_class: type[ServiceSettings],
    *,
    title: str,
    version: str = "0.1.0",
    lifespan: AppLifespan | None = None,
    internal: bool = False,
    body_limits: Mapping[str, int] | None = None,
    timeouts: Mapping[str, float | None] | None = None,
    security: Security | OpenAccess | None = None,
    localization: Localization | None = None,
) -> FastAPI:
    """Return an application that opens its resources when it starts and closes them when it stops. It may start again.

    Its OpenAPI document and the pages made of it (`/docs`, `/redoc`) are served outside of production, or as
    `serve_docs` of the settings says. While it runs, `app.state` has `settings`, `resources`, and of these `redis` and
    `rabbitmq` (the publisher). Every route that answers `GET` also answers `HEAD`.

    Args:
        settings_class: the class of the settings, which are read at each start, unless `app.state.settings` was set for
            it, as tests do.
        title: the title in the OpenAPI document.
        version: the version in the OpenAPI document.
        lifespan: a context manager of the application, entered when the resources are open. What it yields by type, as
            in `yield {Mailer: mailer}`, routes get as `Provided[Mailer]`; by name, as in `{"mailer": mailer}`, it is
            the state of Starlette (`request.state.mailer`).
        internal: whether the callers are our own services: their `X-User-ID` is believed, and they are told why
            something failed.
        body_limits: the limits of request bodies in bytes, by the path that a URL begins with, such as
            `{"/photos": 20 * 2**20}`; 1 MiB for all others, or the limit of `/`. Longer bodies are answered with 413.
        timeouts: the seconds for requests, by path as well, such as `{"/reports": 120, "/events": None}`; for all
            others `request_seconds` of the settings. None is any time, as an event stream needs that calls services.
        security: how callers prove who they are. Every route then needs a policy, `require(...)` or `public`, or the
            application does not start. `OPEN` says that everybody may call everything. None, the default, is the same
            outside of production; there an application that is not `internal` does not start without one of both.
        localization: the languages for users, of which each request gets one by its `Accept-Language`, for `Texts` and
            for problems. By default there are hybridkit's own, English and Russian; none for an `internal` one.

    Raises:
        DeclarationError: a path of a body limit or a timeout does not begin with a slash, or the value is not positive.
            At the start: a route would read from the request what the application provides by type, such as settings,
            or asks for a type that nothing provides; a data client without an address fails the request.
    """

    @asynccontextmanager
    async def with_resources(app: FastAPI) -> AsyncGenerator[Any]:
        settings = getattr(app.state, "settings", None) or settings_class()
        inner = lifespan(app) if lifespan else nullcontext()
        try:
            _check_declared(security, settings, internal=internal)
            edge.configure(settings)
            async with (
                api_lifespan(app, settings) as resources,
                _secured(security, settings, resources),
                inner as yielded,
            ):
                check_policies(app, security, own)
                provided, state = _split(yielded)
                provide_yielded(resources, provided)
                check_parameters(app, provided, resources.providers)
                app.state.limiter = default_limiter(settings, resources.providers.get(Redis))
                resources.started()
                yield state
        finally:
            app.state.settings = app.state.limiter = None  # the next start reads them again
            edge.reset()

    edge = Edge(internal=internal, timeouts=timeouts)
    # A redirect to the path without its slash would repeat a write, at an address taken from `Host`.
    app = _Api(
        title=title,
        version=version,
        lifespan=with_resources,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
    )
    app.state.is_internal = internal
    app.state.settings_class = settings_class
    app.state.localization = localization or (None if internal else Localization())
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    app.add_exception_handler(ExceptionGroup, _answer_group)
    app.add_middleware(HeadMiddleware, is_routed=is_routed)
    if not internal:  # a data service refuses with more precise errors
        app.add_middleware(TextMiddleware, reads_body=reads_body)
    app.add_middleware(
        IdempotencyMiddleware, guard=_guard_of, claims_inside=claims_after_dependencies, internal=internal
    )
    own: list[Any] = []
    if not internal:
        app.add_middleware(LimitMiddleware)
    if isinstance(security, Security):
        app.add_middleware(SecurityMiddleware, security=security, own=own)
        app.add_middleware(LimitMiddleware, counts_refusals=True)
    app.add_middleware(ProblemMiddleware, internal=internal, handle_failure=_handle_failure)
    app.state.event_streams = EventStreams()
    app.add_middleware(
        RequestContextMiddleware,
        internal=internal,
        body_limits=BodyLimits(body_limits or {}),
        streams=app.state.event_streams,
        edge=edge,
        answer_error=_answer_error,
    )
    add_own_routes(app)
    own.extend(app.router.routes)
    app.state.security, app.state.own_routes = security, own
    return app


class _Api(FastAPI):
    """Keeps the handling of failures outside of all middleware, also of an application's own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or the lifespan; a request without FastAPI's own telemetry, as it has a span already."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        if self.root_path:
            scope["root_path"] = self.root_path
        stack = self.middleware_stack
        if stack is None:
            stack = self.middleware_stack = self.build_middleware_stack()
        localization: Localization | None = self.state.localization
        if localization is None:
            await stack(scope, receive, send)
            return
        with bind_translator(RequestLanguage(localization, scope, response_headers=RESPONSE_HEADERS)):
            await stack(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        self.user_middleware.sort(key=lambda each: cast("Any", each.cls) is not RequestContextMiddleware)
        # What FastAPI and Starlette put around it has nothing left to do: all errors are answered, and bodies limited.
        stack: Any = super().build_middleware_stack()
        while not isinstance(stack, RequestContextMiddleware):
            stack = stack.app
        shorten(stack)
        return cast("ASGIApp", stack)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, with what the routes' limits and required keys add to it."""
        if self.openapi_schema:
            return self.openapi_schema
        document_limits(self.routes)
        with catch_warnings():
            filterwarnings(
                "ignore", "Duplicate Operation ID"
            )  # of one route with several methods, told apart below
            document = super().openapi()
        name_apart(document)
        describe_required_keys(document)
        if not self.state.is_internal:
            settings_class: type[ServiceSettings] = self.state.settings_class
            complete_document(
                document,
                has_keys=issubclass(settings_class, RedisSettings),
                has_limit=issubclass(settings_class, EdgeSettings),
            )
        if isinstance(self.state.security, Security):
            describe_security(document, self.routes, self.state.security)
        return document


@asynccontextmanager
async def api_lifespan(app: FastAPI, settings: ServiceSettings) -> AsyncGenerator[ServiceResources]:
    """Open the resources of an existing FastAPI application inside the block, as `create_app` does.

    Call `resources.started()` when the application is ready.

    Args:
        app: the application; its `state` gets the resources.
        settings: the settings, which decide what is opened.
    """
    management = getattr(app.state, "management", None)
    async with open_resources("fastapi", settings, management=management) as resources:
        app.state.settings = settings
        app.state.resources = resources
        app.state.redis = resources.providers.get(Redis)
        app.state.rabbitmq = resources.providers.get(RobustPublisher)
        yield resources


def run_api(app: FastAPI, *, workers: int = 1) -> None:
    """Serve an application of `create_app` until SIGTERM, then finish what runs and return.

    A second signal ends what still runs. The application works under other ASGI servers too; they lack readiness that
    turns red before the socket closes, and exit code 0.

    Args:
        app: the application.
        workers: the number of processes that serve it, at best one per core. More than one run under Gunicorn, which
            needs the extra `gunicorn`; see `hybridkit.adapters.gunicorn`.

    Raises:
        SystemExit: the settings are unusable, or the start failed; with code 1, of several workers 3.
    """
    if workers > 1:
        from hybridkit.adapters.gunicorn import run_workers  # noqa: PLC0415 - an extra

        run_workers(app, workers)
    else:
        run_process(app.state.settings_class, partial(serve, app))


def _split(yielded: object) -> tuple[dict[Any, object], object]:
    """Return what a lifespan has yielded by type, and what is left of it for Starlette."""
    if not isinstance(yielded, Mapping):
        return {}, yielded
    found = cast("Mapping[Any, object]", yielded)
    named = {key: value for key, value in found.items() if isinstance(key, str)}
    return {key: value for key, value in found.items() if not isinstance(key, str)}, named or None


def _secured(
    security: Security | OpenAccess | None, settings: ServiceSettings, resources: ServiceResources
) -> AbstractAsyncContextManager[None]:
    if not isinstance(security, Security):
        return nullcontext()
    redis = resources.providers.get(Redis)
    return security.opened(settings, redis if isinstance(redis, Redis) else None)


def _check_declared(
    security: Security | OpenAccess | None, settings: ServiceSettings, *, internal: bool
) -> None:
    """Refuse an application in production that does not say who may call it.

    Raises:
        DeclarationError: it has no security, and does not say that it is open.
    """
    if security is None and not internal and settings.environment == "production":
        raise DeclarationError(
            "in production an application says who may call it: create_app(security=Security(...)), or security=OPEN"
            " if everybody may call everything"
        )


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Answer unknown routes, wrong methods, and `HTTPException` with any status, headers and detail."""
    if not isinstance(error, HTTPException):
        raise error
    if error.detail == _UNREADABLE and isinstance(error.__cause__, HybridkitError):
        raise error.__cause__
    status, detail = int(error.status_code), error.detail
    is_unrouted = not {"endpoint", "route"} & request.scope.keys()
    if status == 404 and is_unrouted and detail == responses[404]:
        raise NoRouteError("there is no such route")
    if not 200 <= status <= 599:  # no final response has such a status
        raise error
    lines = list(_header_lines(error.headers or {}))
    if status < 400:
        answer = _without_problem(status, detail)
    else:
        answer = _problem(*http_problem(status, detail, instance=request.url.path))
    for name, _ in lines:  # the exception's headers replace the default ones
        del answer.headers[name]
    for name, value in lines:
        answer.headers.append(name, value)
    return answer


def _header_lines(headers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the headers of an exception, one value per line, without characters that would end a line."""
    for name, value in headers.items():
        if name.lower() in _OF_BODIES or value is None:
            continue
        values = cast("Sequence[Any]", value) if isinstance(value, list | tuple) else [value]
        yield from ((name.lower(), _header_text(each)) for each in values)


def _header_text(value: Any) -> str:
    text = _CONTROLS.sub(" ", whole_characters(str(value)))
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:  # as UTF-8, which clients commonly try
        return text.encode().decode("latin-1")
    return text


async def _answer_group(request: Request, error: Exception) -> Response:
    """Answer the error that a task group has wrapped, when it is a single one."""
    match unwrapped(error):
        case HTTPException() as inner:
            return await _answer_http_exception(request, inner)
        case RequestValidationError() as inner:
            return await _answer_invalid_request(request, inner)
        case _:
            raise error


async def _answer_error(scope: Scope, receive: Receive, send: Send, error: Exception) -> bool:
    """Answer what an application's middleware raises as what a route raises, where Starlette has no handlers."""
    request = Request(scope, receive)
    match error:
        case HTTPException():
            response = await _answer_http_exception(request, error)
        case RequestValidationError():
            response = await _answer_invalid_request(request, error)
        case ExceptionGroup():
            response = await _answer_group(request, error)
        case _:
            return False
    await response(scope, receive, send)
    return True


async def _handle_failure(scope: Scope, receive: Receive, send: Send, error: Exception) -> bool:
    """Answer by the application's own handler for all errors, which Starlette would not reach."""
    handlers: Mapping[Any, Any] = scope["app"].exception_handlers
    handler = handlers.get(Exception) or handlers.get(500)
    if handler is None or isinstance(unwrapped(error), HybridkitError):
        return False
    request = Request(scope, receive)
    answered = (
        handler(request, error)
        if iscoroutinefunction(handler)
        else run_in_threadpool(handler, request, error)
    )
    response: Response = await answered
    await response(scope, receive, send)
    return True


def _without_problem(status: int, detail: Any) -> Response:
    """Answer a redirect and the like as FastAPI does, but without a body that repeats the status."""
    told = None if detail in ("", responses.get(status)) else json_form(detail)
    if status in (204, 205, 304) or told is None:
        return Response(None, status)
    return Response(encode_json({"detail": told}), status, media_type="application/json")


async def _answer_invalid_request(request: Request, error: Exception) -> Response:
    """Answer a misfit of body, path or query: where and why, but not the value, which may be secret."""
    if not isinstance(error, RequestValidationError):
        raise error
    if any(map(is_missing_key, error.errors())):
        raise KeyMissingError(
            "this request needs an Idempotency-Key header, the same for each repetition of the request"
        )
    found = [_field_problem(detail) for detail in error.errors()]
    invalid = InvalidRequestError("the request does not fit", errors=found)
    instance, request_id = request.url.path, current().request_id
    problem = localized(Problem.from_error(invalid, instance=instance, request_id=request_id))
    return _problem(problem, problem_body(problem))


def _field_problem(detail: Mapping[str, Any]) -> FieldProblem:
    kind = str(detail["type"])
    if kind == "json_invalid":  # its location is a byte's, not a field's
        return FieldProblem("", kind, "the body is no JSON")
    if kind not in _TELLABLE:
        return FieldProblem(_pointer(detail["loc"]), kind, "the value is refused")
    words = validation_message(kind, detail.get("ctx") or {}, english=str(detail.get("msg", "")))
    return FieldProblem(_pointer(detail["loc"]), kind, words)


def _pointer(location: Sequence[int | str]) -> str:
    """Return the JSON pointer (RFC 6901) from the root of the body, or from the name of another part."""
    parts = location[1:] if location and location[0] == "body" else location
    return json_pointer(parts)


def _problem(problem: Problem, body: bytes) -> Response:
    own = {name.decode(): value.decode() for name, value in problem_headers(problem)}
    return Response(body, problem.status, own)


# ── the running application ──────────────────────────────────────────────────────────────────────


def _guard_of(scope: Scope) -> IdempotencyGuard | None:
    resources: ServiceResources = scope["app"].state.resources
    guard = resources.providers.get(IdempotencyGuard)
    return guard if isinstance(guard, IdempotencyGuard) else None
