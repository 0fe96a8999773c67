"""Commit the changes of a projection together with its position."""

from collections.abc import Sequence

from hybridkit.clients import _requests
from hybridkit.clients._answers import result_from, transaction_from
from hybridkit.clients._client import PostgresDataClient
from hybridkit.clients._write_identity import WriteStep
from hybridkit.contract import Operation, Transaction, UpdateOperation
from hybridkit.contract._fields import changed_fields
from hybridkit.errors import ResponseError
from hybridkit.streams._changes import Change
from hybridkit.streams._positions import PROJECTIONS, ProjectionChanges, ProjectionRow


async def commit(
    client: PostgresDataClient, row: ProjectionRow, fields: ProjectionChanges, changes: Sequence[Change]
) -> ProjectionRow:
    """Change a projection's row and make changes of records in one transaction, and return the row as it is then.

    The row comes first and has to be as it was read. So of two runners of one projection the second waits for the lock
    of the row, and then is refused before it has written anything.

    Raises:
        StaleVersionError: the row has changed since it was read.
        HybridkitError: the transaction failed, or its outcome is unknown.
    """
    position = UpdateOperation(
        resource=PROJECTIONS.name, id=row.id, data=changed_fields(fields), if_match=row.etag
    )
    operations: list[Operation] = [position, *(change.operation() for change in changes)]
    request = _requests.transact(Transaction(operations=tuple(operations)), WriteStep().key, dry_run=False)
    answer = transaction_from(await client._send(request), dry_run=False)  # noqa: SLF001 - a part of the client
    if len(answer.results) != len(operations):
        raise ResponseError(
            f"{len(operations)} operations have {len(answer.results)} results", response_status=200
        )
    return result_from(PROJECTIONS, answer.results[0])
