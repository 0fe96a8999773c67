"""Write the statements that read records: one row comes back, with the JSON of the response.

A page is read in three layers: the rows in their order and no more of them than needed, the printing, and the count of
records and bytes, so that no more is sent than one response has room for. Rows of an ordered subquery are aggregated in
its order:
https://www.postgresql.org/docs/current/functions-aggregate.html

A field may have any name that is used here: columns are written with their table's name, and `r.*` is a row even if `r`
is one of its columns. A table may too, so names beside it come from `ResourceTable.own`.
"""

# ruff: noqa: S608 - what is pasted comes from declarations, or is a whole number; values are arguments

from collections.abc import Sequence
from typing import Any

from hybridkit.contract import MAX_PAGE_BYTES
from hybridkit.dataservice._postgres._filters import Arguments, Ordering, write_condition
from hybridkit.dataservice._postgres._json_printing import Projection
from hybridkit.dataservice._postgres._table import ResourceTable
from hybridkit.dataservice._postgres._types._parameters import DIALECT, parameter_type
from hybridkit.resources import Filter, Query


def where_clause(table: ResourceTable, where: Filter | None, arguments: Arguments, *more: str) -> str:
    """Write ` WHERE …` for the records that are not deleted and match; empty if all do."""
    parts = [table.live_sql] if table.resource.soft_delete else []
    if where is not None:
        parts.append(write_condition(table, where, arguments))
    parts += more
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def record_statement(table: ResourceTable, shown: Projection) -> str:
    """Write the statement that reads a record by its id, `$1`: its JSON and its entity tag."""
    where = where_clause(table, None, Arguments(), f"{table.sql('id')} = $1")
    row = table.own("row")
    return (
        f'SELECT CAST(row_to_json({row}.*) AS text), {row}."etag"'  # nosec B608
        f" FROM {table.source}, LATERAL {shown.record(table.sql)} {row}{where}"
    )


def batch_statement(table: ResourceTable, shown: Projection) -> str:
    """Write the statement that reads records by their ids, `$1`: a JSON array in their order, null for a missing one.

    The array itself is NULL if one response has no room for it.
    """
    kind = parameter_type(table["id"].type).compile(dialect=DIALECT)
    wanted, found, row = table.own("wanted"), table.own("found"), table.own("row")
    where = where_clause(table, None, Arguments(), f"{table.sql('id')} = {wanted}.id")
    counted = (
        f"SELECT {wanted}.n, {found}.line, {_fits(f'{found}.line', among=f'ORDER BY {wanted}.n')} AS fits"  # nosec B608
        f" FROM unnest(CAST($1 AS {kind}[])) WITH ORDINALITY AS {wanted}(id, n)"
        f" LEFT JOIN LATERAL (SELECT CAST(row_to_json({row}.*) AS text) AS line"
        f" FROM {table.source}, LATERAL {shown.record(table.sql)} {row}{where}) {found} ON true"
    )
    lines = "COALESCE(string_agg(COALESCE(line, 'null'), ',' ORDER BY n) FILTER (WHERE fits), '')"
    return f"SELECT CASE WHEN bool_and(fits) IS NOT FALSE THEN '[' || {lines} || ']' END FROM ({counted}) counted"  # nosec B608


def row_statement(
    table: ResourceTable,
    shown: Projection,
    query: Query,
    arguments: Arguments,
    *,
    after: Sequence[Any] | None = None,
    limit: int | None = None,
) -> str:
    """Write the statement for the rows of a query in its order: columns `c0`, `c1`, …, and their position `p`."""
    ordering = Ordering(table, query)
    more = [] if after is None else [ordering.after(after, arguments)]
    # In the text, not as an argument: PostgreSQL plans differently for a page and for a whole table.
    at_most = "" if limit is None else f" LIMIT {limit:d}"
    return (
        f"SELECT {shown.selected}, {ordering.position} AS p FROM {table.source}"  # nosec B608
        f"{where_clause(table, query.where, arguments, *more)} ORDER BY {ordering.clause}{at_most}"
    )


def page_statement(
    table: ResourceTable,
    shown: Projection,
    query: Query,
    arguments: Arguments,
    *,
    after: Sequence[Any] | None,
) -> str:
    """Write the statement for a page: a JSON array, the position of its last record, and whether more records follow.

    The array has as many records as one response has room for; PostgreSQL counts their bytes, so that no more leave it.
    The position comes as an array of one element.
    """
    size = query.page_size
    rows = row_statement(table, shown, query, arguments, after=after, limit=size + 1)
    # Without the fence the planner would print each row twice: to send it, and to count its bytes.
    lines = (
        f"SELECT CAST(row_to_json(r.*) AS text) AS line, ordered.p FROM ({rows}) ordered,"  # nosec B608
        f" LATERAL {shown.numbered} r OFFSET 0"
    )
    counted = f"SELECT line, p, row_number() OVER () AS n, {_fits('line')} AS fits FROM ({lines}) printed"  # nosec B608
    shown_rows = f"CAST(count(*) FILTER (WHERE fits AND n <= {size:d}) AS int)"
    last = f"(array_agg(p) FILTER (WHERE fits AND n <= {size:d}))[{shown_rows}:{shown_rows}]"
    return (
        f"SELECT '[' || COALESCE(string_agg(line, ',') FILTER (WHERE fits AND n <= {size:d}), '') || ']',"  # nosec B608
        f" {last}, count(*) > {shown_rows} FROM ({counted}) counted"
    )


def limited_statement(
    table: ResourceTable, shown: Projection, query: Query, arguments: Arguments, **options: Any
) -> str:
    """Write as `row_statement`, but limit the rows to about one response; before `p` is whether a row follows."""
    rows = row_statement(table, shown, query, arguments, **options)
    columns = ", ".join(f"c{n}" for n, _ in enumerate(shown.columns))
    before = "ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING"
    counted = (
        "SELECT *, lead(true, 1, false) OVER () AS followed,"  # nosec B608
        f" COALESCE(sum(octet_length(CAST(ROW(ordered.*) AS text))) OVER ({before}), 0) AS taken"
        f" FROM ({rows}) ordered"
    )
    return f"SELECT {columns}, followed, p FROM ({counted}) counted WHERE taken <= {MAX_PAGE_BYTES:d}"  # nosec B608


def _fits(line: str, *, among: str = "") -> str:
    """Write SQL for whether a response has room for this line after those before it; always for the first one."""
    window = f"OVER ({among} ROWS UNBOUNDED PRECEDING)"
    return f"(COALESCE(sum(octet_length({line}) + 1) {window}, 0) <= {MAX_PAGE_BYTES:d} OR count({line}) {window} = 1)"


def line_statement(table: ResourceTable, shown: Projection, query: Query, arguments: Arguments) -> str:
    """Write the statement for the records of a query as lines of JSON, in its order."""
    rows = row_statement(table, shown, query, arguments)
    return f"SELECT CAST(row_to_json(r.*) AS text) FROM ({rows}) ordered, LATERAL {shown.numbered} r"  # nosec B608
