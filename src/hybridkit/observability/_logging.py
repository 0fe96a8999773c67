"""Logs: structlog and the standard library's loggers through one pipeline, a line per event on standard output.

JSON lines follow the Elastic Common Schema (https://www.elastic.co/docs/reference/ecs): `@timestamp`, `log.level`,
`message`, `service.name`, `trace.id`, `error.stack_trace`, `http.request.id`, and each name of the schema that the
caller uses with a value of its type. All else is in `labels`, where the schema has room for it: two services that use a
name for different things would otherwise make Elasticsearch refuse the lines of one of them. A nested value is there as
JSON text. The request id is in `labels` too, as `request_id`, for people who search without the schema.
"""

import io
import logging
import re
import sys
import time
from collections.abc import Callable, MutableMapping
from functools import lru_cache, partial
from typing import Any, Final, TextIO, cast

import orjson
import structlog
from opentelemetry import trace
from opentelemetry.context import get_current
from structlog.typing import FilteringBoundLogger

from hybridkit.context import bound
from hybridkit.observability._ecs import ECS_VERSION, OBJECTS, fits, flattened
from hybridkit.observability._metrics import metrics
from hybridkit.observability._output import standard_output, write_line
from hybridkit.observability._redaction import masked_line, remember_secrets
from hybridkit.observability._texts import class_name, printable, stack_of
from hybridkit.settings import ServiceSettings

type _Event = MutableMapping[str, Any]
type _Render = Callable[[str, str, dict[str, Any]], bytes]

# Below these levels a library prints tokens, passwords or documents: httpx the full URL, which in Telegram's case is
# the bot's token; httpcore the headers; aiormq the frame that logs in; SQLAlchemy and PyMongo the data.
_LIBRARY_LEVELS: Final = {
    "aio_pika": logging.INFO,
    "aiogram": logging.INFO,
    "aiormq": logging.INFO,
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "pymongo": logging.INFO,
    "sqlalchemy": logging.WARNING,
    "urllib3": logging.INFO,
}
_LIBRARIES_WITH_HANDLERS: Final = (
    "gunicorn.access",
    "gunicorn.error",
    "uvicorn",
    "uvicorn.access",
    "uvicorn.error",
)
_RECORD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "asctime",
    "color_message",
    "message",
}
# C0, DEL and C1, the separators of lines, and what turns the direction of writing.
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def get_logger(name: str) -> FilteringBoundLogger:
    """Return a logger: `log.info("user registered", plan="free")` has the event first and its data as keywords.

    It may be made at import; it follows `configure_logging`, or the application's own structlog configuration, whenever
    that comes. Without either it does what a library should: it writes to the standard library's logger of that name,
    from where warnings and errors go to standard error unless the application says otherwise.

    Whatever a processor of the application raises, the caller goes on: the line is counted as dropped.
    """
    return cast("FilteringBoundLogger", _Logger(name))


def _plain(level: str) -> Callable[..., Any]:
    """Make the method of a level, which takes the short way where it leads to the same line."""
    number = logging.getLevelNamesMapping()[level.upper()]

    def method(self: "_Logger", /, *args: Any, **values: Any) -> Any:
        if _short_way is None or len(args) != 1 or "event" in values or not _short_way.is_open():
            return self.__getattr__(level)(*args, **values)
        if number >= _short_way.level:
            _spare(_short_way.write, self._name, level, args[0], values)
        return None

    return method


