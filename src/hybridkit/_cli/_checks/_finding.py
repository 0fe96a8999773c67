"""The results of checks, and the bounds within which each check runs."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from hybridkit.errors import HybridkitError

type Level = Literal["ok", "warning", "problem"]

CHECK_SECONDS: Final = 10.0
"""The longest time that one check takes."""

SKEW_WARNING_SECONDS: Final = 2.0
SKEW_PROBLEM_SECONDS: Final = 30.0
"""The clocks of two services may differ by so much before the tokens of one are refused by the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        level: how bad it is.
        check: the name of the check, such as `redis.policy`.
        detail: the fact that was found.
        advice: the change to make; empty for none.
    """

    level: Level
    check: str
    detail: str
    advice: str = ""


async def examine(check: str, work: Awaitable[Sequence[Finding]], *, advice: str) -> Sequence[Finding]:
    """Run a check within its time, and turn an error into a problem.

    Args:
        check: the name of the check.
        work: the check.
        advice: the change to make where the check fails as a whole.
    """
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await work
    except TimeoutError:
        detail = f"no answer within {CHECK_SECONDS:g} s"
    except (HybridkitError, OSError) as error:
        detail = " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001 - a driver raises its own, whose text may quote a secret
        detail = f"the check fails with {type(error).__name__}"
    return [Finding(level="problem", check=check, detail=detail, advice=advice)]


def answered(check: str, what: str, *, since: float) -> Finding:
    """Return that something answers, with the time that it took since a `time.monotonic()`."""
    milliseconds = (time.monotonic() - since) * 1000
    return Finding(level="ok", check=check, detail=f"{what} answers in {milliseconds:.1f} ms")


def clock(check: str, theirs: float, *, resolution_seconds: float = 0.0) -> Finding:
    """Compare another machine's clock with this one's.

    Args:
        check: the name of the check.
        theirs: the time there, in seconds since the epoch.
        resolution_seconds: the step of that clock.
    """
    difference = theirs - datetime.now(UTC).timestamp()
    skew = max(abs(difference) - resolution_seconds, 0.0)
    detail = f"its clock is {skew:.1f} s {'ahead' if difference > 0 else 'behind'}"
    advice = "let both machines follow one time server (NTP): tokens and leases go by the clock"
    if skew >= SKEW_PROBLEM_SECONDS:
        return Finding(level="problem", check=check, detail=detail, advice=advice)
    if skew >= SKEW_WARNING_SECONDS:
        return Finding(level="warning", check=check, detail=detail, advice=advice)
    return Finding(
        level="ok", check=check, detail=f"its clock differs by less than {SKEW_WARNING_SECONDS:g} s"
    )
