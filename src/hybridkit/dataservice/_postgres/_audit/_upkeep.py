"""Keep the audit trail in months: make them ahead, and drop those that are past their retention.

A month is made beside the trail and then attached, which lets changes of records go on meanwhile. What has come in
while no month was ready is in the rest, and moves into its month with it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._keys import lock_number

MONTHS_AHEAD: Final = 2
LOCK_TIMEOUT: Final = "1s"
"""How long a month may wait for the trail's lock; changes of records wait behind it."""
_PREFIX: Final = "hk_audit_"

_MONTHS: Final = (
    "SELECT child.relname AS name FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid"
    " WHERE inhparent = to_regclass('hk_audit')"
)


async def keep_months(pool: Pool, *, keep_days: int, moment: datetime, ahead: bool) -> int:
    """Drop the months before the retention and make those from this one on, and return the number of dropped ones.

    Args:
        pool: the connections.
        keep_days: for how many days entries are kept; a month goes when its last day is older.
        moment: the present.
        ahead: whether months are made; False for a service without audited resources, which may have had some.
    """
    there = {row["name"] for row in await pool.fetch(_MONTHS)}
    oldest = _name(_first_of_month(moment - timedelta(days=keep_days)))
    old = sorted(name for name in there if name.removeprefix(_PREFIX).isdecimal() and name < oldest)
    missing = [month for month in _months(moment) if ahead and _name(month) not in there]
    for month in missing:
        await _run_alone(pool, _making(month), unless=f"to_regclass('{_name(month)}') IS NOT NULL")
    for name in old:
        await _run_alone(pool, [f"DROP TABLE {name}"], unless=f"to_regclass('{name}') IS NULL")
    return len(old)


async def _run_alone(pool: Pool, statements: Sequence[str], *, unless: str) -> None:
    """Run statements in one transaction, unless another replica is at it or a condition shows that it was."""
    async with pool.session() as session:
        await session.fetch(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        [lock] = await session.fetch("SELECT pg_try_advisory_xact_lock($1) AS is_mine", lock_number("audit"))
        [done] = await session.fetch(f"SELECT {unless} AS is_done")  # nosec B608 - made of a month
        if lock["is_mine"] and not done["is_done"]:
            for statement in statements:
                await session.fetch(statement)


def _making(month: datetime) -> Sequence[str]:
    name, first = _name(month), month.isoformat()
    after = _first_of_month(month + timedelta(days=31)).isoformat()
    mine = f"created_at >= '{first}' AND created_at < '{after}'"
    moved = f"DELETE FROM hk_audit_rest WHERE {mine} RETURNING *"  # noqa: S608 # nosec B608 - made of a month
    return (
        f"CREATE TABLE {name} (LIKE hk_audit INCLUDING ALL)",
        f"WITH moved AS ({moved}) INSERT INTO {name} SELECT * FROM moved",  # noqa: S608 # nosec B608
        f"ALTER TABLE hk_audit ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{after}')",
    )


def _months(moment: datetime) -> list[datetime]:
    month = _first_of_month(moment)
    found = [month]
    for _ in range(MONTHS_AHEAD):
        month = _first_of_month(month + timedelta(days=31))
        found.append(month)
    return found


def _first_of_month(moment: datetime) -> datetime:
    return datetime(moment.year, moment.month, 1, tzinfo=UTC)


def _name(month: datetime) -> str:
    return f"{_PREFIX}{month:%Y%m}"