class _Logger:
    """A logger that follows the configuration: it checks each time whether it was made for the current one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._configuration: dict[str, Any] | None = None
        self._logger: Any = None

    def __repr__(self) -> str:
        return f"get_logger({self._name!r})"

    debug, info, warning, error, critical = map(_plain, ("debug", "info", "warning", "error", "critical"))

    def __getattr__(self, method: str) -> Any:
        try:
            found = getattr(self._current(), method)
        except AttributeError:
            raise
        except Exception:  # noqa: BLE001 # a logger of the application's own that can't be made
            found = _drop
        return partial(_spare, found) if callable(found) else found

    def _current(self) -> Any:
        configuration = structlog.get_config() if structlog.is_configured() else {}
        if configuration != self._configuration:
            self._configuration = configuration
            self._logger = structlog.get_logger(self._name).bind() if configuration else self._standard()
        return self._logger

    def _standard(self) -> Any:
        return structlog.wrap_logger(
            logging.getLogger(self._name),
            processors=_UNCONFIGURED,
            wrapper_class=structlog.stdlib.BoundLogger,
        ).bind()


def _spare(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a logger's method; the work that logs must not fail by it."""
    try:
        return method(*args, **kwargs)
    except Exception:  # noqa: BLE001 # a processor of the application's own
        metrics.log_lines_dropped.inc()
        return None


def _drop(*_: object, **__: object) -> None:
    metrics.log_lines_dropped.inc()


def _as_standard_arguments(_: object, __: str, event: _Event) -> tuple[tuple[str], dict[str, Any]]:
    error = event.pop("exc_info", None)
    told = _one_line(str(event.pop("event")))
    text = " ".join([told, *(f"{name}={value!r}" for name, value in event.items())])
    return (text,), {"exc_info": error}


_UNCONFIGURED: Final = (
    structlog.stdlib.filter_by_level,
    structlog.contextvars.merge_contextvars,
    _as_standard_arguments,
)


def configure_logging(settings: ServiceSettings) -> None:
    """Send all logs of this process through the pipeline, with the service's name in each line.

    Lines are written at once, so that none is lost with the process. While the reader of standard output is blocked, up
    to 8 MiB of them wait for it in a thread; more are dropped and counted. The work goes on. It may be called again.
    """
    remember_secrets(settings)
    level = logging.getLevelNamesMapping()[settings.log_level]
    as_json = settings.log_format == "json" or (
        settings.log_format is None and settings.environment != "development"
    )
    global _short_way  # noqa: PLW0603 - of the process, as structlog's configuration is
    _short_way = _ShortWay(_json_renderer(settings) if as_json else _console_renderer(), level)
    structlog.configure(**_short_way.configuration)
    _take_over_standard_logging(level)
    standard_output.on_dropped = _tell_dropped


def _tell_dropped(count: int) -> None:
    get_logger("hybridkit.logs").warning(
        "log lines were dropped, as standard output was blocked", count=count
    )


def _take_over_standard_logging(level: int) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        # What `logging.basicConfig` left, or an earlier call; a test's capturing handler, say, stays.
        if type(handler) in {logging.StreamHandler, _StandardHandler}:
            root.removeHandler(handler)
    root.addHandler(_StandardHandler())
    root.setLevel(level)
    for name in _LIBRARIES_WITH_HANDLERS:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    for name, lowest in _LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(max(level, lowest))
    logging.captureWarnings(capture=True)


class _StandardHandler(logging.Handler):
    """A handler that passes a record of the standard library to the structlog logger of the same name."""

    def emit(self, record: logging.LogRecord) -> None:
        extra = {key: value for key, value in vars(record).items() if key not in _RECORD_ATTRIBUTES}
        if record.exc_info and record.exc_info[0]:
            extra["exc_info"] = record.exc_info
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 # arguments that do not fit the format, or whose __str__ fails
            message = str(record.msg)
        nearest = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        try:
            structlog.get_logger(record.name).bind(**extra).log(nearest, message)
        except Exception:  # noqa: BLE001 # a key named `self`, a processor of the user's: no reason to fail the work
            metrics.log_lines_dropped.inc()


