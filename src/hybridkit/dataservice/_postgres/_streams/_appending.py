"""Append to streams inside a transaction of many statements.

Locks first, then the versions of all streams, then the rows: the transaction gets its number with its first row, after
every version that it builds on was committed. The log, which is in the order of these numbers, then has the events of
each stream in their order. A write that came before the locks would break that.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from hybridkit.contract import Emission
from hybridkit.dataservice._postgres._driver._errors import constraint_of, database_error
from hybridkit.dataservice._postgres._driver._pool import Session
from hybridkit.dataservice._postgres._streams._append_statement import event_rows, snapshot_values
from hybridkit.dataservice._postgres._streams._locks import stream_lock
from hybridkit.dataservice._postgres._streams._table import StreamTable
from hybridkit.dataservice._store._streams import StreamAppend

_LOCK: Final = "SELECT pg_advisory_xact_lock(number) FROM unnest(CAST($1 AS bigint[])) AS number"
_STORE: Final = """
    INSERT INTO hk_snapshots (stream, id, version, state_version, state, digest) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (stream, id) DO UPDATE SET version = excluded.version, state_version = excluded.state_version,
        state = excluded.state, digest = excluded.digest
"""


class Appended(NamedTuple):
    """What appends have done.

    Attributes:
        versions: of the last event of each append.
        emissions: what to publish of them.
    """

    versions: tuple[int, ...] = ()
    emissions: Sequence[Emission] = ()


async def append_all(
    session: Session, streams: Mapping[str, StreamTable], appends: Sequence[StreamAppend], *, caller: str
) -> Appended:
    """Carry out appends as the first writes of the session's transaction.

    Raises:
        StaleVersionError: a stream has another version than the expected one.
        ConflictError: another append to one of the streams came first.
        InvalidRequestError: the database can't hold an event.
    """
    if not appends:
        return Appended()
    await session.fetch(_LOCK, sorted({stream_lock(append) for append in appends}))
    before = [await _version(session, streams[append.stream.name], append) for append in appends]
    emissions: list[Emission] = []
    for append, version in zip(appends, before, strict=True):
        await _insert(session, streams[append.stream.name], append, version, caller=caller)
        emissions += append.emissions(version)
    versions = tuple(version + len(append.events) for append, version in zip(appends, before, strict=True))
    return Appended(versions, emissions)


async def _version(session: Session, table: StreamTable, append: StreamAppend) -> int:
    rows = await session.fetch(
        f"SELECT version FROM {table.source} WHERE stream_id = $1 ORDER BY version DESC LIMIT 1",  # noqa: S608 # nosec B608
        append.id,
    )
    current: int = rows[0]["version"] if rows else 0
    if append.expected not in (None, current):
        raise append.stale(current)
    return current


async def _insert(
    session: Session, table: StreamTable, append: StreamAppend, version: int, *, caller: str
) -> None:
    def translate(error: Exception) -> Exception | None:
        # A snapshot older than the locks, as of a stricter isolation level: the next try sees what came first.
        return append.overtaken() if constraint_of(error) == table.primary_key else database_error(error)

    await session.fetch(
        f"""
        INSERT INTO {table.source} (stream_id, version, event_id, event_type, event_version, data, occurred_at,
            causation_id, caller, request_id, user_id)
        SELECT $1, CAST($2 AS bigint) + place, event_id, event_type, event_version, CAST(data AS jsonb), occurred_at,
            causation_id, $9, $10, $11
        FROM unnest(CAST($3 AS uuid[]), CAST($4 AS text[]), CAST($5 AS integer[]), CAST($6 AS text[]),
            CAST($7 AS timestamptz[]), CAST($8 AS uuid[]))
            WITH ORDINALITY AS event(event_id, event_type, event_version, data, occurred_at, causation_id, place)
        ORDER BY place
        """,  # noqa: S608 # nosec B608
        append.id,
        version,
        *map(list, zip(*event_rows(append), strict=True)),
        caller,
        append.request_id,
        append.user_id,
        translate=translate,
    )
    if append.snapshot is not None:
        await session.fetch(
            _STORE, append.stream.name, append.id, version + len(append.events), *snapshot_values(append)
        )
