"""The seam between the routes and a database."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hybridkit.dataservice._operations import AnyResource, Document, Outcome, Write
from hybridkit.dataservice._outbox import Outbox
from hybridkit.queries import Query

__all__ = ["Found", "Store"]


@dataclass(frozen=True, slots=True)
class Found:
    """Some records of a query, in its order.

    Attributes:
        items: at most a page of them.
        position: where the last one stands in the order (its values, JSON-able); None where nothing follows it.
    """

    items: Sequence[Document]
    position: Sequence[Any] | None


class Store(Protocol):
    """One database. Every method ends by the deadline of the bound context, whatever the database does.

    All of them raise `UnavailableError` where the database can't be reached, `OverloadedError` where every connection
    stays taken, and `DeadlineExceededError`.
    """

    @property
    def outbox(self) -> Outbox | None:
        """The events that wait to be published; None where the database can't keep them with the records."""
        ...

    async def get(self, resource: AnyResource, record_id: Any) -> Document | None:
        """The record with that id, if there is one."""
        ...

    async def find(self, resource: AnyResource, query: Query, *, after: Sequence[Any] | None) -> Found:
        """One page of a query.

        Args:
            resource: what to read.
            query: its page token is not looked at.
            after: the position of the page before.

        Raises:
            InvalidQueryError: a value that the database can't compare with the field.
        """
        ...

    async def write(self, write: Write) -> Outcome:
        """Do all of it, once per caller and key.

        Raises:
            NotFoundError: an operation's record is not there.
            StaleVersionError: it is in another state.
            UniqueViolationError: another record has that value.
            ForeignKeyError: a record refers to one that is not there.
            InvalidRequestError: a value that the database refuses.
            ConflictError: other transactions won each time.
            InProgressError: the key is in use by a call that has not finished.
            KeyReusedError: the key was used for another request.
            OutcomeUnknownError: the connection broke during the commit; the same key finds out.
            NotSupportedError: this database can't do that in one transaction.
        """
        ...

    async def signing_key(self) -> bytes:
        """The secret that page tokens are signed with; the same for every replica."""
        ...

    async def check(self) -> None:
        """Be ready: reachable, and with the schema that this code needs.

        Raises:
            UnavailableError: saying what is missing.
        """
        ...

    async def clean(self) -> int:
        """Delete what is past its retention, some of it; how many rows that were."""
        ...
