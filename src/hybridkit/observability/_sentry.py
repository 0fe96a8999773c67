"""Reports to Sentry: the one module that needs the extra `sentry`.

Everything automatic is off: the default start takes two seconds, and local variables, bodies and breadcrumbs hold
secrets.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, cast, override

import sentry_sdk
from opentelemetry import trace
from sentry_sdk.envelope import Item
from sentry_sdk.transport import HttpTransport
from sentry_sdk.types import Event, Hint
from urllib3 import Retry

from hybridkit.context import bound
from hybridkit.observability._metrics import metrics
from hybridkit.observability._redaction import masked, remember_secrets
from hybridkit.observability._texts import class_name
from hybridkit.settings import ServiceSettings

INTERVAL_SECONDS: Final = 60.0
MAX_REPORTS_OF_ONE_ERROR: Final = 5
"""In one interval, of errors of one class from one place."""
MAX_REPORTS: Final = 60
"""In one interval, of all errors."""

_HEADERS: Final = frozenset({"accept", "content-length", "content-type", "user-agent", "x-request-id"})
_DROPPED: Final = ("breadcrumbs", "extra", "modules", "server_name", "user")
"""The parts of an event that are left out, as nobody can tell what is in them."""
MAX_DEPTH: Final = 30


class SentryReporter:
    """Sends errors from a thread of Sentry's library, whose queue has 100 places.

    Args:
        settings: name the service, its environment and its version.
        dsn: where to send, and as whom.
    """

    def __init__(self, settings: ServiceSettings, dsn: str) -> None:
        remember_secrets(settings)
        self._service = settings.service_name
        self._pseudonym_key = hashlib.blake2b(dsn.encode()).digest()
        self._bounds = Bounds()
        self._client = sentry_sdk.Client(
            dsn=dsn,
            environment=settings.environment,
            release=settings.service_version or "unknown",  # without one, the library asks git
            transport=CountingTransport,
            before_send=self._scrubbed,
            default_integrations=False,
            auto_enabling_integrations=False,
            include_local_variables=False,
            include_source_context=False,
            max_request_body_size="never",
            max_breadcrumbs=0,
            auto_session_tracking=False,
            spotlight=False,
            debug=False,
        )
        # For those who call `sentry_sdk.capture_exception` themselves.
        sentry_sdk.get_global_scope().set_client(self._client)

    def __repr__(self) -> str:
        return f"SentryReporter({self._service!r})"

    def report(self, error: BaseException) -> None:
        """Queue a report of an error, unless there were enough of them."""
        if self._bounds.admit(error):
            with sentry_sdk.new_scope() as scope:
                scope.set_client(self._client)
                scope.capture_exception(error)

    def close(self, timeout_seconds: float) -> None:
        """Send the reports that are queued, and end."""
        self._client.close(timeout=timeout_seconds)
        if sentry_sdk.get_global_scope().client is self._client:
            sentry_sdk.get_global_scope().set_client(None)

    def _scrubbed(self, event: Event, hint: Hint) -> Event | None:
        """Return the event with our context and without secrets."""
        del hint
        event = cast("Event", _without_secrets(event, depth=0))
        contents = cast("dict[str, Any]", event)
        for part in _DROPPED:
            contents.pop(part, None)
        if "request" in contents:
            contents["request"] = _reduced_request(contents["request"])
        tags = contents.setdefault("tags", {})
        tags["service"] = self._service
        about = bound()
        if about is not None:
            tags["request_id"] = masked(about.request_id)
            if about.user_id is not None:
                contents["user"] = {"id": self._pseudonym(about.user_id)}
        contexts = contents.setdefault("contexts", {})
        contexts.pop("trace", None)  # Sentry's own ids, which nothing else knows
        current = trace.get_current_span().get_span_context()
        if current.is_valid:
            trace_id = trace.format_trace_id(current.trace_id)
            contexts["trace"] = {"trace_id": trace_id, "span_id": trace.format_span_id(current.span_id)}
            tags["trace_id"] = trace_id
        return event

    def _pseudonym(self, user_id: str) -> str:
        """Return a text that is the same for the same user, and tells nobody who that is."""
        return hashlib.blake2b(user_id.encode(), key=self._pseudonym_key, digest_size=8).hexdigest()


class Bounds:
    """Admits a bounded number of errors in each interval, and counts the others."""

    def __init__(self) -> None:
        self._since = 0.0
        self._reports = 0
        self._of_one: OrderedDict[tuple[object, ...], int] = OrderedDict()

    def __repr__(self) -> str:
        return f"Bounds({self._reports} of {MAX_REPORTS})"

    def admit(self, error: BaseException) -> bool:
        """Return whether to report an error."""
        now = time.monotonic()
        if now - self._since >= INTERVAL_SECONDS or not self._reports:
            self._since, self._reports = now, 0
            self._of_one.clear()
        place = _place_of(error)
        count = self._of_one.get(place, 0) + 1
        if count > MAX_REPORTS_OF_ONE_ERROR:
            _count_dropped("repeated")
            return False
        if self._reports >= MAX_REPORTS:
            _count_dropped("too_many")
            return False
        self._of_one[place] = count
        self._reports += 1
        return True


class CountingTransport(HttpTransport):
    """Sentry's transport; it counts the reports that did not get there, and tries each once, without a word."""

    @override
    def record_lost_event(
        self, reason: str, data_category: Any = None, item: Item | None = None, *, quantity: int = 1
    ) -> None:
        """Count a report that is lost: the queue was full, the network or Sentry failed, or it asked for less."""
        category = data_category if item is None else item.data_category
        if category != "internal":  # the library's own reports of what was lost
            _count_dropped("queue_full" if reason == "queue_overflow" else "not_sent")
        super().record_lost_event(reason, data_category, item, quantity=quantity)

    @override
    def on_dropped_event(self, _reason: str) -> None:
        """Count a report to which Sentry says that it gets too many, which is no loss to the library."""
        if _reason == "status_429":
            _count_dropped("not_sent")

    @override
    def _get_pool_options(self) -> dict[str, Any]:
        # urllib3 would try three times, and warn each time.
        return {**super()._get_pool_options(), "retries": Retry(0)}


def _count_dropped(reason: str) -> None:
    metrics.error_reports_dropped.labels(reason).inc()


def _place_of(error: BaseException) -> tuple[object, ...]:
    """Return the class of an error and the line that raised it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return (class_name(error),)
    return class_name(error), traceback.tb_frame.f_code.co_filename, traceback.tb_lineno


def _without_secrets(value: Any, *, depth: int) -> Any:
    """Return JSON with its texts masked, keys included."""
    if depth > MAX_DEPTH:
        return None
    match value:
        case str():
            return masked(value)
        case Mapping():
            items = cast("Mapping[Any, Any]", value).items()
            return {masked(str(name)): _without_secrets(each, depth=depth + 1) for name, each in items}
        case list() | tuple():
            return [_without_secrets(each, depth=depth + 1) for each in cast("list[Any]", value)]
        case bool() | int() | float() | None:
            return value
        case _:  # Sentry's own placeholders, and whatever an application has put there
            return masked(str(value))


def _reduced_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return method, URL without query, and harmless headers of a request that an integration has noted."""
    url = str(request.get("url", "")).partition("?")[0].partition("#")[0]
    headers: Mapping[str, Any] = request.get("headers") or {}
    return {
        "method": request.get("method"),
        "url": url,
        "headers": {name: value for name, value in headers.items() if name.lower() in _HEADERS},
    }
