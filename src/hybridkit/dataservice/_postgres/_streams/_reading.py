"""Read streams from PostgreSQL: one stream, and the log of all streams of a kind, as JSON that PostgreSQL prints.

Transactions commit in another order than that of their numbers, and of the numbers of their rows. So a page of the log
ends at the *horizon*, the lowest number of a transaction that is still running: everything below it is over, and what
commits later has a number above it. A reader that goes on behind its last row therefore misses nothing, and no reader
waits for a gap or guesses how long one may last. Rows in the order of `position` alone would not do: a row may commit
behind a reader that has passed its place.

https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT
"""

from collections.abc import Mapping, Sequence
from typing import Final

from hybridkit.codec import encode_json
from hybridkit.contract import MAX_PAGE_BYTES, MAX_STREAM_PAGE
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._streams._table import StreamTable
from hybridkit.dataservice._store._kept_outcomes import kept_versions
from hybridkit.dataservice._store._streams import LogPosition, StreamRead
from hybridkit.observability import metrics
from hybridkit.streams._stream import AnyStream

_LAST: Final = 999_999_999_999_999_999
"""A position behind every row of a transaction."""


def _time(column: str) -> str:
    return f"""to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""


_EVENT: Final = f"""
    e.stream_id, e.version, e.event_id, e.event_type, e.event_version, {_time("e.occurred_at")} AS timestamp,
    {_time("e.recorded_at")} AS recorded_at, e.caller, e.request_id, e.user_id, e.causation_id,
    {_time("e.redacted_at")} AS redacted_at, e.data
