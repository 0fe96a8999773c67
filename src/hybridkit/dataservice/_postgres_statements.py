"""The statements that read records: one row comes back, with the JSON that goes out.

A page is read in three layers: the rows in their order and no more of them than needed, their numbers, and the
printing, so that nothing is printed that is not sent. Rows of an ordered subquery are aggregated in its order:
https://www.postgresql.org/docs/current/functions-aggregate.html
"""

# ruff: noqa: S608 - what is pasted comes from declarations, or is a whole number; values are arguments

from collections.abc import Sequence
from typing import Any

from hybridkit.dataservice._postgres_filters import Arguments, Ordering, write_condition
from hybridkit.dataservice._postgres_printing import Projection
from hybridkit.dataservice._postgres_table import ResourceTable
from hybridkit.dataservice._postgres_types import DIALECT, parameter_type
from hybridkit.filters import Filter
from hybridkit.queries import Query

__all__ = [
    "batch_statement",
    "line_statement",
    "page_statement",
    "record_statement",
    "row_statement",
    "where_clause",
]


def where_clause(table: ResourceTable, where: Filter | None, arguments: Arguments, *more: str) -> str:
    """` WHERE …` for the records that are there and fit; empty where all do."""
    parts = [table.live_sql] if table.resource.soft_delete else []
    if where is not None:
        parts.append(write_condition(table, where, arguments))
    parts += more
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def record_statement(table: ResourceTable, shown: Projection) -> str:
    """By `$1`, the id: the JSON of a record and its entity tag."""
    where = where_clause(table, None, Arguments(), f"{table.sql('id')} = $1")
    return (
        f'SELECT CAST(row_to_json(r) AS text), r."etag"'  # nosec B608
        f" FROM {table.source}, LATERAL {shown.record(table.sql)} r{where}"
    )


def batch_statement(table: ResourceTable, shown: Projection) -> str:
    """By `$1`, ids: a JSON array of their records, in their order, with null for what is not there."""
    kind = parameter_type(table["id"].type).compile(dialect=DIALECT)
    where = where_clause(table, None, Arguments(), f"{table.sql('id')} = wanted.id")
    return (
        "SELECT '[' || COALESCE(string_agg(COALESCE(found.line, 'null'), ',' ORDER BY wanted.n), '') || ']'"  # nosec B608
        f" FROM unnest(CAST($1 AS {kind}[])) WITH ORDINALITY AS wanted(id, n)"
        " LEFT JOIN LATERAL (SELECT CAST(row_to_json(r) AS text) AS line"
        f" FROM {table.source}, LATERAL {shown.record(table.sql)} r{where}) found ON true"
    )


def row_statement(
    table: ResourceTable,
    shown: Projection,
    query: Query,
    arguments: Arguments,
    *,
    after: Sequence[Any] | None = None,
    limit: int | None = None,
) -> str:
    """The rows of a query in its order: the columns as `c0`, `c1`, …, and their position as `p`."""
    ordering = Ordering(table, query)
    more = [] if after is None else [ordering.after(after, arguments)]
    # In the text, not as an argument: PostgreSQL plans otherwise for a page than for a table.
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
    """A page as a JSON array, the position of its last record, and how many rows there are, with the next one."""
    size = query.page_size
    rows = row_statement(table, shown, query, arguments, after=after, limit=size + 1)
    return (
        f"SELECT '[' || COALESCE(string_agg(CAST(row_to_json(r) AS text), ',') FILTER (WHERE n <= {size:d}), '')"  # nosec B608
        f" || ']', max(p) FILTER (WHERE n = {size:d}), count(*)"
        f" FROM (SELECT *, row_number() OVER () AS n FROM ({rows}) ordered) numbered,"
        f" LATERAL {shown.numbered} r"
    )


def line_statement(table: ResourceTable, shown: Projection, query: Query, arguments: Arguments) -> str:
    """Each record of a query as a line of JSON, in its order."""
    rows = row_statement(table, shown, query, arguments)
    return f"SELECT CAST(row_to_json(r) AS text) FROM ({rows}) ordered, LATERAL {shown.numbered} r"  # nosec B608
