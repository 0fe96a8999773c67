"""Unexpected errors reach a Sentry with what helps to find them, without secrets, and without flooding it."""

import json
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Never

import pytest
import sentry_sdk
from fastapi import FastAPI, HTTPException
from opentelemetry import trace
from pydantic import BaseModel, SecretStr

from hybridkit.adapters._running import open_resources
from hybridkit.adapters.fastapi import create_app
from hybridkit.context import RequestContext, bind
from hybridkit.errors import MissingExtraError, UnavailableError
from hybridkit.observability import ErrorReports, configure_error_reports, report_error, span
from hybridkit.observability._metrics import registry
from hybridkit.observability._sentry import MAX_REPORTS, MAX_REPORTS_OF_ONE_ERROR, Bounds, SentryReporter
from hybridkit.settings import SecretUrl, ServiceSettings
from tests.helpers.apis import serving
from tests.helpers.sentry import SentryReceiver
from tests.helpers.spans import recording

CANARY = "c4n4ry-Zq8vXw2LmN5t"


class Settings(ServiceSettings):
    service_name: str = "users_api"
    service_version: str = "1.2.3"
    environment: Any = "test"
    api_key: SecretStr = SecretStr(CANARY)


@pytest.fixture
def sentry() -> Iterator[SentryReceiver]:
    with SentryReceiver() as receiver:
        yield receiver


@asynccontextmanager
async def reporting(sentry: SentryReceiver) -> AsyncGenerator[ErrorReports]:
    """Report inside the block; at its end all reports have arrived."""
    reports = configure_error_reports(Settings(sentry_dsn=SecretUrl(sentry.dsn)))
    try:
        yield reports
    finally:
        await reports.aclose(timeout_seconds=60)


def dropped(reason: str) -> float:
    return registry.get_sample_value("hybridkit_error_reports_dropped_total", {"reason": reason}) or 0.0


def failed(message: str = "no such order") -> Exception:
    """Return an error as a handler raises it, with a cause and with local variables."""
    secret = CANARY
    try:
        raise_with_cause(message, len(secret))
    except RuntimeError as error:
        return error


def raise_with_cause(message: str, number: int) -> Never:
    raise RuntimeError(f"{message}, {number} characters") from KeyError(message)


# ── what is sent ─────────────────────────────────────────────────────────────────────────────────


