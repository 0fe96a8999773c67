"""A Redis whose clock a test sets: the scripts of jobs read the real clock, and add what a key says."""

from datetime import datetime
from typing import Any, cast

import pytest

from hybridkit.coordination import Redis
from hybridkit.coordination._redis._commands import Script
from hybridkit.jobs import _records

SHIFT_KEY = "test:clock_shift_ms"
_SHIFT = f"""
local function shifted()
    local time = redis.call('TIME')
    local shift = redis.call('GET', '{SHIFT_KEY}') or '0'
    local ms = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(shift)
    return {{math.floor(ms / 1000), (ms % 1000) * 1000}}
end
"""
NAMES = ("LOOK", "BEGIN", "RENEW", "FINISH", "REQUEST")


def with_shift(script: Script) -> Script:
    """Return the script with another clock."""
    assert "redis.call('TIME')" in script.text
    return Script(script.name, _SHIFT + script.text.replace("redis.call('TIME')", "shifted()"))


def shift_clock_of_jobs(patch: pytest.MonkeyPatch | None = None) -> None:
    """Let the scripts of jobs read the clock that `set_clock` sets; for good, where there is no patch."""
    for name in NAMES:
        script = with_shift(getattr(_records, name))
        if patch is None:
            setattr(_records, name, script)
        else:
            patch.setattr(_records, name, script)


async def set_clock(redis: Redis, *, shift_seconds: float) -> None:
    """Let the clock be so far ahead of the real one, or behind it."""
    await cast("Any", redis).set(SHIFT_KEY, round(shift_seconds * 1000))


async def set_time(redis: Redis, moment: datetime) -> None:
    """Let the clock show a moment now, or a little more, and go on from there."""
    seconds, microseconds = await cast("Any", redis).time()
    await set_clock(redis, shift_seconds=moment.timestamp() - seconds - microseconds / 1e6 + 0.002)