class _ShortWay:
    """The pipeline of `configure_logging` called directly, which costs a third of what structlog spends on a line.

    Only as long as structlog's configuration is the one that was made here: an application may put processors of its
    own into it at any time.

    Args:
        render: makes a line of an event.
        level: the lowest level that is written.
    """

    def __init__(self, render: _Render, level: int) -> None:
        self.level = level
        self._rendering = _Rendering(render)
        self._processors = [structlog.contextvars.merge_contextvars, _add_context, self._rendering]
        self.configuration: Final[dict[str, Any]] = {
            "processors": [*self._processors],
            "context_class": dict,
            "wrapper_class": structlog.make_filtering_bound_logger(level),
            "logger_factory": _LineLogger,
            "cache_logger_on_first_use": False,
        }
        """The arguments of `structlog.configure`, and what `structlog.get_config` then returns."""

    def __repr__(self) -> str:
        return f"_ShortWay(level={self.level})"

    def is_open(self) -> bool:
        """Return whether structlog would do the same."""
        configuration = structlog.get_config()
        return configuration == self.configuration and configuration["processors"] == self._processors

    def write(self, name: str, level: str, event: object, values: dict[str, Any]) -> None:
        """Write a line of a logger that has no values bound to it."""
        values["event"] = event
        if _MAY_BE_BOUND:
            structlog.contextvars.merge_contextvars(None, level, values)
        write_line(self._rendering.line(name, level, _add_context(None, level, values)))


_short_way: _ShortWay | None = None

# Until somebody has bound a variable, there is none to look for among all those of the context.
_MAY_BE_BOUND: Final = getattr(structlog.contextvars, "_CONTEXT_VARS", True)


