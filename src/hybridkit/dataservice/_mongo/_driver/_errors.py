"""PyMongo's errors as errors of the error tree, without the server's own words, which quote values."""

import re
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

from bson.errors import BSONError
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WriteError,
)

from hybridkit.dataservice._store._operations import Operation
from hybridkit.dataservice._store._refusals import unique_violation
from hybridkit.errors import (
    ConflictError,
    DeadlineExceededError,
    DeadlinePassedError,
    HybridkitError,
    InvalidQueryError,
    InvalidRequestError,
    NotSupportedError,
    OutcomeUnknownError,
    OverloadedError,
    UnavailableError,
    UniqueViolationError,
)

MONGO_FAILURES: Final = (PyMongoError, BSONError, ArithmeticError)
"""The exceptions that a call of the driver raises about the database or a value."""

CONFLICTS: Final = frozenset({24, 112, 251})
"""LockTimeout, WriteConflict, NoSuchTransaction: not every server labels them as repeatable."""

_RETRY_AFTER_SECONDS: Final = 1.0
_NOT_SUPPORTED: Final = frozenset({59, 115, 238, 40324})
"""CommandNotFound, CommandNotSupported, NotImplemented, unrecognized stage."""
_BAD_VALUES: Final = frozenset({2, 9, 14, 15, 52, 57, 121, 10334, 17419})
"""BadValue, FailedToParse, TypeMismatch, Overflow (nested too deeply), DollarPrefixedFieldName, DottedFieldName,
DocumentValidationFailure, and two of documents that are too large."""
_NOT_THE_PRIMARY: Final = frozenset({10058, 10107, 13435, 13436})
"""Codes of a server that takes no writes after an election; one that steps down during a write has other codes."""
_BROKEN_BEHIND: Final = frozenset({6, 7, 89, 202, 317, 9001})
"""HostUnreachable, HostNotFound, NetworkTimeout, NetworkInterfaceExceededTimeLimit, PooledConnectionsDropped,
SocketException: a router has lost the server behind it."""
_NO_SERVER: Final = frozenset({133, 134, 14031})
"""FailedToSatisfyReadPreference, ReadConcernMajorityNotAvailableYet, OutOfDiskSpace."""
_INTERRUPTED: Final = frozenset({43, 225, 237, 246, 262, 290, 11601})
"""CursorNotFound, TransactionTooOld, CursorKilled, SnapshotUnavailable, ExceededTimeLimit,
TransactionExceededLifetimeLimitSeconds, Interrupted: a server has given up what it had begun."""
_KEY_TOO_LONG: Final = 17280
_PROGRAM_LIMIT: Final = 261
_NOT_THE_CALLERS: Final = frozenset({8, 13, 18})
"""UnknownError, Unauthorized, AuthenticationFailed."""
_DUPLICATE: Final = 11000
_INDEX_NAME: Final = re.compile(r"[Ii]ndex:? (?:'(?P<quoted>[^']+)'|(?P<name>\S+))")


def read_error(error: Exception) -> HybridkitError | None:
    """Return the error that a failed read is to its caller, or None for a mistake in the code."""
    if isinstance(error, BulkWriteError):
        error = _first_of(error)
    match error:
        case WriteConcernError():
            return UnavailableError(
                "the database can't say that a write stays", retry_after_seconds=_RETRY_AFTER_SECONDS
            )
        case WaitQueueTimeoutError():
            return OverloadedError("every connection stays taken", retry_after_seconds=_RETRY_AFTER_SECONDS)
        case ExecutionTimeout():
            return DeadlinePassedError("the database stopped at the deadline")
        case PyMongoError() if error.timeout and not isinstance(error, ServerSelectionTimeoutError):
            return DeadlinePassedError("the database did not answer before the deadline")
        case ConnectionFailure():
            # By its words: the driver has one class for all that keeps it from a server.
            without_tls = "SSL handshake failed" in str(error)
            why = ": TLS can't be set up with it, see tls and tlsCAFile in its URL" if without_tls else ""
            return UnavailableError(
                f"the database does not answer{why}", retry_after_seconds=_RETRY_AFTER_SECONDS
            )
        case OperationFailure():
            return _refused(error.code)
        case BSONError() | ArithmeticError():
            return InvalidQueryError("the filter has a value that the database can't hold")
        case _:
            return None


def _refused(code: int | None) -> HybridkitError | None:
    if code in _BROKEN_BEHIND | _NO_SERVER | _INTERRUPTED:
        return UnavailableError("the database does not answer", retry_after_seconds=_RETRY_AFTER_SECONDS)
    if code in CONFLICTS:
        return ConflictError("other transactions won", retry_after_seconds=0.1)
    if code in _NOT_SUPPORTED:
        return NotSupportedError("the database server can't do this")
    if code in _BAD_VALUES:
        return InvalidQueryError("the database can't compare a value of this filter with its field")
    return None


