"""Codecs for timestamps, dates, times and intervals, so that the driver reads every value that SQL can store.

PostgreSQL has values that Python lacks: the infinities, years before 1 and after 9999, `24:00`. The driver's own codecs
fail on them, and with them the whole query; here each becomes the nearest value that Python has. All other values are
kept as they are. The tuples are those of `set_type_codec`:
https://magicstack.github.io/asyncpg/current/api/index.html#asyncpg.connection.Connection.set_type_codec
"""

from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any, Final

type Parts = tuple[int, ...]

_EPOCH: Final = datetime(2000, 1, 1)  # noqa: DTZ001 - PostgreSQL's epoch, in any time zone
_MIDNIGHT: Final = 24 * 60 * 60 * 1_000_000
_MICROSECOND: Final = timedelta(microseconds=1)
_DAYS_OF_A_MONTH: Final = 30
"""PostgreSQL takes a month for 30 days when it compares intervals."""


async def set_codecs(connection: Any) -> None:
    """Set the codecs of a connection; this asks the server nothing."""
    for name, encoder, decoder in (
        ("timestamptz", _from_moment, _to_moment),
        ("timestamp", _from_local, _to_local),
        ("date", _from_day, _to_day),
        ("time", _from_time, _to_time),
        ("timetz", _from_zoned_time, _to_zoned_time),
        ("interval", _from_duration, _to_duration),
    ):
        await connection.set_type_codec(
            name, schema="pg_catalog", format="tuple", encoder=encoder, decoder=decoder
        )


def _from_moment(value: datetime) -> Parts:
    return _from_local(value.astimezone(UTC).replace(tzinfo=None))


def _to_moment(parts: Parts) -> datetime:
    return _to_local(parts).replace(tzinfo=UTC)


def _from_local(value: datetime) -> Parts:
    return ((value - _EPOCH) // _MICROSECOND,)


def _to_local(parts: Parts) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=parts[0])
    except OverflowError:
        return datetime.min if parts[0] < 0 else datetime.max  # noqa: DTZ901 - in any time zone


def _from_day(value: date) -> Parts:
    return (value.toordinal() - _EPOCH.toordinal(),)


def _to_day(parts: Parts) -> date:
    ordinal = _EPOCH.toordinal() + parts[0]
    return date.fromordinal(min(max(ordinal, date.min.toordinal()), date.max.toordinal()))


def _from_time(value: time) -> Parts:
    since_midnight = timedelta(
        hours=value.hour, minutes=value.minute, seconds=value.second, microseconds=value.microsecond
    )
    return (since_midnight // _MICROSECOND,)


def _to_time(parts: Parts) -> time:
    return (_EPOCH + timedelta(microseconds=min(parts[0], _MIDNIGHT - 1))).time()


def _from_zoned_time(value: time) -> Parts:
    offset = value.utcoffset() or timedelta()
    return (*_from_time(value), -int(offset.total_seconds()))


def _to_zoned_time(parts: Parts) -> time:
    return _to_time(parts).replace(tzinfo=timezone(timedelta(seconds=-parts[1])))


def _from_duration(value: timedelta) -> Parts:
    return (0, value.days, value.seconds * 1_000_000 + value.microseconds)


def _to_duration(parts: Parts) -> timedelta:
    months, days, microseconds = parts
    days += months * _DAYS_OF_A_MONTH
    try:
        return timedelta(days=days, microseconds=microseconds)
    except OverflowError:
        return timedelta.min if days < 0 else timedelta.max
