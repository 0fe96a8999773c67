"""Append to one stream with its key and its events in the outbox as one statement, committed by itself.

```
free      the key's lock, if nobody has it
known     the key's row, if it was used before
last      the version of the stream
ready     the stream's lock, if the key is free and not known, and the version is the expected one
given     the events
appended  the events, numbered behind the version
stored    the snapshot
kept      the key's row
locks     the lock of the ordering key
sent      the events in the outbox; their rows get their numbers after the lock
```

The transaction gets its number with the first row, after its snapshot was taken. So it is higher than the number of the
transaction that the snapshot has seen append the last event, and the log has the events of a stream in their order.

The snapshot may be older than the locks. Then `last` misses what another append has committed, and the first event
violates the primary key: nothing is done, and the transaction of many statements, which is tried next, finds out why.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hybridkit.codec import encode_json
from hybridkit.dataservice._outbox._protocol import envelope_of
from hybridkit.dataservice._postgres._driver._errors import commit_error
from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._keys import Recorded, key_lock
from hybridkit.dataservice._postgres._outbox import ordering_locks
from hybridkit.dataservice._postgres._refusals import UnnamedError
from hybridkit.dataservice._postgres._streams._locks import stream_lock
from hybridkit.dataservice._postgres._streams._table import StreamTable
from hybridkit.dataservice._store._kept_outcomes import encode_outcome
from hybridkit.dataservice._store._keys import retention_of
from hybridkit.dataservice._store._operations import Outcome, Write
from hybridkit.dataservice._store._streams import StreamAppend
from hybridkit.errors import ConflictError, RejectedError

MAX_LISTED: Final = 4
"""More events than that are arrays, one statement for any number: planning it anew costs little for each of many."""

_COLUMNS: Final = {
    "event_id": "uuid",
    "event_type": "text",
    "event_version": "integer",
    "data": "text",
    "occurred_at": "timestamptz",
    "causation_id": "uuid",
    "body": "bytea",
}
_FIXED: Final = 15
"""The number of arguments before those of the events."""


class AppendStatement:
    """The statements for writes that are one append to a stream of a known version.

    Args:
        pool: the connections for requests.
        streams: the tables by the stream's name.
    """

    def __init__(self, pool: Pool, streams: Mapping[str, StreamTable]) -> None:
        self._pool = pool
        self._streams = streams
        self._statements: dict[tuple[str, int, bool], str] = {}

    def __repr__(self) -> str:
        return f"AppendStatement({len(self._statements)} statements)"

    @staticmethod
    def takes(write: Write) -> bool:
        """Return whether the write is one append with an expected version, and nothing else."""
        if len(write.appends) != 1 or write.operations or write.emit or write.call is not None:
            return False
        if write.cancel or write.dry_run or write.isolation != "read_committed":
            return False
        return write.appends[0].expected is not None

    async def write(self, write: Write) -> Outcome | Recorded | None:
        """Do the write, or return what was recorded under its key; None if another call has the key now.

        Raises:
            StaleVersionError: the stream has another version.
            UnnamedError: the database refuses something, or another transaction won; nothing is done.
            OutcomeUnknownError: the connection broke; a call with the same key finds out.
        """
        [append] = write.appends
        expected = append.expected or 0
        outcome = Outcome((), versions=(expected + len(append.events),))
        emissions = append.emissions(expected)
        snapshot = append.snapshot
        arguments: list[Any] = [
            key_lock(write),
            write.caller,
            write.key,
            write.fingerprint,
            retention_of(write.key),
            encode_outcome(write, outcome),
            append.id,
            expected,
            stream_lock(append),
            append.request_id,
            append.user_id,
            append.stream.name,
            *((None, None, None) if snapshot is None else snapshot_values(append)),
        ]
        rows = (
            [
                (*row, envelope_of(emission, service=write.caller))
                for row, emission in zip(event_rows(append), emissions, strict=True)
            ]
            if emissions
            else event_rows(append)
        )
        listed = len(rows) if len(rows) <= MAX_LISTED else 0
        arguments += itertools.chain.from_iterable(rows) if listed else map(list, zip(*rows, strict=True))
        if emissions:
            arguments += [
                *ordering_locks(emissions),
                append.trace.get("traceparent"),
                append.trace.get("tracestate"),
            ]
        sql = self._statement(self._streams[append.stream.name], listed, publishes=bool(emissions))
        [found] = await self._pool.fetch(sql, *arguments, translate=_translate)
        if found["is_done"]:
            return outcome
        if found["results"] is not None:
            return found["fingerprint"], found["results"]
        if found["is_free"]:
            raise append.stale(found["current"])
        return None

    def _statement(self, table: StreamTable, listed: int, *, publishes: bool) -> str:
        name = (table.stream.name, listed, publishes)
        if (sql := self._statements.get(name)) is None:
            sql = self._statements[name] = _compile(table, listed, publishes=publishes)
        return sql


def event_rows(append: StreamAppend) -> list[tuple[Any, ...]]:
    """Return the values of the events' columns, the data as JSON in text."""
    return [
        (
            event.event_id,
            event.event_type,
            event.version,
            encode_json(event.data).decode(),
            event.timestamp,
            event.causation_id,
        )
        for event in append.events
    ]


