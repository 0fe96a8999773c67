"""The span of a request, by OpenTelemetry's stable names: one for each request, and none for each ASGI message.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span
"""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import Span, StatusCode

from hybridkit._asgi_types import Scope
from hybridkit._header_fields import Fields
from hybridkit.observability import span

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"})
"""The methods that names of spans and labels of metrics may have; a client can invent any number of others."""

_TRACE: Final = ("traceparent", "tracestate")


def request_span(scope: Scope, fields: Fields, *, internal: bool) -> AbstractContextManager[Span]:
    """Open the span of a request, with what is known before it is routed.

    The query is left out, as it may hold secrets.

    Args:
        scope: the request's scope.
        fields: its headers.
        internal: whether the callers are our own services, whose decision about sampling is obeyed.
    """
    method: str = scope["method"]
    attributes: dict[str, AttributeValue] = {
        "http.request.method": method if method in METHODS else "_OTHER",
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
    }
    address, port = scope.get("server") or (None, None)
    if address:
        attributes["server.address"] = address
    if port:
        attributes["server.port"] = port
    found = ((name, fields.listed(name)) for name in _TRACE)
    return span(
        method if method in METHODS else "HTTP",
        kind="server",
        parent={name: value for name, value in found if value is not None},
        attributes=attributes,
        from_outside=not internal,
    )


def end_request_span(span: Span, scope: Scope, *, route: str, status: int) -> None:
    """Note the route and the outcome of a request in its span; a status from 500 on is an error.

    Args:
        span: the request's span.
        scope: the request's scope.
        route: the template of the route; `unknown` where there is none.
        status: the response's status.
    """
    if not span.is_recording():
        return
    found: dict[str, AttributeValue] = {"http.response.status_code": status}
    if route != "unknown":
        found["http.route"] = route
        method: str = scope["method"]
        span.update_name(f"{method if method in METHODS else 'HTTP'} {route}")
    if status >= 500:
        if "error.type" not in (getattr(span, "attributes", None) or {}):
            found["error.type"] = str(status)
        span.set_status(StatusCode.ERROR)
    span.set_attributes(found)
