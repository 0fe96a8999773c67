"""The table of the projections' positions, an ordinary resource of the data service that has their records."""

from hybridkit.dataservice._postgres._columns import ProjectionTable, RecordColumns
from hybridkit.resources._resource import AnyResource
from hybridkit.streams import PROJECTIONS


def projection_tables() -> dict[AnyResource, type[RecordColumns]]:
    """Return the resource of the projections' positions with its table, for `create_data_service`.

    The data service that has the records of a projection has its position too, as both change in one transaction:
    `create_data_service(PostgresSettings, {BALANCES: BalanceTable, **projection_tables()})`. hybridkit's own migrations
    make the table.
    """
    return {PROJECTIONS: ProjectionTable}
