"""What PyMongo raises becomes an error that says what the caller can do, without the server's words."""

import pytest
from bson.errors import InvalidDocument
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConnectionFailure,
    CursorNotFound,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    InvalidOperation,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WriteError,
    WTimeoutError,
)

from hybridkit.dataservice._mongo._driver._errors import pipeline_error, read_error, write_error
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


def bulk(**details: list[dict[str, object]]) -> BulkWriteError:
    return BulkWriteError({"writeErrors": [], "writeConcernErrors": [], **details})


@pytest.mark.parametrize(
    ("error", "on_read", "on_write"),
    [
        (ServerSelectionTimeoutError("CANARY"), UnavailableError, UnavailableError),
        (WaitQueueTimeoutError("CANARY"), OverloadedError, OverloadedError),
        (ConnectionFailure("CANARY"), UnavailableError, UnavailableError),
        (AutoReconnect("CANARY"), UnavailableError, OutcomeUnknownError),
        (NetworkTimeout("CANARY"), DeadlinePassedError, OutcomeUnknownError),
        (NotPrimaryError("10107 CANARY", {"code": 10107}), UnavailableError, UnavailableError),
        (NotPrimaryError("13436 CANARY", {"code": 13436}), UnavailableError, UnavailableError),
        (NotPrimaryError("no CANARY", ["odd"]), UnavailableError, OutcomeUnknownError),
        (NotPrimaryError("189 CANARY", {"code": 189}), UnavailableError, OutcomeUnknownError),
        (OperationFailure("CANARY", 9001), UnavailableError, OutcomeUnknownError),
        (OperationFailure("CANARY", 133), UnavailableError, UnavailableError),
        (WriteConcernError("CANARY", 64), UnavailableError, OutcomeUnknownError),
        (WriteConcernError("CANARY", 100), UnavailableError, OutcomeUnknownError),
        (WTimeoutError("CANARY", 64), UnavailableError, OutcomeUnknownError),
        (bulk(writeConcernErrors=[{"code": 91, "errmsg": "CANARY"}]), UnavailableError, OutcomeUnknownError),
        (bulk(writeErrors=[{"code": 11000, "errmsg": "CANARY"}]), None, UniqueViolationError),
        (bulk(writeErrors=[{"code": 121, "errmsg": "CANARY"}]), InvalidQueryError, InvalidRequestError),
        (OperationFailure("CANARY", 24), ConflictError, ConflictError),
        (OperationFailure("CANARY", 112), ConflictError, ConflictError),
        *(
            (OperationFailure("CANARY", code), UnavailableError, OutcomeUnknownError)
            for code in (225, 237, 246, 262, 290, 11601)
        ),
        (CursorNotFound("CANARY", 43), UnavailableError, OutcomeUnknownError),
        (ExecutionTimeout("CANARY", 50), DeadlinePassedError, DeadlineExceededError),
        (OperationFailure("CANARY", 2), InvalidQueryError, InvalidRequestError),
        (WriteError("index row size 3032 exceeds CANARY", 261), None, InvalidRequestError),
        (WriteError("index row requires 100032 bytes, CANARY", 261), None, InvalidRequestError),
        (WriteError("CANARY", 17280), None, InvalidRequestError),
        (OperationFailure("CANARY", 261), None, None),
        (OperationFailure("CANARY", 59), NotSupportedError, NotSupportedError),
        (InvalidDocument("CANARY"), InvalidQueryError, InvalidRequestError),
        (OverflowError("CANARY"), InvalidQueryError, InvalidRequestError),
        (DocumentTooLarge("CANARY"), InvalidQueryError, InvalidRequestError),
        (OperationFailure("CANARY", 13), None, None),
        (InvalidOperation("CANARY"), None, None),
    ],
    ids=lambda value: (
        f"{type(value).__name__} {getattr(value, 'code', '')} {str(value)[:13]}"
        if isinstance(value, Exception)
        else None
    ),
)
def test_a_failure_says_what_the_caller_can_do(
    error: Exception, on_read: type[HybridkitError] | None, on_write: type[HybridkitError] | None
) -> None:
    """Each error of the driver has its class for reads and for writes, and none of its words."""
    for expected, found in ((on_read, read_error(error)), (on_write, write_error(error))):
        assert (None if found is None else type(found)) is expected
        assert "CANARY" not in str(found)


def test_an_interrupted_pipeline_is_not_the_callers_mistake() -> None:
    """A lost cursor can be tried again; a stage that the server refuses can't."""
    assert isinstance(pipeline_error(CursorNotFound("CANARY", 43)), UnavailableError)
    assert isinstance(pipeline_error(OperationFailure("CANARY", 16020)), InvalidQueryError)


@pytest.mark.parametrize(
    ("details", "fields"),
    [
        ({"keyPattern": {"email": 1, "tenant": 1}}, ("email", "tenant")),
        ({"keyPattern": {"_id": 1}}, ("id",)),
        (
            {"errmsg": "E11000 duplicate key error collection: app.users index: email dup key: { x }"},
            ("email",),
        ),
        ({"errmsg": "Duplicate key violation on the requested collection: Index 'a__b'"}, ("a", "b")),
        ({"errmsg": "Duplicate key violation on the requested collection: Index '_id_'"}, ("id",)),
        ({}, ()),
    ],
)
def test_a_duplicate_names_the_fields_of_its_index(
    details: dict[str, object], fields: tuple[str, ...]
) -> None:
    """mongod tells the pattern, FerretDB the index, whose name is made of the fields."""
    found = write_error(DuplicateKeyError("x", 11000, details))
    assert isinstance(found, UniqueViolationError)
    assert found.fields == fields