def write_error(error: Exception) -> HybridkitError | None:
    """Return the error that a failed write is to its caller; if the connection broke, the outcome is unknown."""
    if isinstance(error, BulkWriteError):
        error = _first_of(error)
    match error:
        case WriteConcernError():
            return OutcomeUnknownError(
                "the write was done, and the database can't say that it stays; the same Idempotency-Key finds out"
            )
        case OperationFailure() if is_duplicate(error):
            return UniqueViolationError("another record has this value", fields=_fields(error))
        case DocumentTooLarge():
            return InvalidRequestError("the record is larger than the database holds (16 MiB)")
        case BSONError() | ArithmeticError():
            return InvalidRequestError("a value is outside of what the database holds")
        case OperationFailure() if _is_too_long(error):
            return InvalidRequestError("the id or another value is too long for its index")
        case OperationFailure() if error.code in _BAD_VALUES:
            return InvalidRequestError("the database refuses a value")
        case _ if _is_broken(error):
            return OutcomeUnknownError(
                "the connection to the database broke during the write; the same Idempotency-Key finds out"
            )
        case _:
            found = read_error(error)
            return DeadlineExceededError(str(found)) if isinstance(found, DeadlinePassedError) else found


def _is_broken(error: Exception) -> bool:
    """Return whether the server may have done the write although it hasn't said so."""
    match error:
        case ServerSelectionTimeoutError():
            return False
        case NotPrimaryError():
            details = error.details
            code: object = cast("Any", details).get("code") if isinstance(details, Mapping) else None
            return code not in _NOT_THE_PRIMARY
        case OperationFailure():
            return error.code in _BROKEN_BEHIND | _INTERRUPTED
        case _:
            return isinstance(error, AutoReconnect)


@contextmanager
def explained_duplicates(operation: Operation) -> Generator[None]:
    """Replace the server's refusal of a duplicate by one that names the operation and the fields."""
    try:
        yield
    except OperationFailure as error:
        if not is_duplicate(error):
            raise
        known = operation.resource.record.model_fields
        raise unique_violation(operation, _fields(error, known)) from error


def pipeline_error(error: Exception) -> HybridkitError | None:
    """Return the error that a failed pipeline is to its caller, who can change what the server refuses about it."""
    found = read_error(error)
    is_the_callers = isinstance(error, OperationFailure) and error.code not in _NOT_THE_CALLERS
    if isinstance(found, InvalidQueryError) or (found is None and is_the_callers):
        return InvalidQueryError("the database can't run this pipeline", pointer="/pipeline")
    return found


def is_duplicate(error: Exception) -> bool:
    """Return whether a unique index refused the document; neosqlite's wire server has only SQLite's words for it."""
    return isinstance(error, DuplicateKeyError) or str(error).startswith("UNIQUE constraint failed")


def _is_too_long(error: OperationFailure) -> bool:
    """Return whether a value is too long for an index; FerretDB has PostgreSQL's words for that, under another code."""
    return error.code == _KEY_TOO_LONG or (error.code == _PROGRAM_LIMIT and "index row" in str(error))


def _first_of(error: BulkWriteError) -> OperationFailure:
    """Return the failure of the first write of several."""
    refused: Sequence[Mapping[str, Any]] = error.details.get("writeErrors") or ()
    for told in refused:
        kind = DuplicateKeyError if told.get("code") == _DUPLICATE else WriteError
        return kind(str(told.get("errmsg", "")), told.get("code"), told)
    return WriteConcernError("not durable", error.code, error.details)


def _fields(error: OperationFailure, known: Collection[str] = ()) -> tuple[str, ...]:
    """Return the fields of the violated index, where the server names them; names of fields may have `__` in them."""
    details: dict[str, Any] = dict(error.details or {})
    if isinstance(details.get("keyPattern"), Mapping):
        pattern: Mapping[str, Any] = details["keyPattern"]
        return tuple("id" if name == "_id" else name for name in pattern)
    named = _INDEX_NAME.search(str(details.get("errmsg", "")))
    if named is None:
        return ()
    name = re.sub(r"^_id_$", "id", named["quoted"] or named["name"])
    found, part = list[str](), ""
    for piece in name.split("__"):
        part = f"{part}__{piece}" if part else piece.removeprefix("-")
        if not known or part.partition(".")[0] in known:
            found.append(part)
            part = ""
    return tuple(found)
