"""One pipeline for structlog and the standard library: what a line holds, and that it never fails the work."""

import json
import logging
import sys
import threading
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import pytest
import structlog
from pydantic import SecretStr

from hybridkit.context import RequestContext, bind
from hybridkit.observability import configure_logging, get_logger, metrics, span, trace_headers
from hybridkit.settings import SecretUrl, ServiceSettings

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def fail(error: Exception) -> NoReturn:
    raise error


log = get_logger("tests.logging")


pytestmark = pytest.mark.usefixtures("restored_logging")


def configure(**values: Any) -> None:
    configure_logging(ServiceSettings(**{"service_name": "users_api", "environment": "test", **values}))


class Lines:
    """What was logged since the last look, parsed."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured = captured

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._captured.readouterr().out.splitlines()]

    def one(self) -> dict[str, Any]:
        (line,) = self.all()
        return line


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    configure()
    return Lines(capsys)


# ── what a line holds ────────────────────────────────────────────────────────────────────────────


def test_a_line_follows_the_elastic_common_schema(lines: Lines) -> None:
    """It has nothing else but what the caller said."""
    before = datetime.now(UTC)
    log.info("user registered", plan="free")
    line = lines.one()
    written = datetime.fromisoformat(line.pop("@timestamp"))
    assert abs((written - before).total_seconds()) < 5
    assert line == {
        "log.level": "info",
        "message": "user registered",
        "service.name": "users_api",
        "service.environment": "test",
        "ecs.version": "8.17.0",
        "log.logger": "tests.logging",
        "labels": {"plan": "free"},
    }


def test_the_context_is_in_each_line_and_none_is_made_up(lines: Lines) -> None:
    """Lines of other libraries have it too."""
    with bind(RequestContext(request_id="req-1", user_id="user-1")):
        log.info("inside")
    with bind(RequestContext(request_id="req-2")):
        logging.getLogger("library").warning("inside")
    log.info("outside")
    full, system, outside = lines.all()
    assert (full["http.request.id"], full["user.id"]) == ("req-1", "user-1")
    assert full["labels"] == {"request_id": "req-1", "user_id": "user-1"}
    assert (system["http.request.id"], system["labels"]) == ("req-2", {"request_id": "req-2"})
    assert not outside.keys() & {"labels", "http.request.id", "user.id"}


def test_a_line_inside_a_span_names_its_trace(lines: Lines) -> None:
    """A log viewer can lead from the line to the trace."""
    with span("work", parent={"traceparent": TRACEPARENT}):
        assert trace_headers()["traceparent"] == TRACEPARENT
        log.info("traced")
    line = lines.one()
    assert (line["trace.id"], line["span.id"]) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


def test_what_the_application_binds_is_in_each_line(lines: Lines) -> None:
    """By context variables of structlog, or on a logger."""
    structlog.contextvars.bind_contextvars(tenant="blue")
    log.bind(attempt=2).info("bound")
    line = lines.one()
    assert line["labels"] == {"tenant": "blue", "attempt": 2}


def test_an_error_has_type_message_and_stack(lines: Lines) -> None:
    """Asked for in any of the ways that both libraries have."""
    try:
        fail(LookupError("no such user"))
    except LookupError as error:
        log.exception("active")
        log.warning("given", exc_info=error)
        logging.getLogger("library").exception("standard")
    log.error("none active", exc_info=True)  # noqa: LOG014 # what it does is the question
    *failed, none = lines.all()
    for line in failed:
        assert (line["error.type"], line["error.message"]) == ("builtins.LookupError", "no such user")
        assert line["error.stack_trace"].startswith("Traceback (most recent call last):\n")
        assert line["error.stack_trace"].endswith("LookupError: no such user\n")
    assert not any(name.startswith("error.") for name in none)


def test_keys_that_the_schema_uses_otherwise_go_to_labels(lines: Lines) -> None:
    """A text where Elasticsearch expects an object, or a number, makes it refuse the line."""
    log.info(
        "clash",
        user="ada",
        message="mine",
        **{"url.port": "http", "http.route": "/users", "log.level": "loud"},
    )
    line = lines.one()
    assert (line["message"], line["log.level"]) == ("clash", "info")
    assert line["labels"] == {
        "user": "ada",
        "message": "mine",
        "url_port": "http",
        "http_route": "/users",
        "log_level": "loud",
    }


def test_keys_of_the_schema_stand_under_their_names(lines: Lines) -> None:
    """Also those that are given as objects; `labels` takes what has no other place."""
    log.info(
        "request",
        http={"request": {"method": "GET", "x": 1}},
        tags=["a"],
        labels={"plan": "free"},
        **{"url.port": 80},
    )
    line = lines.one()
    assert (line["http.request.method"], line["url.port"], line["tags"]) == ("GET", 80, ["a"])
    assert line["labels"] == {"http_request_x": 1, "plan": "free"}


def test_a_stack_is_that_of_the_line_unless_an_error_has_one(lines: Lines) -> None:
    """As the watchdog's, which has no error."""
    log.warning("blocked", stack="line 1")
    log.warning("failed", stack="line 1", exc_info=ValueError("x"))
    blocked, failed = lines.all()
    assert blocked["error.stack_trace"] == "line 1"
    assert failed["error.stack_trace"].endswith("ValueError: x\n")


