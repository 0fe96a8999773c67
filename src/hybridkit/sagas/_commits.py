"""Write a saga's row, and all that becomes true with it, in one transaction that happens once, however often tried."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from hybridkit.clients import DataTransaction, Handle, MongoDataClient, PostgresDataClient, _requests
from hybridkit.clients._answers import NO_CONTENT, transaction_from
from hybridkit.contract import Transaction, TransactionResult
from hybridkit.events import ReplyTo
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
        minimal: whether nobody looks at the row as it was written, so that no answer brings or keeps it.
    """

    def __init__(self, client: DataClient, key: str, *, minimal: bool) -> None:
        self._client = client
        self._key = key
        self._minimal = minimal
        self._row: Handle[SagaRecord] | None = None
        self.tx = DataTransaction(self._commit, isolation="read_committed")

    def __repr__(self) -> str:
        return f"RowTransaction({self._key!r})"

    @property
    def written(self) -> SagaRecord:
        """The row as it was written; known after the commit, unless that was minimal."""
        assert self._row is not None  # noqa: S101 # nosec B101 - `put` comes first
        return self._row.result

    def put(self, stored: StoredRow, row: NewSaga) -> None:
        """Write the row, if it is still in the state in which it was read; the last operation of all."""
        if stored.record is None:
            self._row = self.tx.create(SAGAS, row, id=stored.id)
        else:
            self._row = self.tx.replace(SAGAS, stored.record, row)

    def send(self, messages: Sequence[OutgoingMessage], *, reply_to: ReplyTo, cancelled: UUID | None) -> None:
        """Send messages with it, and take back a timer that nobody waits for.

        Args:
            messages: the messages. Whoever gives up one that reports its failure tells the saga.
            reply_to: the saga.
            cancelled: the id of the timer; None for none.
        """
        for each in messages:
            told = reply_to if each.reports_failure else None
            self.tx.emit(each.message, not_before=each.not_before, reply_to=told)
        if cancelled is not None:
            self.tx.cancel(cancelled)

    async def _commit(self, transaction: Transaction, _key: str) -> TransactionResult | None:
        """Send the row's operation first: what else the handler writes is refused in vain where the row has moved."""
        *others, own = transaction.operations
        ordered = transaction.model_copy(update={"operations": (own, *others)})
        request = _requests.transact(ordered, self._key, dry_run=False, minimal=self._minimal)
        response = await self._client._send(request)  # noqa: SLF001 - as its own transactions do
        if response.status == NO_CONTENT:
            return None
        answer = transaction_from(response, dry_run=False)
        return TransactionResult.model_construct(results=(*answer.results[1:], *answer.results[:1]))