"""


class PostgresStreams:
    """The streams of one PostgreSQL database.

    Args:
        pool: the connections for requests.
        tables: the tables by the stream's name.
    """

    def __init__(self, pool: Pool, tables: Mapping[str, StreamTable]) -> None:
        self._pool = pool
        self._stream_sql = {name: _stream_sql(table) for name, table in tables.items()}
        self._log_sql = {
            (name, by_type): _log_sql(table, by_type=by_type)
            for name, table in tables.items()
            for by_type in (False, True)
        }

    def __repr__(self) -> str:
        return f"PostgresStreams({sorted(self._stream_sql)})"

    async def read(self, stream: AnyStream, stream_id: str, wanted: StreamRead) -> bytes:
        """Return a page of a stream, with a snapshot in place of the events before it."""
        [row] = await self._pool.fetch(
            self._stream_sql[stream.name],
            stream_id,
            wanted.after,
            wanted.up_to,
            stream.name,
            wanted.state_version,
            wanted.caller,
            wanted.key,
        )
        versions = () if row["results"] is None else kept_versions(row["results"])
        return b'{"version":%d,"done":%b,"snapshot":%b,"events":[%b]}' % (
            row["version"],
            b"%d" % versions[0] if versions else b"null",
            (row["snapshot"] or "null").encode(),
            (row["events"] or "").encode(),
        )

    async def log(self, stream: AnyStream, *, after: LogPosition, types: Sequence[str], limit: int) -> bytes:
        """Return a page of the log below the horizon, and measure how old the first event above it is."""
        given = [list(types)] if types else []
        [row] = await self._pool.fetch(
            self._log_sql[stream.name, bool(types)], stream.name, *after, limit, *given
        )
        metrics.stream_horizon.labels(stream.name).set(row["waiting_seconds"] or 0.0)
        last = after if row["position"] is None else LogPosition(*map(int, row["position"].split("-")))
        if types and not row["has_more"]:  # all below the horizon was looked at, so nobody has to do it again
            last = max(last, LogPosition(row["epoch"], row["xmin"] - 1, _LAST))
        return b'{"events":[%b],"position":%b,"has_more":%b}' % (
            (row["events"] or "").encode(),
            encode_json(str(last) if last.xid else None),
            b"true" if row["has_more"] else b"false",
        )


def _stream_sql(table: StreamTable) -> str:
    source = table.source
    return f"""
        WITH top AS MATERIALIZED (SELECT coalesce(
            (SELECT version FROM {source} WHERE stream_id = $1 ORDER BY version DESC LIMIT 1), 0) AS version),
        snapshot AS MATERIALIZED (
            SELECT s.version, s.state_version, s.state, s.digest, e.event_id
            FROM hk_snapshots s LEFT JOIN {source} e ON e.stream_id = s.id AND e.version = s.version
            WHERE s.stream = $4 AND s.id = $1 AND s.state_version = CAST($5 AS bigint)
                AND s.version > CAST($2 AS bigint) AND s.version <= (SELECT version FROM top)
                AND (CAST($3 AS bigint) IS NULL OR s.version <= CAST($3 AS bigint))),
        page AS MATERIALIZED (
            SELECT e.version, CAST(row_to_json(e.*) AS text) AS line FROM (
                SELECT {_EVENT} FROM {source} e WHERE e.stream_id = $1
                    AND e.version > coalesce((SELECT version FROM snapshot), CAST($2 AS bigint))
                    AND e.version <= coalesce(CAST($3 AS bigint), (SELECT version FROM top))
                ORDER BY e.version LIMIT {MAX_STREAM_PAGE}) e),
        counted AS (SELECT version, line, sum(octet_length(line) + 1) OVER (ORDER BY version) AS bytes,
            row_number() OVER (ORDER BY version) AS place FROM page)
        SELECT (SELECT version FROM top) AS version,
            (SELECT CAST(row_to_json(s.*) AS text) FROM snapshot s) AS snapshot,
            (SELECT results FROM hk_keys WHERE caller = $6 AND key = $7) AS results,
            (SELECT string_agg(line, ',' ORDER BY version) FROM counted
                WHERE bytes <= {MAX_PAGE_BYTES} OR place = 1) AS events
    """  # noqa: S608 - names of the declaration, and constants # nosec B608


def _log_sql(table: StreamTable, *, by_type: bool) -> str:
    source = table.source
    wanted = "AND e.event_type = ANY (CAST($6 AS text[]))" if by_type else ""
    # Scalar subqueries, not a join: so both ends are conditions of the index, whose order the page keeps.
    above = "((SELECT epoch FROM horizon), (SELECT xmin FROM horizon))"
    return f"""
        WITH horizon AS MATERIALIZED (
            SELECT coalesce((SELECT epoch FROM hk_stream_epochs WHERE stream = $1), 1) AS epoch,
                CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint) AS xmin),
        page AS MATERIALIZED (
            SELECT e.epoch, e.xid, e.position, row_number() OVER (ORDER BY e.epoch, e.xid, e.position) AS place,
                (SELECT CAST(row_to_json(shown.*) AS text) FROM (
                    SELECT {_EVENT}, e.epoch || '-' || e.xid || '-' || e.position AS position) AS shown) AS line
            FROM (
                SELECT * FROM {source} e
                WHERE (e.epoch, e.xid, e.position) > (CAST($2 AS bigint), CAST($3 AS bigint), CAST($4 AS bigint))
                    AND (e.epoch, e.xid) < {above} {wanted}
                ORDER BY e.epoch, e.xid, e.position LIMIT CAST($5 AS bigint) + 1) e),
        counted AS MATERIALIZED (
            SELECT *, sum(octet_length(line) + 1) OVER (ORDER BY place) AS bytes FROM page),
        fitting AS MATERIALIZED (
            SELECT * FROM counted WHERE place <= $5 AND (bytes <= {MAX_PAGE_BYTES} OR place = 1))
        SELECT epoch, xmin,
            (SELECT string_agg(line, ',' ORDER BY place) FROM fitting) AS events,
            (SELECT epoch || '-' || xid || '-' || position FROM fitting ORDER BY place DESC LIMIT 1) AS position,
            (SELECT count(*) FROM page) > (SELECT count(*) FROM fitting) AS has_more,
            (SELECT CAST(extract(epoch FROM clock_timestamp() - e.recorded_at) AS double precision) FROM {source} e
                WHERE (e.epoch, e.xid) >= {above} ORDER BY e.epoch, e.xid, e.position LIMIT 1) AS waiting_seconds
        FROM horizon
    """  # noqa: S608 - names of the declaration, and constants # nosec B608
