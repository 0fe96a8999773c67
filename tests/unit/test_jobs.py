"""Jobs as they are declared: mistakes are found at import."""

import re
from typing import Any

import pytest

from hybridkit.errors import DeclarationError
from hybridkit.jobs import Jobs
from hybridkit.retry import Retry


async def work() -> None: ...


def test_a_declared_job_keeps_its_function_and_its_options() -> None:
    """The decorator returns the function, and the name is its own by default."""
    jobs = Jobs()
    retry = Retry.immediate()
    assert (
        jobs.every(minutes=1, hours=1, missed="all", jitter_seconds=5, timeout_seconds=9, retry=retry)(work)
        is work
    )
    assert jobs.cron("0 3 * * *", time_zone="Europe/Berlin", name="nightly")(work) is work
    first, second = jobs
    assert (first.name, str(first.schedule), first.missed) == ("work", "every 1:01:00", "all")
    assert (first.jitter_seconds, first.timeout_seconds, first.retry) == (5, 9, retry)
    assert (second.name, str(second.schedule)) == ("nightly", "0 3 * * * (Europe/Berlin)")
    assert (second.missed, second.retry.attempts) == ("once", 3)
    assert len(jobs) == 2
    assert jobs["nightly"] is second
    assert repr(jobs) == "Jobs(['work', 'nightly'])"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"name": "My job"}, "snake_case"),
        ({"name": "a" * 101}, "at most 100"),
        ({"missed": "never"}, "'skip', 'once' or 'all'"),
        ({"jitter_seconds": -1}, "jitter_seconds"),
        ({"jitter_seconds": 86_401}, "jitter_seconds"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": 8 * 86_400}, "timeout_seconds"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds"),
    ],
)
def test_options_out_of_their_range_are_refused(options: dict[str, Any], reason: str) -> None:
    """The error names the job and the option."""
    with pytest.raises(DeclarationError, match=reason):
        Jobs().every(minutes=1, **options)(work)


def test_a_name_is_given_once() -> None:
    """Two jobs of one name would share their slots."""
    jobs = Jobs()
    jobs.every(minutes=1)(work)
    with pytest.raises(DeclarationError, match="two jobs named 'work'"):
        jobs.every(minutes=2)(work)


def test_a_function_that_blocks_is_refused() -> None:
    """A plain function would stop the event loop; the error says what to call instead."""

    def blocking() -> None: ...

    with pytest.raises(DeclarationError, match=re.escape("run_blocking(...)")):
        Jobs().every(minutes=1)(blocking)  # type: ignore[type-var] # pyright: ignore[reportArgumentType]


def test_a_parameter_without_an_annotation_is_refused() -> None:
    """Values are injected by type."""

    async def untyped(mailer) -> None: ...  # type: ignore[no-untyped-def] # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]

    with pytest.raises(DeclarationError, match="no annotation"):
        Jobs().every(minutes=1)(untyped)