class _LineLogger:
    """The end of the pipeline: structlog wraps it, and leaves finished lines in it."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def msg(self, line: bytes) -> None:
        write_line(line)

    debug = info = warning = error = critical = exception = log = msg


def _add_context(logger: Any, method: str, event: _Event) -> _Event:
    """Add the ids that lines, headers and spans of one piece of work share."""
    del logger, method
    context = bound()
    if context is not None:
        event.setdefault("request_id", context.request_id)
        if context.user_id is not None:
            event.setdefault("user_id", context.user_id)
    # Most often there is no trace at all, and a look into an empty context is a third of the way to its span.
    current = trace.get_current_span(within).get_span_context() if (within := get_current()) else None
    if current is not None and current.is_valid:
        event["trace.id"] = trace.format_trace_id(current.trace_id)
        event["span.id"] = trace.format_span_id(current.span_id)
    return event


class _Rendering:
    """The last processor: it turns an event into bytes, whatever the event holds."""

    def __init__(self, render: _Render) -> None:
        self._render = render

    def __call__(self, logger: Any, method: str, event: _Event) -> bytes:
        return self.line(getattr(logger, "name", ""), method, event)

    def line(self, name: str, method: str, event: _Event) -> bytes:
        """Return the line of an event."""
        error = _error_in(event.pop("exc_info", None))
        try:
            line = self._render(name, method, {**event, "exc_info": error})
        except Exception:  # noqa: BLE001 # a value that cannot be shown must not fail the work that logs it
            texts = {printable(key): printable(value) for key, value in event.items()}
            line = self._render(name, method, {**texts, "exc_info": error})
        return masked_line(line) + b"\n"


def _json_renderer(settings: ServiceSettings) -> _Render:
    constant = {
        "service.name": settings.service_name,
        "service.environment": settings.environment,
        "ecs.version": ECS_VERSION,
        **({"service.version": settings.service_version} if settings.service_version else {}),
    }

    def render(name: str, level: str, event: dict[str, Any]) -> bytes:
        message = event.pop("event", "")
        line: dict[str, Any] = {
            "@timestamp": _timestamp(),
            "log.level": level,
            "message": message if isinstance(message, str) else printable(message),
            **constant,
            "log.logger": name,
        }
        if isinstance(request_id := event.get("request_id"), str):
            line["http.request.id"] = request_id
        if isinstance(user_id := event.get("user_id"), str):
            line["user.id"] = user_id
        for name_of_id in ("trace.id", "span.id"):
            if isinstance(event.get(name_of_id), str):
                line[name_of_id] = event.pop(name_of_id)
        error = event.pop("exc_info")
        stack = event.pop("stack", None)
        if error is not None:
            line |= _error_fields(error)
        elif stack is not None:
            line["error.stack_trace"] = printable(stack)
        if event:
            _add_others(line, event)
        return orjson.dumps(line, default=printable, option=_JSON_OPTIONS)

    return render


_JSON_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z
_SCALARS: Final = frozenset({str, int, float, bool, type(None)})


def _add_others(line: dict[str, Any], event: dict[str, Any]) -> None:
    """Put each value where the schema has its place: under its own name, or in `labels`."""
    labels: dict[str, Any] = {}
    for key, value in event.items():
        if _is_label(key):  # most are
            labels[key] = value if type(value) in _SCALARS else _label(value)
        elif type(value) in _SCALARS and key not in line and fits(key, value):
            line[key] = value
        else:
            _add_parts(line, labels, key, value)
    if labels:
        line["labels"] = labels


def _add_parts(line: dict[str, Any], labels: dict[str, Any], key: str, value: object) -> None:
    for name, part in flattened(key, value):
        if name not in line and fits(name, part):
            line[name] = part
        else:
            labels[name.removeprefix("labels.").replace(".", "_").strip() or "_"] = _label(part)


_OF_SCHEMA: Final = OBJECTS | {"labels", "tags"}


@lru_cache(1024)
def _is_label(key: str) -> bool:
    return key.isidentifier() and key not in _OF_SCHEMA


def _label(value: object) -> object:
    """Return a value as labels have it: a scalar or a list of scalars; JSON text for all else."""
    text = orjson.dumps(value, default=printable, option=_JSON_OPTIONS)
    is_nested = text[:1] == b"{" or (text[:1] == b"[" and (b"{" in text or b"[" in text[1:]))
    return text.decode() if is_nested else orjson.Fragment(text)


def _console_renderer() -> _Render:
    renderer = structlog.dev.ConsoleRenderer(
        colors=bool(sys.stdout) and sys.stdout.isatty(), exception_formatter=_plain_traceback
    )

    def render(name: str, level: str, event: dict[str, Any]) -> bytes:
        stack = event.pop("stack", None)
        event = {key: _one_line(it) if isinstance(it, str) else it for key, it in event.items()}
        if stack is not None:
            event["stack"] = "\n".join(map(_one_line, str(stack).split("\n")))
        event |= {"timestamp": _timestamp(), "level": level, "logger": name}
        return renderer(None, level, event).encode("utf-8", "backslashreplace")

    return render


def _plain_traceback(sink: TextIO, error: Any) -> None:
    """Print a traceback without the local variables of structlog's formatter, and so without the secrets in them."""
    told = io.StringIO()
    structlog.dev.plain_traceback(told, error)
    sink.write("\n".join(map(_one_line, told.getvalue().split("\n"))))


def _one_line(text: str) -> str:
    """Escape control characters: a text of others must not forge a line, or steer a terminal."""
    return text if text.isprintable() else _CONTROLS.sub(lambda it: repr(it.group())[1:-1], text)


def _error_in(exc_info: object) -> BaseException | None:
    """Return the exception of `exc_info`: an exception, a tuple of `sys.exc_info()`, or True for the active one."""
    if exc_info is True:
        return sys.exc_info()[1]
    if isinstance(exc_info, tuple):
        exc_info = cast("tuple[object, ...]", exc_info)[1]
    return exc_info if isinstance(exc_info, BaseException) else None


def _error_fields(error: BaseException) -> dict[str, str]:
    return {
        "error.type": class_name(error),
        "error.message": printable(error),
        "error.stack_trace": stack_of(error),
    }


def _timestamp() -> str:
    """Return the current time in UTC with milliseconds, as everywhere on the wire."""
    now = time.time()
    second = int(now)
    text = _seconds.get(second)
    if text is None:
        _seconds.clear()
        text = _seconds[second] = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{text}.{int((now - second) * 1000):03d}Z"


_seconds: Final[dict[int, str]] = {}
"""The text of the current second: formatting it takes longer than all the rest of a timestamp."""
