"""Wait for the horizon of a log, which any transaction on the same cluster holds back, in whatever database."""

from typing import Any

from hybridkit.dataservice._postgres._driver._connection import connect
from tests.helpers._waiting import until


async def until_readable(url: str, table: str) -> None:
    """Wait until all committed events of the database's only stream are below the horizon of its log.

    Args:
        url: the database.
        table: the stream's table.
    """
    connection: Any = await connect(url, timeout_seconds=60, command_seconds=60)
    try:
        await until(
            lambda: connection.fetchval(
                f"SELECT NOT EXISTS (SELECT FROM {table}"
                " WHERE epoch = coalesce((SELECT max(epoch) FROM hk_stream_epochs), 1)"
                " AND xid >= CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint))"
            ),
            seconds=120,
        )
    finally:
        await connection.close()
