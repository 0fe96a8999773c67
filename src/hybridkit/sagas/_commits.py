"""Write a saga's row, and all that becomes true with it, in one transaction that happens once, however often tried."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from hybridkit.clients import DataTransaction, Handle, MongoDataClient, PostgresDataClient, _requests
from hybridkit.clients._answers import transaction_from
from hybridkit.contract import Transaction, TransactionResult
from hybridkit.sagas._drafts import OutgoingMessage
from hybridkit.sagas._records import SAGAS, NewSaga, SagaRecord

type DataClient = PostgresDataClient | MongoDataClient


@dataclass(frozen=True, slots=True)
class StoredRow:
    """The row as it was read, or None where there is none yet.

    Attributes:
        id: its id.
        record: the row.
    """

    id: UUID
    record: SagaRecord | None

    @property
    def etag(self) -> str | None:
        """The state in which it was read."""
        return None if self.record is None else self.record.etag


class RowTransaction:
    """A transaction that begins with the saga's row, whatever a handler has put into it before.

    Args:
        client: the data service.
        key: the idempotency key, which derives from the message and the step.
    """

    def __init__(self, client: DataClient, key: str) -> None:
        self._client = client
        self._key = key
        self.tx = DataTransaction(self._commit, isolation="read_committed")
        self._row: Handle[SagaRecord] | None = None

    def __repr__(self) -> str:
        return f"RowTransaction({self._key!r})"

    @property
    def written(self) -> SagaRecord:
        """The row as it was written; known after the commit."""
        assert self._row is not None  # noqa: S101 # nosec B101 - `put` comes first
        return self._row.result

    def put(self, stored: StoredRow, row: NewSaga) -> None:
        """Write the row, if it is still in the state in which it was read."""
        if stored.record is None:
            self._row = self.tx.create(SAGAS, row, id=stored.id)
        else:
            self._row = self.tx.replace(SAGAS, stored.record, row)

    def send(self, messages: Sequence[OutgoingMessage]) -> None:
        """Send messages with it."""
        for each in messages:
            self.tx.emit(each.message, not_before=each.not_before)

    async def _commit(self, transaction: Transaction, _key: str) -> TransactionResult:
        """Send the row's operation first: what else the handler writes is refused in vain where the row has moved."""
        *others, own = transaction.operations
        request = _requests.transact(
            transaction.model_copy(update={"operations": (own, *others)}), self._key, dry_run=False
        )
        answer = transaction_from(await self._client._send(request), dry_run=False)  # noqa: SLF001 - as its own transactions
        return TransactionResult.model_construct(results=(*answer.results[1:], *answer.results[:1]))