def snapshot_values(append: StreamAppend) -> Sequence[Any]:
    """Return the values of a snapshot's columns."""
    snapshot = append.snapshot
    assert snapshot is not None  # noqa: S101 - callers have looked # nosec B101
    return snapshot.state_version, snapshot.state, snapshot.digest


def _translate(error: Exception) -> Exception | None:
    found = commit_error(error)
    return UnnamedError() if isinstance(found, RejectedError | ConflictError) else found


def _compile(table: StreamTable, listed: int, *, publishes: bool) -> str:
    columns = (
        dict(_COLUMNS) if publishes else {name: kind for name, kind in _COLUMNS.items() if name != "body"}
    )
    given, count = _given(columns, listed)
    sending = _sending(_FIXED + count) if publishes else ""
    # Nothing in it comes from a request: names are those of the declaration.
    return f"""
        WITH free AS MATERIALIZED (SELECT pg_try_advisory_xact_lock($1) AS is_free),
        known AS MATERIALIZED (SELECT fingerprint, results FROM hk_keys WHERE caller = $2 AND key = $3),
        last AS MATERIALIZED (SELECT coalesce(
            (SELECT version FROM {table.source} WHERE stream_id = $7 ORDER BY version DESC LIMIT 1), 0) AS version),
        ready AS MATERIALIZED (
            SELECT pg_advisory_xact_lock($9) FROM free, last
            WHERE is_free AND version = CAST($8 AS bigint) AND NOT EXISTS (SELECT FROM known)),
        given AS MATERIALIZED ({given}),
        appended AS (
            INSERT INTO {table.source} (stream_id, version, event_id, event_type, event_version, data, occurred_at,
                causation_id, caller, request_id, user_id)
            SELECT $7, CAST($8 AS bigint) + place, event_id, event_type, event_version, CAST(data AS jsonb),
                occurred_at, causation_id, $2, $10, $11 FROM ready, given ORDER BY place),
        stored AS (
            INSERT INTO hk_snapshots (stream, id, version, state_version, state, digest)
            SELECT $12, $7, (SELECT CAST($8 AS bigint) + max(place) FROM given), CAST($13 AS bigint), $14, $15
            FROM ready WHERE CAST($13 AS bigint) IS NOT NULL
            ON CONFLICT (stream, id) DO UPDATE SET version = excluded.version, state_version = excluded.state_version,
                state = excluded.state, digest = excluded.digest),
        kept AS (
            INSERT INTO hk_keys (caller, key, fingerprint, results, expires_at)
            SELECT $2, $3, $4, $6, now() + CAST($5 AS interval) FROM ready)
        {sending}
        SELECT fingerprint, results, is_free, last.version AS current, EXISTS (SELECT FROM ready) AS is_done
        FROM free CROSS JOIN last LEFT JOIN known ON true
    """  # noqa: S608 # nosec B608


def _given(columns: Mapping[str, str], listed: int) -> tuple[str, int]:
    """Write the relation of the events, as a list of values or of arrays, and count its arguments."""
    parameters = itertools.count(_FIXED + 1)
    if not listed:
        arrays = ", ".join(f"CAST(${next(parameters)} AS {kind}[])" for kind in columns.values())
        names = ", ".join(columns)
        rows = f"unnest({arrays}) WITH ORDINALITY AS event({names}, place)"
        return f"SELECT * FROM {rows}", len(columns)  # noqa: S608 - made of constants # nosec B608
    rows = ", ".join(
        f"({place}, {', '.join(f'CAST(${next(parameters)} AS {kind})' for kind in columns.values())})"
        for place in range(1, listed + 1)
    )
    return (
        f"SELECT * FROM (VALUES {rows}) AS event(place, {', '.join(columns)})",  # noqa: S608 # nosec B608
        listed * len(columns),
    )


def _sending(before: int) -> str:
    lock, traceparent, tracestate = before + 1, before + 2, before + 3
    return f""",
        locks AS MATERIALIZED (SELECT pg_advisory_xact_lock(CAST(${lock} AS bigint)) FROM ready),
        sent AS (
            INSERT INTO hk_outbox (event_id, event_type, key, request_id, user_id, body, traceparent, tracestate)
            SELECT event_id, event_type, $7, $10, $11, body, ${traceparent}, ${tracestate}
            FROM (SELECT count(*) FROM locks) AS taken, ready, given ORDER BY place
            ON CONFLICT (event_id) DO NOTHING)
    """  # noqa: S608 # nosec B608
