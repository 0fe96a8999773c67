"""The seam between the routes and a database."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from hybridkit.contract import MAX_PAGE_BYTES
from hybridkit.dataservice._outbox._protocol import Outbox
from hybridkit.dataservice._store._operations import CallWork, Outcome, Write
from hybridkit.errors import AnswerTooLargeError
from hybridkit.resources import Aggregation, Filter, Query
from hybridkit.resources._resource import AnyResource

# What is read leaves the store as the bytes that go out: a database that prints JSON is believed, and nothing is
# decoded only to be encoded again. The bytes are those that `codec.encode_json` makes of the record.


class EncodedRecord(NamedTuple):
    """One record, ready to be sent.

    Attributes:
        body: JSON.
        etag: strong, also in the body.
    """

    body: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class EncodedPage:
    """Some records of a query, in its order.

    Attributes:
        items: a JSON array of at most a page of them, and at most as many as one answer has room for.
        position: where the last one stands in the order (its values, JSON-able); None where nothing follows it.
    """

    items: bytes
    position: Sequence[Any] | None


class AnswerSpace:
    """What of one answer's room is left. Records are counted as they come, so that no more of them are read."""

    def __init__(self) -> None:
        self._left_bytes = MAX_PAGE_BYTES
        self._is_empty = True

    def __repr__(self) -> str:
        return f"AnswerSpace({self._left_bytes} bytes left)"

    def takes(self, record: bytes) -> bool:
        """Whether that record fits in; the first one always does."""
        self._left_bytes -= len(record) + 1
        fits = self._left_bytes >= 0 or self._is_empty
        self._is_empty = False
        return fits


def encoded_list(records: Iterable[bytes | None]) -> bytes:
    """A JSON array of records, null for what is not there.

    Raises:
        AnswerTooLargeError: they are too many for one answer.
    """
    space = AnswerSpace()
    lines: list[bytes] = []
    for record in records:
        if record is not None and not space.takes(record):
            raise answer_too_large()
        lines.append(b"null" if record is None else record)
    return b"[%b]" % b",".join(lines)


def answer_too_large() -> AnswerTooLargeError:
    """The records with the given ids are more than one answer has room for."""
    return AnswerTooLargeError(
        f"these records have more than {MAX_PAGE_BYTES} bytes; ask for fewer of them at a time",
        pointer="/ids",
    )


class ExportChunk(NamedTuple):
    """A piece of an export.

    Attributes:
        body: records as JSON, each with a line feed after it.
        records: how many.
    """

    body: bytes
    records: int


class Store(Protocol):
    """One database. Every method ends by the deadline of the bound context, whatever the database does.

    All of them raise `UnavailableError` where the database can't be reached, `OverloadedError` where every connection
    stays taken, `DeadlinePassedError` where nothing was changed by the deadline, and `DeadlineExceededError` where
    nobody knows.
    """

    @property
    def outbox(self) -> Outbox | None:
        """The events that wait to be published; None where the database can't keep them with the records."""
        ...

    async def get(self, resource: AnyResource, record_id: Any) -> EncodedRecord | None:
        """The record with that id, if there is one."""
        ...

    async def get_many(self, resource: AnyResource, record_ids: Sequence[Any]) -> bytes:
        """A JSON array of the records with those ids, in their order, null for what is not there.

        Raises:
            AnswerTooLargeError: they are more than one answer has room for; no more than that was read.
        """
        ...

    async def find(self, resource: AnyResource, query: Query, *, after: Sequence[Any] | None) -> EncodedPage:
        """One page of a query, which ends early where the next record would be too many bytes for one answer.

        Args:
            resource: what to read.
            query: its page token is not looked at.
            after: the position of the page before.

        Raises:
            InvalidQueryError: a value that the database can't compare with the field.
        """
        ...

    async def count(self, resource: AnyResource, where: Filter | None, *, exact: bool) -> int:
        """How many records fit.

        Args:
            resource: what to count.
            where: which; None for all.
            exact: count them; otherwise what the database guesses is good enough.

        Raises:
            InvalidQueryError: a value that the database can't compare with the field.
        """
        ...

    def export(self, resource: AnyResource, query: Query) -> AsyncGenerator[ExportChunk]:
        """Every record of a query, as one consistent view where the database has such, from a cursor of its own.

        The deadline of the bound context is not that of the whole export, but of the wait for each piece.

        Raises:
            InvalidQueryError: a value that the database can't compare with the field.
        """
        ...

    async def aggregate(self, resource: AnyResource, aggregation: Aggregation) -> bytes:
        """A JSON array of rows, with a member for each group field and function.

        Raises:
            InvalidQueryError: a function that the field's type doesn't know.
        """
        ...

    async def run_pipeline(self, resource: AnyResource, pipeline: Sequence[Any]) -> bytes:
        """A JSON array of what MongoDB's aggregation pipeline comes to; its stages and operators are on a list.

        Raises:
            InvalidQueryError: a stage, operator or field that is not allowed, with a pointer.
            NotSupportedError: this is no MongoDB.
        """
        ...

    async def ask(self, work: CallWork) -> bytes:
        """Run a service's own call that changes nothing; what it answers."""
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
