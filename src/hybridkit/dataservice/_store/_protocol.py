"""The protocol between the routes and a database."""

from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from hybridkit.contract import MAX_PAGE_BYTES
from hybridkit.dataservice._outbox._protocol import Outbox
from hybridkit.dataservice._store._erasure import Erased, ErasureStep
from hybridkit.dataservice._store._operations import CallWork, Outcome, Write
from hybridkit.dataservice._store._streams import Streams
from hybridkit.errors import AnswerTooLargeError
from hybridkit.resources import Aggregation, Filter, Query
from hybridkit.resources._resource import AnyResource

# Records leave the store as the bytes of the response: a database that prints JSON is believed, and nothing is decoded
# only to be encoded again. The bytes are those that `codec.encode_json` makes of the record.


class EncodedRecord(NamedTuple):
    """A record as JSON.

    Attributes:
        body: the JSON.
        etag: strong; also in the body.
    """

    body: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class EncodedPage:
    """A page of a query's records as JSON.

    Attributes:
        items: a JSON array of at most `page_size` records and `MAX_PAGE_BYTES` bytes, but of one record at least.
        position: the values of `Query.total_order` in the last record, JSON-able; None where no record follows.
    """

    items: bytes
    position: Sequence[Any] | None


class AnswerSpace:
    """The bytes left for records in one answer, counted while records are read, so that no more are read than fit."""

    def __init__(self) -> None:
        self._left_bytes = MAX_PAGE_BYTES
        self._is_empty = True

    def __repr__(self) -> str:
        return f"AnswerSpace({self._left_bytes} bytes left)"

    def takes(self, record: bytes) -> bool:
        """Count the record and return whether it fits into the answer; the first one always does."""
        self._left_bytes -= len(record) + 1
        fits = self._left_bytes >= 0 or self._is_empty
        self._is_empty = False
        return fits


def encoded_list(records: Iterable[bytes | None]) -> bytes:
    """Return a JSON array of records, with null for None.

    Raises:
        AnswerTooLargeError: the records have too many bytes for one answer.
    """
    space = AnswerSpace()
    lines: list[bytes] = []
    for record in records:
        if record is not None and not space.takes(record):
            raise answer_too_large()
        lines.append(b"null" if record is None else record)
    return b"[%b]" % b",".join(lines)


def answer_too_large() -> AnswerTooLargeError:
    """Return the refusal of ids whose records have more than `MAX_PAGE_BYTES` bytes."""
    return AnswerTooLargeError(
        f"these records have more than {MAX_PAGE_BYTES} bytes; ask for fewer of them at a time",
        pointer="/ids",
    )


class ExportChunk(NamedTuple):
    """Some lines of an export.

    Attributes:
        body: records as JSON, each with a line feed after it.
        records: their number.
    """

    body: bytes
    records: int


