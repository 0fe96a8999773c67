"""Insert under another name for the table, so that a table called `excluded` isn't taken for the rows given."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import ColumnElement, FromClause
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.ext.compiler import compiles

from hybridkit.dataservice._postgres._table import ResourceTable

_ALIAS: Final = "hk_target"


class InsertOnConflict(Insert):
    """`INSERT INTO … AS hk_target`, to be followed by `ON CONFLICT`."""

    inherit_cache = True


def target(table: ResourceTable, name: str) -> ColumnElement[Any]:
    """Return a field's column in the row that is there before the upsert, or after it in `RETURNING`."""
    return _aliased(table.table)[table[name].key]


@lru_cache(maxsize=256)
def _aliased(table: FromClause) -> Mapping[str, ColumnElement[Any]]:
    return {column.key: column for column in table.alias(_ALIAS).columns}


@compiles(InsertOnConflict, "postgresql")
def _written(statement: InsertOnConflict, compiler: Any, **options: Any) -> str:
    text: str = compiler.visit_insert(statement, **options)
    table = compiler.preparer.format_table(statement.table)
    return text.replace(f"INSERT INTO {table} ", f"INSERT INTO {table} AS {_ALIAS} ", 1)