def test_levels_below_the_configured_one_are_left_out(lines: Lines) -> None:
    """For our loggers and for the standard library's."""
    log.debug("no")
    logging.getLogger("library").debug("no")
    configure(log_level="DEBUG")
    log.debug("yes")
    logging.getLogger("library").debug("yes")
    assert [line["message"] for line in lines.all()] == ["yes", "yes"]


# ── the standard library's loggers ───────────────────────────────────────────────────────────────


def test_records_of_the_standard_library_take_the_same_way(lines: Lines) -> None:
    """Their extras become labels."""
    logging.getLogger("uvicorn.error").warning("hi %s", "there", extra={"client": "10.0.0.1", "n": 1})
    line = lines.one()
    assert (line["message"], line["log.level"], line["log.logger"]) == (
        "hi there",
        "warning",
        "uvicorn.error",
    )
    assert line["labels"] == {"client": "10.0.0.1", "n": 1}


def test_handlers_that_uvicorn_installed_are_replaced(
    lines: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line would come out twice."""
    uvicorn = logging.getLogger("uvicorn")
    uvicorn.addHandler(logging.StreamHandler(sys.stderr))
    uvicorn.propagate = False
    configure()
    uvicorn.warning("once")
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("once") == 1


def test_configuring_again_does_not_double_the_lines(lines: Lines) -> None:
    """Also after `logging.basicConfig`."""
    logging.basicConfig(force=True)
    configure()
    configure()
    logging.getLogger("library").warning("once")
    assert lines.one()["message"] == "once"


def test_other_handlers_of_the_root_logger_stay(lines: Lines, caplog: pytest.LogCaptureFixture) -> None:
    """Such as pytest's, or an error tracker's."""
    logging.getLogger("library").warning("seen by both")
    assert caplog.messages == ["seen by both"]
    assert lines.one()["message"] == "seen by both"


def test_levels_of_other_libraries_find_the_nearest(lines: Lines) -> None:
    """A level of any number has a name in the line."""
    logger = logging.getLogger("library")
    for level in (25, 60):
        logger.log(level, "custom")
    logger.handle(logging.makeLogRecord({"msg": "raw", "levelno": 20, "name": "library"}))
    assert [line["log.level"] for line in lines.all()] == ["info", "critical", "info"]


def test_libraries_that_print_secrets_at_low_levels_are_held_back(lines: Lines) -> None:
    """Their URLs and headers have tokens, also at DEBUG."""
    configure(log_level="DEBUG")
    logging.getLogger("httpx").info("HTTP Request: GET https://api.telegram.org/")
    logging.getLogger("httpcore.http11").debug("send_request_headers")
    logging.getLogger("aiormq.connection").debug("Sending StartOk")
    logging.getLogger("sqlalchemy.engine").info("INSERT")
    assert lines.all() == []


def test_warnings_of_python_are_lines(lines: Lines) -> None:
    """They would go to standard error past the pipeline."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        configure()
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    line = lines.one()
    assert line["log.logger"] == "py.warnings"
    assert "DeprecationWarning: old ways" in line["message"]


# ── values that are hard to show ─────────────────────────────────────────────────────────────────


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@dataclass
class Credentials:
    user: str
    password: SecretStr


def test_secrets_show_their_mask(lines: Lines) -> None:
    """In containers and dataclasses too."""
    log.info(
        "secrets",
        token=SecretStr("CANARY"),
        broker=SecretUrl("amqp://u:CANARY@rabbit/vhost"),
        nested=[Credentials("ada", SecretStr("CANARY")), {"key": SecretStr("CANARY")}],
    )
    text = json.dumps(lines.one())
    assert "CANARY" not in text
    assert "rabbit/vhost" in text


def test_credentials_inside_of_texts_are_masked(lines: Lines) -> None:
    """Drivers and HTTP clients put the URL into the message of the error."""
    try:
        fail(ConnectionError("cannot reach amqp://user:CANARY@rabbit:5672/ or redis://:CANARY@redis"))
    except ConnectionError:
        log.exception(
            "POST https://api.telegram.org/bot123456:CANARY-x_y/sendMessage", see="http://host:80/a b@c"
        )
    line = lines.one()
    assert "CANARY" not in json.dumps(line)
    assert line["message"] == "POST https://api.telegram.org/bot**********/sendMessage"
    assert line["error.message"] == "cannot reach amqp://**********@rabbit:5672/ or redis://**********@redis"
    assert line["labels"]["see"] == "http://host:80/a b@c"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        (Decimal("1.10"), "1.10"),
        (Path("a/b"), "a/b"),
        ({1: {2}}, '{"1":"{2}"}'),
        ([1, [2]], "[1,[2]]"),
        ((1, "a"), [1, "a"]),
        (float("nan"), None),
        (2**70, str(2**70)),
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
        (b"\xff", "b'\\xff'"),
        (Unshowable(), "<Unshowable: str() failed with RuntimeError>"),
    ],
)
def test_any_value_makes_a_line(lines: Lines, value: object, shown: object) -> None:
    """Also one whose `str` fails, and one that JSON doesn't have."""
    log.info("value", value=value)
    assert lines.one()["labels"]["value"] == shown


