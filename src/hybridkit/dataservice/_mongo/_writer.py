"""Writes to MongoDB, once per caller and key: in a transaction where one is needed and the server has them.

One record without events is written by itself on every server, which is as atomic and costs less.
"""

from collections.abc import Callable, Mapping

from pymongo.asynchronous.database import AsyncDatabase

from hybridkit.dataservice._mongo._audit._entries import MongoAudit
from hybridkit.dataservice._mongo._collection import ResourceCollection
from hybridkit.dataservice._mongo._document_writer import DocumentWriter
from hybridkit.dataservice._mongo._driver._capabilities import Capabilities
from hybridkit.dataservice._mongo._driver._database import StoredDocument, bounded, meaning
from hybridkit.dataservice._mongo._driver._errors import write_error
from hybridkit.dataservice._mongo._transaction_writer import TransactionWriter
from hybridkit.dataservice._store._in_flight import InFlight
from hybridkit.dataservice._store._keys import count
from hybridkit.dataservice._store._operations import Outcome, Write
from hybridkit.errors import InProgressError


class MongoWriter:
    """A writer to one MongoDB database.

    Args:
        database: for requests.
        collections: by the resource's name.
        capabilities: of its server.
        audit: the audit trail.
        emitted: called when a write has added events.
    """

    def __init__(
        self,
        database: AsyncDatabase[StoredDocument],
        collections: Mapping[str, ResourceCollection],
        *,
        capabilities: Capabilities,
        audit: MongoAudit,
        emitted: Callable[[], None],
    ) -> None:
        self._document_writer = DocumentWriter(database, collections, audit=audit, emitted=emitted)
        self._transaction_writer = TransactionWriter(database, collections, audit=audit, emitted=emitted)
        self._capabilities = capabilities
        self._in_flight = InFlight()

    def __repr__(self) -> str:
        return f"MongoWriter({self._capabilities!r}, {self._in_flight!r})"

    async def write(self, write: Write) -> Outcome:
        """Do all operations of the write or none, once per caller and key.

        Raises:
            TransactionsUnavailableError: the write needs a transaction, and the server has none.
        """
        work = (
            self._transaction_writer.write if self._takes_transaction(write) else self._document_writer.write
        )

        with bounded(), meaning(write_error):
            if write.dry_run:
                return await work(write)
            try:
                return await self._in_flight.run(write, lambda: work(write))
            except InProgressError:
                count("in_progress")
                raise

    async def close(self) -> None:
        """Wait until no transaction is open on the server."""
        await self._transaction_writer.close()

    def _takes_transaction(self, write: Write) -> bool:
        if write.dry_run:
            self._capabilities.require_transactions("a dry run")
        if len(write.operations) > 1:
            self._capabilities.require_transactions("a write of several records")
        simple = len(write.operations) == 1 and not write.emit and not write.cancel
        return self._capabilities.transactions and (write.dry_run or not simple)
