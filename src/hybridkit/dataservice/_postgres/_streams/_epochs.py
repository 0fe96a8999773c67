"""Epochs of streams: a new one begins where a dump of the database was restored into another cluster.

Such a cluster counts its transactions anew. Rows that it appends would have lower numbers than those that were
restored, and stand before them in the log, where readers have passed already. A new epoch stands behind all earlier
ones. That it is needed shows by itself: a row has the number of a transaction that the cluster has not begun yet. Where
the cluster is already past the numbers of all restored rows, the log is in order as it is.
"""

from collections.abc import Iterable
from typing import Final

from hybridkit.dataservice._postgres._driver._pool import Pool, Session
from hybridkit.dataservice._postgres._streams._table import StreamTable

_EPOCH: Final = "coalesce((SELECT epoch FROM hk_stream_epochs WHERE stream = $1), 1)"
_RAISE: Final = """
    INSERT INTO hk_stream_epochs (stream, epoch) VALUES ($1, 2)
    ON CONFLICT (stream) DO UPDATE SET epoch = hk_stream_epochs.epoch + 1 RETURNING epoch
"""


async def restored_streams(session: Session, tables: Iterable[StreamTable]) -> list[str]:
    """Return the names of the streams whose log needs a new epoch, of those whose tables are there."""
    return [table.stream.name for table in tables if await _is_restored(session, table)]


async def rebase(pool: Pool, tables: Iterable[StreamTable]) -> dict[str, int]:
    """Begin a new epoch of each stream that needs one, and return the new epochs by the stream's name.

    Args:
        pool: the connections.
        tables: the tables of streams; one that isn't there yet is left out.
    """
    raised: dict[str, int] = {}
    listed = list(tables)
    async with pool.session() as session:
        wanted = await restored_streams(session, listed)
    for table in listed:
        if table.stream.name not in wanted:
            continue
        async with pool.session() as session:
            # Appends wait, and see the new default; those that came before have committed.
            await session.fetch(f"LOCK TABLE {table.source} IN ACCESS EXCLUSIVE MODE")
            if not await _is_restored(session, table):  # another replica was faster
                continue
            [[epoch]] = await session.fetch(_RAISE, table.stream.name)
            await session.fetch(f"ALTER TABLE {table.source} ALTER COLUMN epoch SET DEFAULT {int(epoch)}")
            raised[table.stream.name] = int(epoch)
    return raised


async def _is_restored(session: Session, table: StreamTable) -> bool:
    [[exists]] = await session.fetch("SELECT to_regclass($1) IS NOT NULL", table.source)
    if not exists:  # the service's own revisions have not made it yet
        return False
    rows = await session.fetch(
        f"""
        SELECT xid >= CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) FROM {table.source}
        WHERE epoch = {_EPOCH} ORDER BY epoch DESC, xid DESC, position DESC LIMIT 1
        """,  # noqa: S608 - names of the declaration, and constants # nosec B608
        table.stream.name,
    )
    return bool(rows and rows[0][0])