def test_a_value_inside_itself_makes_a_line(lines: Lines) -> None:
    """So does a text that UTF-8 can't carry."""
    circle: list[object] = []
    circle.append(circle)
    try:
        fail(ValueError("a surrogate: \ud800"))
    except ValueError:
        log.exception("value", value=circle)
    line = lines.one()
    assert line["labels"]["value"] == "[[...]]"
    assert line["error.message"] == "a surrogate: \\ud800"


def test_a_message_that_does_not_fit_its_arguments_makes_a_line(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's work goes on, and the text is kept."""
    root = logging.getLogger()
    ours = [handler for handler in root.handlers if handler.__class__.__module__.startswith("hybridkit.")]
    monkeypatch.setattr(root, "handlers", ours)  # pytest's own handler raises
    logging.getLogger("library").warning("%d of %d", "one")  # noqa: PLE1206
    assert lines.one()["message"] == "%d of %d"


def test_a_record_that_cannot_pass_is_counted(lines: Lines) -> None:
    """The metric of dropped lines says so."""
    before = metrics.log_lines_dropped._value.get()
    logging.getLogger("library").warning("x", extra={"self": 1})
    assert lines.all() == []
    assert metrics.log_lines_dropped._value.get() == before + 1


def test_a_processor_that_raises_fails_no_work() -> None:
    """Nor does a logger that can't be made: the line is dropped, and counted."""

    def broken(*_: object) -> NoReturn:
        raise RuntimeError("a processor")

    configured = structlog.get_config()
    before = metrics.log_lines_dropped._value.get()
    try:
        structlog.configure(processors=[broken])
        log.error("x", exc_info=ValueError())
        structlog.configure(logger_factory=broken)
        log.info("x")
    finally:
        structlog.configure(**configured)
    assert metrics.log_lines_dropped._value.get() == before + 2


# ── the form for people ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("environment", "log_format", "is_json"),
    [
        ("development", None, False),
        ("test", None, True),
        ("production", None, True),
        ("development", "json", True),
        ("production", "console", False),
    ],
)
def test_development_reads_lines_and_the_rest_is_json(
    environment: str, log_format: str | None, is_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless the setting says otherwise."""
    configure(environment=environment, log_format=log_format, _env_file=None)
    log.info("user registered", plan="free")
    out = capsys.readouterr().out
    assert out.startswith("{") is is_json
    assert "user registered" in out
    assert "\x1b" not in out  # colours are for terminals


def test_the_console_shows_context_and_stack_without_locals(capsys: pytest.CaptureFixture[str]) -> None:
    """structlog's default shows local variables where rich is installed."""
    configure(log_format="console")
    password = "CANARY"
    with bind(RequestContext(request_id="req-1")):
        try:
            fail(LookupError(len(password)))
        except LookupError:
            log.exception("failed", odd=Unshowable())
    out = capsys.readouterr().out
    assert "req-1" in out
    assert "[tests.logging]" in out
    assert "LookupError: 6" in out
    assert "CANARY" not in out.replace('password = "CANARY"', "")


# ── threads ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("control", ["\n", "\r", "\x1b[2J", "\x00", "\x7f", "\x9b", "\u2028", "\u202e"])
def test_the_console_shows_control_characters_escaped(
    capsys: pytest.CaptureFixture[str], control: str
) -> None:
    """What somebody else has sent neither forges a line nor steers the terminal, wherever in the event it is."""
    configure(log_format="console")
    sent = f"GET /{control}2026-01-01 [info] admin logged in"
    log.info(sent, path=sent, parts=[sent], exc_info=None)
    logging.getLogger("other").warning("asked: %s", sent)
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 2
    assert control.strip("\n") not in shown or control == "\n"
    assert shown.count("admin logged in") == 4


def test_the_console_shows_the_control_characters_of_an_error_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A stack has lines of its own; nothing else in it is taken literally."""
    configure(log_format="console")
    log.error("failed", exc_info=ValueError("\x1b[2Jsent"))
    assert "\\x1b[2Jsent" in capsys.readouterr().out


def test_an_unconfigured_process_shows_control_characters_escaped(caplog: pytest.LogCaptureFixture) -> None:
    """Without `configure_logging` lines go to the standard library, one each as well."""
    structlog.reset_defaults()
    log.warning("GET /\nforged", path="\n")
    assert caplog.messages == ["GET /\\nforged path='\\n'"]


def test_lines_of_many_threads_stay_whole(capfd: pytest.CaptureFixture[str]) -> None:
    """800 lines of eight threads, none cut or mixed."""
    configure()
    start = threading.Barrier(8)

    def work(worker: int) -> None:
        start.wait()
        for number in range(100):
            log.info("x" * 500, worker=worker, number=number)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Lines(capfd).all()
    assert {(line["labels"]["worker"], line["labels"]["number"]) for line in found} == {
        (w, n) for w in range(8) for n in range(100)
    }


# ── without a configuration ──────────────────────────────────────────────────────────────────────


def test_a_process_that_configures_nothing_hears_of_trouble_on_the_standard_logger(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of any other library: nothing on standard output, and no values of local variables."""
    structlog.reset_defaults()
    secret = "s3cr3t"  # a traceback with locals would show it
    log.info("fine")
    structlog.contextvars.bind_contextvars(consumer="email_tasks")
    log.warning("100 % full", free=0)
    try:
        fail(LookupError(f"gone, {len(secret)}"))
    except LookupError:
        log.exception("not found")
    assert [record.getMessage() for record in caplog.records] == [
        "100 % full free=0 consumer='email_tasks'",
        "not found consumer='email_tasks'",
    ]
    assert caplog.records[1].name == "tests.logging"
    assert "LookupError: gone, 6" in caplog.text
    assert "s3cr3t" not in caplog.text
    assert capsys.readouterr().out == ""


def test_an_applications_own_configuration_is_followed() -> None:
    """Even where the logger was made before it."""
    with structlog.testing.capture_logs() as lines:
        log.info("theirs")
    assert [line["event"] for line in lines] == ["theirs"]
    assert repr(log) == "get_logger('tests.logging')"


def test_processors_that_an_application_adds_later_see_every_line(lines: Lines) -> None:
    """They may be put into structlog's configuration after `configure_logging`, even in place."""
    log.info("before")
    seen: list[Any] = []

    def watch(_: Any, __: str, event: Any) -> Any:
        seen.append(event["event"])
        return event

    structlog.get_config()["processors"].insert(0, watch)
    log.info("seen")
    structlog.get_config()["processors"].remove(watch)
    log.info("after")
    assert seen == ["seen"]
    assert [line["message"] for line in lines.all()] == ["before", "seen", "after"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_line_is_the_same_whichever_way_it_takes(
    log_format: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short way past structlog writes what the long way writes, secrets masked, values of any kind in place."""
    configure(log_format=log_format)
    monkeypatch.setattr("hybridkit.observability._logging._timestamp", lambda: "2026-01-01T00:00:00.000Z")
    structlog.contextvars.bind_contextvars(plan="free", tenant="acme")
    values: dict[str, Any] = {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http": {"version": "1.1"},
        "client.ip": "nowhere",
        "url.path": 7,
        "user.id": "ann",
        "token": "Bearer abcdefghijk",
        "nested": [{"a": 1}],
        "plan": "paid",
        "labels": {"a.b": 1},
    }
    written: list[str] = []
    with bind(RequestContext(request_id="r-1", user_id="bob")):
        for logger in (log, structlog.get_logger("tests.logging")):
            logger.info("GET /x?token=abc", **values)
            logger.warning("kept", exc_info=ValueError("no"))
            logger.debug("not written")
            written.append(capsys.readouterr().out)
    structlog.contextvars.clear_contextvars()
    assert written[0] == written[1]
    assert "abcdefghijk" not in written[0]
    assert written[0].count("acme") == 2
