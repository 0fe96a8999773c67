"""Erase the personal fields of events, and the snapshots that were made of them; the events stay in their places."""

from typing import Final

import orjson

from hybridkit.dataservice._postgres._driver._pool import Session
from hybridkit.dataservice._postgres._streams._table import StreamTable
from hybridkit.dataservice._store._erasure import BATCH_ROWS, Erased, StreamStep

READ_ROWS: Final = 5 * BATCH_ROWS
"""The rows of a batch, which are read much faster than they are changed."""

_PAGE = """
SELECT stream_id, version FROM {source}
WHERE (stream_id, version) > ($1::text, $2::bigint) AND ($3::text IS NULL OR stream_id = $3::text)
ORDER BY stream_id, version OFFSET $4::bigint LIMIT 1
"""
_WHERE = """
WHERE (stream_id, version) > ($1::text, $2::bigint)
    AND ($3::text IS NULL OR (stream_id, version) <= ($3::text, $4::bigint))
    AND ($5::text IS NULL OR stream_id = $5::text)
    AND event_type = $6::text AND data->>($7::text) = $8::text
"""
_LEFT = """
    AND EXISTS (
        SELECT FROM jsonb_each($9::text::jsonb) blank WHERE data ? blank.key AND data->blank.key <> blank.value)
"""
_ERASE = """
UPDATE {source} SET redacted_at = COALESCE(redacted_at, date_trunc('milliseconds', now())), data = data || (
    SELECT jsonb_object_agg(blank.key, blank.value) FROM jsonb_each($9::text::jsonb) blank WHERE data ? blank.key)
{where} {left} RETURNING 1
"""
_COUNT = "SELECT 1 FROM {source} {where} {left}"
_ABOUT = "SELECT DISTINCT stream_id FROM {source} {where}"
_DROP = "DELETE FROM hk_snapshots WHERE stream = $1::text AND id = ANY ($2::text[]) RETURNING 1"
_COUNT_SNAPSHOTS = "SELECT 1 FROM hk_snapshots WHERE stream = $1::text AND id = ANY ($2::text[])"


async def erase_events(
    session: Session, table: StreamTable, step: StreamStep, person: str, *, after: str, dry_run: bool
) -> Erased:
    """Erase the events among the next rows of the primary key; of one stream only where the id is that of the stream.

    No index finds events by a field, so all of a table is read, a bounded number of rows in each batch.
    """
    stream_id, version = _read_place(after)
    only = person if step.is_by_stream else None
    found = await session.fetch(_sql(_PAGE, table), stream_id, version, only, READ_ROWS - 1)
    end = (found[0]["stream_id"], found[0]["version"]) if found else (None, None)
    place = (stream_id, version, *end, only)
    erased, about = 0, set[str]()
    for event_type, groups in step.marks.items():
        for marks in groups:
            wanted = (*place, event_type, marks.key, person)
            about |= {row["stream_id"] for row in await session.fetch(_sql(_ABOUT, table), *wanted)}
            blanks = orjson.dumps(marks.blanks).decode()
            statement = _sql(_COUNT if dry_run else _ERASE, table)
            erased += len(await session.fetch(statement, *wanted, blanks))
    snapshots = await session.fetch(_COUNT_SNAPSHOTS if dry_run else _DROP, step.stream.name, sorted(about))
    rows = {step.stream.name: erased, f"snapshots of {step.stream.name}": len(snapshots)}
    return Erased(rows, None if not found else f"{end[1]} {end[0]}")


def _sql(template: str, table: StreamTable) -> str:
    return template.replace("{source}", table.source).replace("{where}", _WHERE).replace("{left}", _LEFT)


def _read_place(after: str) -> tuple[str, int]:
    version, _, stream_id = after.partition(" ")
    return (stream_id, int(version)) if after else ("", 0)
