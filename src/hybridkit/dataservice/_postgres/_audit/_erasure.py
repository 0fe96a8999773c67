"""Erase personal values from the audit trail; the entries stay."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from hybridkit.dataservice._postgres._driver._pool import Pool
from hybridkit.dataservice._postgres._table import ResourceTable

_BLANK: Final = """
UPDATE hk_audit SET version = version + 1, updated_at = date_trunc('milliseconds', now()),
    changes = changes || (
        SELECT jsonb_object_agg(key, '["***", "***"]'::jsonb) FROM jsonb_each(changes)
        WHERE key = ANY ($3::text[]) AND value <> '["***", "***"]')
WHERE resource = $1 AND record_id = ANY ($2::text[])
    AND EXISTS (SELECT FROM jsonb_each(changes) WHERE key = ANY ($3::text[]) AND value <> '["***", "***"]')
RETURNING id
"""

_DELETED: Final = """
SELECT DISTINCT record_id FROM hk_audit
WHERE resource = $1 AND operation = 'delete' AND changes -> $2 ->> 0 = $3
"""


async def blank(
    pool: Pool, table: ResourceTable, fields: Collection[str], record_ids: Collection[Any]
) -> int:
    """Blank the values of fields in the entries of records, and return the number of entries changed."""
    columns = [table[name].name for name in fields]
    ids = [str(record_id) for record_id in record_ids]
    return len(await pool.fetch(_BLANK, table.resource.name, ids, columns))


async def deleted_ids(pool: Pool, table: ResourceTable, field: str, value: Any) -> Sequence[str]:
    """Return the ids of removed records that had a value in a field, compared as text, when they were removed."""
    rows = await pool.fetch(_DELETED, table.resource.name, table[field].name, str(value))
    return [row["record_id"] for row in rows]