class Store(Protocol):
    """One database; every method ends by the deadline of the bound context, whatever the database does.

    All of them raise `UnavailableError` where the database can't be reached, `OverloadedError` where every connection
    stays taken, `DeadlinePassedError` where nothing was changed by the deadline, and `DeadlineExceededError` where
    nobody knows.
    """

    @property
    def outbox(self) -> Outbox | None:
        """The events that wait to be published; None where the database can't keep them with the records."""
        ...

    @property
    def streams(self) -> Streams | None:
        """The streams of events; None where the database can't keep them."""
        ...

    async def get(self, resource: AnyResource, record_id: Any) -> EncodedRecord | None:
        """Return the record with that id, or None."""
        ...

    async def get_many(self, resource: AnyResource, record_ids: Sequence[Any]) -> bytes:
        """Return a JSON array of the records with those ids, in their order, with null for one that is not there.

        Raises:
            AnswerTooLargeError: the records have too many bytes for one answer; no more than those were read.
        """
        ...

    async def find(self, resource: AnyResource, query: Query, *, after: Sequence[Any] | None) -> EncodedPage:
        """Return one page of a query; it ends early where the next record would be too many bytes for one answer.

        Args:
            resource: the collection.
            query: the query; its page token is ignored.
            after: the position of the page before; None for the first page.

        Raises:
            InvalidQueryError: the database can't compare a value with its field.
        """
        ...

    async def count(self, resource: AnyResource, where: Filter | None, *, exact: bool) -> int:
        """Count the records for which the filter holds.

        Args:
            resource: the collection.
            where: the filter; None for all.
            exact: whether to count each; otherwise the database's estimate is good enough.

        Raises:
            InvalidQueryError: the database can't compare a value with its field.
        """
        ...

    def export(self, resource: AnyResource, query: Query) -> AsyncGenerator[ExportChunk]:
        """Yield every record of a query from a cursor, as one consistent view where the database has such views.

        The deadline of the bound context is not that of the whole export, but of the wait for each chunk.

        Raises:
            InvalidQueryError: the database can't compare a value with its field.
        """
        ...

    async def aggregate(self, resource: AnyResource, aggregation: Aggregation) -> bytes:
        """Return a JSON array of rows, each with a member for each group field and function.

        Raises:
            InvalidQueryError: a field's type doesn't have a function.
        """
        ...

    async def run_pipeline(self, resource: AnyResource, pipeline: Sequence[Any]) -> bytes:
        """Return a JSON array of the results of a MongoDB aggregation pipeline of allowed stages and operators.

        Raises:
            InvalidQueryError: a stage, operator or field is not allowed; the error has a pointer to it.
            NotSupportedError: the database is no MongoDB.
        """
        ...

    async def ask(self, work: CallWork) -> bytes:
        """Run a service's own call that changes nothing, and return its answer as JSON."""
        ...

    async def write(self, write: Write) -> Outcome:
        """Do all operations of the write or none, once per caller and key.

        Raises:
            NotFoundError: an operation's record is not there.
            StaleVersionError: an operation's record is in another state.
            RequirementNotMetError: an operation's record is not as its `require` demands.
            UniqueViolationError: another record has a value that only one may have.
            ForeignKeyError: a record refers to one that is not there.
            InvalidRequestError: the database refuses a value.
            ConflictError: other transactions won each time.
            InProgressError: the key is in use by a call that has not finished.
            KeyReusedError: the key was used for another request.
            OutcomeUnknownError: the connection broke during the commit; the same key finds out.
            NotSupportedError: the database can't do all operations in one transaction.
        """
        ...

    async def blank_audit(
        self, resource: AnyResource, fields: Collection[str], record_ids: Collection[Any]
    ) -> int:
        """Blank the values of fields in the audit entries of records, and return the number of entries changed.

        An entry stays, with who changed which field and when; the values become `["***", "***"]`, which nothing brings
        back. It is what an erasure of personal data calls; doing it again changes nothing.

        Args:
            resource: the audited resource.
            fields: the fields whose values go.
            record_ids: the ids of the records, which may have been deleted since.
        """
        ...

    async def deleted_ids(self, resource: AnyResource, field: str, value: Any) -> Sequence[str]:
        """Return the ids of removed records that had a value in a field when they were removed, by the audit trail.

        An erasure finds by it the history of records that are not there any more.

        Args:
            resource: the audited resource.
            field: the field, such as the one with the id of a person.
            value: its value, of the field's type.
        """
        ...

    async def erase(self, step: ErasureStep, person: str, *, after: str, dry_run: bool) -> Erased:
        """Erase the personal data of a person in one batch of a step.

        Args:
            step: the place of the data.
            person: the id of the person, as text.
            after: where the batch begins: empty for the first one, then the `after` of the batch before.
            dry_run: whether to count the rows, and change nothing.

        Raises:
            UniqueViolationError: two erased records have the same blank where only one may.
        """
        ...

    async def signing_key(self) -> bytes:
        """Return the secret that page tokens are signed with, which all replicas share."""
        ...

    async def check(self) -> None:
        """Check that the database can be reached and has the schema that this code needs.

        Raises:
            UnavailableError: the database can't be reached, or something is missing, which the message names.
        """
        ...

    async def clean(self) -> int:
        """Delete a batch of rows past their retention, and return their number."""
        ...
