"""Rates and schedules that the settings of a process have."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hybridkit._cli._jobs import _next_slot
from hybridkit.adapters._security._rate_limits import made_limiter, rate_limited
from hybridkit.coordination import Rate
from hybridkit.errors import DeclarationError, MisuseError, SettingsError
from hybridkit.jobs import Cron, Jobs
from hybridkit.jobs._jobs import scheduled
from hybridkit.settings import ServiceSettings

NOON = datetime(2030, 1, 4, 12, tzinfo=UTC)


class Settings(ServiceSettings):
    service_name: str = "library"
    upload_rate: Rate = Rate.parse("10/minute")
    sweep_every: timedelta = timedelta(minutes=5)
    report_at: Cron = Cron("0 7 * * *")
    remind_at: str = "30 7 * * *"
    wrong_at: str = "soon"
    weight: int = 1


def test_a_rate_and_a_cron_expression_are_read_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """They go back to the same text, as in a dump of the settings."""
    monkeypatch.setenv("UPLOAD_RATE", "5/s;burst=20")
    monkeypatch.setenv("REPORT_AT", "15 6 * * mon-fri")
    monkeypatch.setenv("SWEEP_EVERY", "PT1M")
    settings = Settings()
    assert (settings.upload_rate, settings.sweep_every) == (Rate(5, "second", 20), timedelta(minutes=1))
    dumped = settings.model_dump(mode="json")
    assert (dumped["upload_rate"], dumped["report_at"]) == ("5/second;burst=20", "15 6 * * mon-fri")
    assert Settings.model_json_schema()["properties"]["upload_rate"]["type"] == "string"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("UPLOAD_RATE", "10 per minute", "a rate is a number per s, m, h or d"),
        ("REPORT_AT", "every day", "has five fields"),
    ],
)
def test_what_can_not_be_read_is_in_the_report_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    """With its variable and with what would do."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"{variable}.*{words}"):
        Settings()


def declared(**options: Any) -> tuple[Jobs, Any]:
    jobs = Jobs()

    async def sweep() -> None: ...

    register = jobs.every if options.pop("is_period", False) else jobs.cron
    register(**options)(sweep)
    return jobs, jobs["sweep"]


@pytest.mark.parametrize(
    ("options", "following"),
    [
        ({"setting": "sweep_every", "is_period": True}, datetime(2030, 1, 4, 12, 5, tzinfo=UTC)),
        ({"setting": "report_at"}, datetime(2030, 1, 5, 7, tzinfo=UTC)),
        ({"setting": "remind_at", "time_zone": "Europe/Berlin"}, datetime(2030, 1, 5, 6, 30, tzinfo=UTC)),
    ],
    ids=str,
)
def test_a_job_runs_by_a_setting_of_its_worker(options: dict[str, Any], following: datetime) -> None:
    """Only a worker knows the slots: whoever lists the jobs sees which setting has them."""
    _, job = declared(**options)
    found = scheduled(job, {Settings: Settings()}, time_zone=options.get("time_zone", "UTC"))
    assert found.schedule.next_after(NOON) == following
    assert str(job.schedule) == f"by the setting {options['setting']}"
    assert options["setting"] in repr(job.schedule)
    assert _next_slot(job, None) is None  # type: ignore[arg-type] # it is not looked at
    with pytest.raises(MisuseError, match="depends on the worker's setting"):
        job.schedule.next_after(NOON)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("nothing", "which Settings doesn't have"),
        ("weight", "is a timedelta, a Cron or its text, not 1"),
        ("wrong_at", "has five fields"),
    ],
)
def test_a_setting_that_is_no_schedule_ends_the_start(setting: str, problem: str) -> None:
    """The error names the setting, or says what an expression is."""
    _, job = declared(setting=setting)
    with pytest.raises(DeclarationError, match=problem):
        scheduled(job, {Settings: Settings()}, time_zone="UTC")


@pytest.mark.parametrize(
    "options",
    [
        {"setting": "sweep_every", "is_period": True, "minutes": 1},
        {"setting": "report_at", "expression": "0 7 * * *"},
        {},
        {"setting": "report_at", "time_zone": "Nowhere/None"},
    ],
    ids=str,
)
def test_a_schedule_is_said_once(options: dict[str, Any]) -> None:
    """In the declaration or by a setting, and its zone is a known one."""
    with pytest.raises(DeclarationError):
        declared(**options)


def test_a_limit_takes_its_rate_from_the_settings() -> None:
    """What the settings lack, and a cost that the rate never allows, are told with the limit's name."""
    assert rate_limited("uploads", per_caller="upload_rate") is not None
    limiter = made_limiter(
        "uploads", {"caller": "upload_rate", "total": Rate.parse("1/s")}, Settings(), cost=1, replicas=1
    )
    assert [rate.count for rate in limiter.policies.values()] == [10, 1]
    for field, cost in (("weight", 1), ("nothing", 1), ("upload_rate", 11)):
        with pytest.raises(DeclarationError, match="'uploads'"):
            made_limiter("uploads", {"caller": field}, Settings(), cost=cost, replicas=1)
