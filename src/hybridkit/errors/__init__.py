"""Every error that hybridkit raises, sorted by what the caller can do about it.

```
HybridkitError
├── TemporaryError                     try again: nothing was done, and waiting can help
│   ├── UnavailableError               a service, database or broker does not answer
│   │   ├── NotConnectedError          no connection to the broker right now
│   │   ├── BlockedError               the broker is alive but refuses publishers (memory or disk alarm)
│   │   ├── OverloadedError            alive, but every place in the queue for it is taken
│   │   └── ServerStartError           a local development server did not come up
│   ├── RateLimitedError               slow down; `retry_after_seconds` says by how much
│   ├── ConflictError                  lost a race in the database (serialization, deadlock)
│   │   └── LockTimeoutError           a lock was not to be had in time
│   ├── InProgressError                another call with the same idempotency key is still running
│   ├── NotYetError                    something else has to happen first; a consumer waits up to 15 minutes for it
│   ├── DeadlinePassedError            the time was over before anything was begun, or during a read
│   └── NackedError                    the broker took the message and gave it back
├── RejectedError                      fix the request: the same call will fail again
│   ├── NotFoundError                  no such record, or no such route
│   │   └── NoRouteError               no such route: an older service than its caller expects, or another one
│   ├── MethodNotAllowedError          the route is there, but not for this HTTP method
│   ├── InvalidRequestError            the body does not fit the resource; `errors` has pointers
│   ├── InvalidQueryError              a filter, order or page token that the resource does not allow
│   │   ├── PageTokenError             the token belongs to another query, or was made up
│   │   └── AnswerTooLargeError        the records come to more than one answer may have; ask for fewer
│   ├── InvalidHeaderError             a header field that can't be read, or that says two things
│   ├── NotAcceptableError             the answer has none of the media types that the caller takes
│   ├── UniqueViolationError           another record has that value
│   ├── ForeignKeyError                the record refers to one that is not there
│   ├── StaleVersionError              the record changed since it was read
│   ├── RequirementNotMetError         the record is not as the write's `require` demands
│   ├── PreconditionRequiredError      a change has to name the state that the caller has read
│   ├── KeyMissingError                a write came without an idempotency key
│   ├── KeyReusedError                 an idempotency key came back with another payload
│   │   ├── RequestKeyReusedError       the same at an API, with another request of the same caller
│   │   └── StepReusedError             a claim's step came back as another one; name it with `step=`
│   ├── AnswerNotKeptError             done before; its answer was too large to be given again
│   ├── UriTooLongError                the query doesn't fit into a URL; send it as the body of `:query`
│   ├── HeadTooLargeError              the header fields are too many or too long
│   ├── UnsupportedMediaTypeError      the body is no JSON, or it is compressed
│   ├── UnauthenticatedError           the caller doesn't prove who it is
│   │   └── SessionEndedError          its session has ended, or has another id now
│   ├── AccessDeniedError              the caller may not do this
│   │   └── CrossSiteError             a page of another site has made the browser send this
│   ├── RuleViolationError             a rule of the business forbids it; subclass it, with a code of your own
│   └── PayloadError                   bytes that are no valid message
│       ├── MalformedPayloadError      not JSON, not an envelope, or data of the wrong shape
│       ├── PayloadTooLargeError       over the size limit, refused before anything is read or sent
│       ├── UnknownEventTypeError      no registered event has this type
│       └── UnknownEventVersionError   the type is known, this version of it is not
├── MisuseError                        fix the code or the deployment
│   ├── SettingsError                  every problem of the configuration in one report
│   ├── MissingExtraError              an optional dependency is not installed (also an ImportError)
│   ├── DeclarationError               a Resource, Event, Retry or consumer that contradicts itself
│   ├── SharedStepError                two tasks of a claim write the same at once; name each with `step=`
│   ├── UnroutableError                no queue wants what was published
│   ├── TopologyError                  the broker has a queue or exchange with other arguments
│   ├── ServerMissingError             no local server of that kind can be had on this machine
│   └── NotSupportedError              the server at hand cannot do this
│       └── TransactionsUnavailableError   its database has no transactions over several records
├── ResponseError                      look at the other side: it answered something outside the contract
└── OutcomeUnknownError                it may have happened or not: repeat it with the same identity
    ├── DeadlineExceededError          the time ran out after a write was sent
    ├── ClaimLostError                 another holder has taken this work over
    └── LockLostError                  the lock went to another holder while the block ran
```

A data service sends an error as `application/problem+json` (RFC 9457). The problem's `code` and HTTP status are class
attributes here, so that the service and its client cannot disagree.
"""

