"""The part of the HTTP contract that data clients and data services share: headers, transactions, batches, problems.

Errors travel as `application/problem+json` (RFC 9457). `Problem.to_error` makes of a problem the error that
`Problem.from_error` was given, with its message and those of its attributes that a problem has members for, except that

* a class without a code of its own comes back as the most general one with that code, such as `UnavailableError` for
  `NotConnectedError`, or `MisuseError` for `SettingsError`;
* a `PayloadError` comes back as `InvalidRequestError`, and the sizes of one that was too large only in its message;
* `retry_after_seconds` comes back between 0 and `MAX_DELAY_SECONDS` of `hybridkit.retry`.
"""

from hybridkit.contract._headers import (
    CALLER_HEADER,
    IDEMPOTENCY_KEY_HEADER,
    IDEMPOTENCY_REPLAYED_HEADER,
    IDEMPOTENCY_REREAD_HEADER,
    MAX_BODY_BYTES,
    MAX_PAGE_BYTES,
    NDJSON_MEDIA_TYPE,
    parse_key,
    quote_key,
)
from hybridkit.contract._operations import (
    MAX_BATCH,
    MAX_OPERATIONS,
    AppendOperation,
    AssertOperation,
    BatchGet,
    BatchRecord,
    BatchWrite,
    CreateOperation,
    DeleteOperation,
    Emission,
    Operation,
    ReplaceOperation,
    Transaction,
    TransactionResult,
    UpdateOperation,
    UpsertOperation,
)
from hybridkit.contract._problems import PROBLEM_MEDIA_TYPE, Problem, ProblemField, whole_characters
from hybridkit.contract._streams import (
    MAX_APPENDED_EVENTS,
    MAX_EVENT_BYTES,
    MAX_STREAM_PAGE,
    Append,
    AppendResult,
    StreamEvent,
    StreamSnapshot,
)

__all__ = [
    "CALLER_HEADER",
    "IDEMPOTENCY_KEY_HEADER",
    "IDEMPOTENCY_REPLAYED_HEADER",
    "IDEMPOTENCY_REREAD_HEADER",
    "MAX_APPENDED_EVENTS",
    "MAX_BATCH",
    "MAX_BODY_BYTES",
    "MAX_EVENT_BYTES",
    "MAX_OPERATIONS",
    "MAX_PAGE_BYTES",
    "MAX_STREAM_PAGE",
    "NDJSON_MEDIA_TYPE",
    "PROBLEM_MEDIA_TYPE",
    "Append",
    "AppendOperation",
    "AppendResult",
    "AssertOperation",
    "BatchGet",
    "BatchRecord",
    "BatchWrite",
    "CreateOperation",
    "DeleteOperation",
    "Emission",
    "Operation",
    "Problem",
    "ProblemField",
    "ReplaceOperation",
    "StreamEvent",
    "StreamSnapshot",
    "Transaction",
    "TransactionResult",
    "UpdateOperation",
    "UpsertOperation",
    "parse_key",
    "quote_key",
    "whole_characters",
]