async def test_a_report_leads_to_the_logs_and_the_trace(
    sentry: SentryReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the request's id, the trace's, release, environment and service; of the user a pseudonym."""
    with recording(monkeypatch):
        async with reporting(sentry):
            for user_id in ("ada@example.org", "ada@example.org", "bob"):
                context = RequestContext(request_id="r-1", user_id=user_id)
                with bind(context), span("work") as current:
                    report_error(failed())
                    trace_id = trace.format_trace_id(current.get_span_context().trace_id)
    first, second, third = sentry.received()
    assert first["release"] == "1.2.3"
    assert first["environment"] == "test"
    assert third["tags"] == {"service": "users_api", "request_id": "r-1", "trace_id": trace_id}
    assert third["contexts"]["trace"]["trace_id"] == trace_id
    assert [value["type"] for value in first["exception"]["values"]] == ["KeyError", "RuntimeError"]
    assert first["exception"]["values"][1]["stacktrace"]["frames"][-1]["function"] == "raise_with_cause"
    assert first["user"] == second["user"] != third["user"]
    assert b"ada" not in b"".join(sentry.everything)


async def test_outside_of_a_request_there_is_no_context(sentry: SentryReceiver) -> None:
    """A report needs none."""
    async with reporting(sentry):
        report_error(failed())
    (event,) = sentry.received()
    assert event["tags"] == {"service": "users_api"}
    assert "trace" not in event["contexts"]
    assert "user" not in event


class Order(BaseModel):
    amount: int


def application() -> FastAPI:
    app = create_app(Settings, title="Test")

    @app.post("/orders/{number}")
    async def create(number: int, body: Order) -> None:
        raise RuntimeError(
            f"{number}: Bearer {CANARY} at https://user:{CANARY}@partner/?key={CANARY}, cookie: {CANARY}"
        ) from failed(f"api key {CANARY} is refused")

    @app.get("/missing")
    async def missing() -> None:
        raise HTTPException(404, "no such thing")

    @app.get("/away")
    async def away() -> None:
        raise UnavailableError("the database is away")

    return app


async def test_an_api_reports_what_it_answers_with_500_without_any_planted_secret(
    sentry: SentryReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path, header, cookie, query, body, environment, URL, exception, local variable: none of them is sent."""
    monkeypatch.setenv("PLANTED", CANARY)
    monkeypatch.setattr(sys, "argv", [*sys.argv, CANARY])
    app = application()
    app.state.settings = Settings(sentry_dsn=SecretUrl(sentry.dsn))
    async with serving(app) as client:
        answer = await client.post(
            f"/orders/7?token={CANARY}",
            json={"amount": 1, "note": CANARY},
            headers={"authorization": f"Bearer {CANARY}", "cookie": f"session={CANARY}", "x-key": CANARY},
        )
        for path in ("/missing", "/away", "/nowhere", "/health"):
            await client.get(path)
    assert answer.status_code == 500
    (event,) = sentry.received()
    assert [value["type"] for value in event["exception"]["values"]] == [
        "KeyError",
        "RuntimeError",
        "RuntimeError",
    ]
    assert event["exception"]["values"][-1]["value"].startswith("7: Bearer **********")
    assert event["tags"]["request_id"] == answer.headers["x-request-id"]
    assert CANARY.encode() not in b"".join(sentry.everything)


async def test_what_an_application_adds_itself_is_scrubbed_too(sentry: SentryReceiver) -> None:
    """Sentry's own functions work, by the same rules."""
    async with reporting(sentry):
        with sentry_sdk.new_scope() as scope:
            scope.set_user({"id": "ada", "email": "ada@example.org"})
            scope.set_extra("body", "hunter2")
            scope.set_tag("plan", f"free {CANARY}")
            scope.add_breadcrumb(message="hunter2")
            scope.set_context("deep", {"list": [1, None, 1.5, True, {"key": CANARY}]})
            scope.add_event_processor(with_request)
            sentry_sdk.capture_message(f"own words, {CANARY}")
    (event,) = sentry.received()
    sent = json.dumps(event)
    for planted in ("hunter2", "ada", CANARY):
        assert planted not in sent
    assert event["message"] == "own words, **********"
    assert event["tags"]["plan"] == "free **********"
    assert event["request"] == {
        "method": "GET",
        "url": "http://test/orders",
        "headers": {"User-Agent": "curl"},
    }


def with_request(event: Any, _: Any) -> Any:
    """Add a request as an integration would."""
    headers = {"User-Agent": "curl", "Authorization": "hunter2", "X-Api-Key": "hunter2"}
    url = "http://test/orders?q=hunter2"
    request = {
        "method": "GET",
        "url": url,
        "query_string": "q=hunter2",
        "data": "hunter2",
        "headers": headers,
    }
    return {**event, "request": {**request, "cookies": {"session": "hunter2"}, "env": {"A": "hunter2"}}}


async def test_a_process_reports_why_it_ends(sentry: SentryReceiver) -> None:
    """The report is sent before the process is gone."""
    settings = Settings(sentry_dsn=SecretUrl(sentry.dsn), management_port=0)
    with pytest.raises(LookupError):
        async with open_resources("worker", settings):
            raise LookupError("no templates")
    (event,) = sentry.received()
    assert event["exception"]["values"][0]["type"] == "LookupError"


# ── without harm ─────────────────────────────────────────────────────────────────────────────────


def test_the_start_imports_no_integrations(sentry: SentryReceiver) -> None:
    """With them it would take two seconds."""
    SentryReporter(Settings(), sentry.dsn).close(0)
    began = time.process_time()
    reporter = SentryReporter(Settings(), sentry.dsn)
    took = time.process_time() - began
    assert repr(reporter) == "SentryReporter('users_api')"
    assert reporter._client.integrations == {}
    reporter.close(0)
    assert took < 0.1  # 5 ms


async def test_a_storm_of_one_error_is_a_few_reports(sentry: SentryReceiver) -> None:
    """The others are counted; another error still gets through."""
    before = dropped("repeated")
    async with reporting(sentry):
        for _ in range(100):
            report_error(failed())
        report_error(ValueError("another one"))
    events = sentry.received()
    assert len(events) == MAX_REPORTS_OF_ONE_ERROR + 1
    assert events[-1]["exception"]["values"][0]["type"] == "ValueError"
    assert dropped("repeated") - before == 100 - MAX_REPORTS_OF_ONE_ERROR


def test_many_errors_are_bounded_in_each_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new interval begins from nothing."""
    now = 1000.0
    monkeypatch.setattr("hybridkit.observability._sentry.time.monotonic", lambda: now)
    before = dropped("too_many")
    bounds = Bounds()
    kinds = [type(f"Error{number}", (Exception,), {}) for number in range(MAX_REPORTS + 3)]
    assert [bounds.admit(kind()) for kind in kinds].count(True) == MAX_REPORTS
    assert dropped("too_many") - before == 3
    assert repr(bounds) == f"Bounds({MAX_REPORTS} of {MAX_REPORTS})"
    now += 60
    assert bounds.admit(kinds[-1]())


@pytest.mark.parametrize("status", [500, 429])
async def test_what_sentry_does_not_take_is_counted(sentry: SentryReceiver, status: int) -> None:
    """It may ask for less, and then gets less."""
    before = dropped("not_sent")
    sentry.status = status
    async with reporting(sentry):
        report_error(failed())
    assert dropped("not_sent") - before >= 1
    assert sentry.received() == []


async def test_a_dead_sentry_is_left_behind() -> None:
    """Reporting and closing cost no more than their time."""
    before = dropped("not_sent")
    settings = Settings(sentry_dsn=SecretUrl("http://public_key@127.0.0.1:9/42"))
    began = time.process_time()
    async with configure_error_reports(settings) as reports:
        assert repr(reports) == "ErrorReports(reporting=True)"
        for _ in range(10):
            report_error(failed())
        await reports.aclose(timeout_seconds=60)
    await reports.aclose()
    assert time.process_time() - began < 5
    assert dropped("not_sent") - before == MAX_REPORTS_OF_ONE_ERROR


async def test_without_a_dsn_nothing_is_reported(sentry: SentryReceiver) -> None:
    """Nor after the reports are closed."""
    async with reporting(sentry):
        pass
    async with configure_error_reports(Settings()) as reports:
        assert repr(reports) == "ErrorReports(reporting=False)"
        report_error(failed())
    assert sentry.received() == []


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is configured, and not at the first error."""
    monkeypatch.delitem(sys.modules, "hybridkit.observability._sentry", raising=False)
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    with pytest.raises(MissingExtraError, match=r'pip install "hybridkit\[sentry\]"'):
        configure_error_reports(Settings(sentry_dsn=SecretUrl("http://key@127.0.0.1:9/42")))