from hybridkit.errors._field_problem import FieldProblem
from hybridkit.errors._misuse import (
    DeclarationError,
    MissingExtraError,
    MisuseError,
    NotSupportedError,
    ServerMissingError,
    SettingsError,
    SharedStepError,
    TopologyError,
    TransactionsUnavailableError,
    UnroutableError,
)
from hybridkit.errors._outside_contract import ResponseError
from hybridkit.errors._rejected import (
    AccessDeniedError,
    AnswerNotKeptError,
    AnswerTooLargeError,
    CrossSiteError,
    ForeignKeyError,
    HeadTooLargeError,
    InvalidHeaderError,
    InvalidQueryError,
    InvalidRequestError,
    KeyMissingError,
    KeyReusedError,
    MalformedPayloadError,
    MethodNotAllowedError,
    NoRouteError,
    NotAcceptableError,
    NotFoundError,
    PageTokenError,
    PayloadError,
    PayloadTooLargeError,
    PreconditionRequiredError,
    RejectedError,
    RequestKeyReusedError,
    RequirementNotMetError,
    SessionEndedError,
    StaleVersionError,
    StepReusedError,
    UnauthenticatedError,
    UniqueViolationError,
    UnknownEventTypeError,
    UnknownEventVersionError,
    UnsupportedMediaTypeError,
    UriTooLongError,
)
from hybridkit.errors._root import HybridkitError
from hybridkit.errors._rule_violation import RuleViolationError
from hybridkit.errors._temporary import (
    BlockedError,
    ConflictError,
    DeadlinePassedError,
    InProgressError,
    LockTimeoutError,
    NackedError,
    NotConnectedError,
    NotYetError,
    OverloadedError,
    RateLimitedError,
    ServerStartError,
    TemporaryError,
    UnavailableError,
)
from hybridkit.errors._unknown import (
    ClaimLostError,
    DeadlineExceededError,
    LockLostError,
    OutcomeUnknownError,
)

__all__ = [
    "AccessDeniedError",
    "AnswerNotKeptError",
    "AnswerTooLargeError",
    "BlockedError",
    "ClaimLostError",
    "ConflictError",
    "CrossSiteError",
    "DeadlineExceededError",
    "DeadlinePassedError",
    "DeclarationError",
    "FieldProblem",
    "ForeignKeyError",
    "HeadTooLargeError",
    "HybridkitError",
    "InProgressError",
    "InvalidHeaderError",
    "InvalidQueryError",
    "InvalidRequestError",
    "KeyMissingError",
    "KeyReusedError",
    "LockLostError",
    "LockTimeoutError",
    "MalformedPayloadError",
    "MethodNotAllowedError",
    "MissingExtraError",
    "MisuseError",
    "NackedError",
    "NoRouteError",
    "NotAcceptableError",
    "NotConnectedError",
    "NotFoundError",
    "NotSupportedError",
    "NotYetError",
    "OutcomeUnknownError",
    "OverloadedError",
    "PageTokenError",
    "PayloadError",
    "PayloadTooLargeError",
    "PreconditionRequiredError",
    "RateLimitedError",
    "RejectedError",
    "RequestKeyReusedError",
    "RequirementNotMetError",
    "ResponseError",
    "RuleViolationError",
    "ServerMissingError",
    "ServerStartError",
    "SessionEndedError",
    "SettingsError",
    "SharedStepError",
    "StaleVersionError",
    "StepReusedError",
    "TemporaryError",
    "TopologyError",
    "TransactionsUnavailableError",
    "UnauthenticatedError",
    "UnavailableError",
    "UniqueViolationError",
    "UnknownEventTypeError",
    "UnknownEventVersionError",
    "UnroutableError",
    "UnsupportedMediaTypeError",
    "UriTooLongError",
]

# Tracebacks, logs and dead letters name a class by its public path, whatever file it is in.
for _name in __all__:
    globals()[_name].__module__ = __name__
