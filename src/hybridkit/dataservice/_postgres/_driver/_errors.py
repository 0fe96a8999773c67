"""Translate PostgreSQL's errors by their SQLSTATE, https://www.postgresql.org/docs/current/errcodes-appendix.html.

PostgreSQL's messages quote values, so they reach neither the caller nor a log. The log gets the `Diagnosis`, which has
only names.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import asyncpg  # type: ignore[import-untyped] # it ships no types
from sqlalchemy.exc import DBAPIError, StatementError

from hybridkit.errors import (
    ConflictError,
    DeadlinePassedError,
    ForeignKeyError,
    HybridkitError,
    InvalidQueryError,
    InvalidRequestError,
    LockTimeoutError,
    OutcomeUnknownError,
    TemporaryError,
    UnavailableError,
    UniqueViolationError,
)
from hybridkit.observability import get_logger

READ_ONLY: Final = "25006"
"""A change in a read-only transaction: after a failover, on the old primary or on a replica."""
_RETRY_AFTER_SECONDS: Final = 1.0
_QUERY_STATES: Final = ("42883", "42804")
"""No such operator, mismatched types: the filter compares values that can't be compared."""
_GONE: Final = ("08", "53", "57", "58", "F0", "28000", "28P01", "3D000", "25P03", "25P04", "HV00N")
"""The server is gone or refuses: connection failures, lack of resources, an operator's intervention, errors of the
system and its files, a refused login, timeouts of a transaction, a foreign server that does not answer."""
_ENDING: Final = ("08", "57P", "25P03", "25P04", "26", READ_ONLY)
"""The connection is broken, or leads to a server that shuts down or takes no writes."""
_RULES: Final = ("22", "23", "44", "54", "428C9", "P0001", "P0002", "P0003")
"""Refusals of values: wrong values, constraints, a view's check, limits of the program (an index takes no text that
long), generated columns, and functions in the database: `RAISE EXCEPTION`, or a `STRICT` that finds no or many rows."""
_NO_RULES: Final = ("2200H",)
"""A sequence has come to its end; another value of the caller would not help."""
_DOUBTFUL: Final = ("0A000", "42704", "42804", "42883", "XX000")
"""Errors both of statements that were prepared before a migration and of mistakes in the code."""
_OUTDATED: Final = {"InvalidCachedStatementError", "OutdatedSchemaCacheError"}
_POLICY_CHECK: Final = "ExecWithCheckOptions"
_RAISED: Final = "exec_stmt_raise"
"""The function of PostgreSQL's source that executes `RAISE` of PL/pgSQL."""
UNTAKEN: Final = (ValueError, TypeError, LookupError)
"""Errors that a column's type raises for a value that it doesn't take."""
_LOGGED: Final = ("sqlstate", "schema", "table", "column", "constraint", "domain")
_KEY_COLUMNS: Final = re.compile(r"\((?P<columns>.+?)\)=\(")

_log = get_logger("hybridkit.dataservice")


class OutdatedError(UnavailableError):
    """The schema has changed since the connection was opened: nothing was done, and a new connection will do."""

    def __init__(self) -> None:
        super().__init__("the schema has just changed", retry_after_seconds=0.1)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The parts of PostgreSQL's error that quote no values; each is empty if PostgreSQL doesn't give it.

    Attributes:
        sqlstate: five characters; empty if the connection broke.
        schema: the schema of the table.
        table: the table that the error is about.
        column: the column that the error is about.
        constraint: the violated constraint, or its index.
        domain: the domain whose rule is violated, or another type.
        routine: the function in PostgreSQL's source that reported the error.
        severity: `ERROR` if the connection can be used further.
    """

    sqlstate: str = ""
    schema: str = ""
    table: str = ""
    column: str = ""
    constraint: str = ""
    domain: str = ""
    routine: str = ""
    severity: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """Read the diagnosis from a driver's error or its causes."""
        found = next((cause for cause in reversed([*_chain(error)]) if _own_state(cause)), None)
        if found is None:
            return cls()
        return cls(
            sqlstate=_own_state(found) or "",
            schema=_text(found, "schema_name"),
            table=_text(found, "table_name"),
            column=_text(found, "column_name"),
            constraint=_text(found, "constraint_name"),
            domain=_text(found, "data_type_name"),
            routine=_text(found, "server_source_function"),
            severity=_text(found, "severity_en"),
        )

    def to_log(self) -> Mapping[str, str]:
        """Return the parts to log that are not empty."""
        told = asdict(self)
        return {name: told[name] for name in _LOGGED if told[name]}

    @property
    def is_undone(self) -> bool:
        """Whether PostgreSQL itself, not a proxy before it, says that the statement or commit was undone."""
        return self.severity == "ERROR" and self.routine != ""


def sqlstate_of(error: BaseException) -> str:
    """Return the SQLSTATE of a driver's error; empty if there is none, as when the connection broke."""
    return Diagnosis.of(error).sqlstate


def constraint_of(error: BaseException) -> str:
    """Return the name of the violated constraint; empty if there is none."""
    return Diagnosis.of(error).constraint


def database_error(error: Exception) -> HybridkitError | None:
    """Return the error for the caller of a failed statement; None for a mistake in the code."""
    found = Diagnosis.of(error)
    if is_outdated(error):
        return OutdatedError()
    if not found.sqlstate:
        return _unanswered(error) if _is_connection_failure(error) else None
    for states, make_error in _BY_SQLSTATE:
        if found.sqlstate.startswith(states):
            return make_error(error)
    return InvalidRequestError("the database refuses a value") if _is_refusal(found) else None


def query_error(error: Exception) -> HybridkitError | None:
    """Translate as `database_error`, but blame a value that can't be compared on the query."""
    state = sqlstate_of(error)
    if state.startswith(("22", "54")) or state in _QUERY_STATES:
        return InvalidQueryError("the database can't compare a value of this filter with its field")
    return database_error(error)


def commit_error(error: Exception) -> HybridkitError | None:
    """Translate as `database_error`, but leave the outcome unknown if the connection broke during the commit."""
    found = database_error(error)
    is_known = Diagnosis.of(error).is_undone or sqlstate_of(error) == READ_ONLY or is_outdated(error)
    if isinstance(found, UnavailableError) and not is_known:
        return OutcomeUnknownError(
            "the connection to the database broke during the commit; the same Idempotency-Key finds out"
        )
    return found


def read_only_error(_error: Exception | None = None) -> UnavailableError:
    """Return the error for a server that takes no writes at the moment, as after a failover."""
    return UnavailableError(
        "the database takes no writes at the moment", retry_after_seconds=_RETRY_AFTER_SECONDS
    )


def _taken(error: Exception) -> HybridkitError:
    return UniqueViolationError("another record has this value", fields=_columns(error))


def _needed(_error: Exception) -> HybridkitError:
    return ForeignKeyError("a record refers to one that is not there, or is still referred to")


def _unknown(_error: Exception) -> HybridkitError:
    return OutcomeUnknownError(
        "the database doesn't know what became of it; the same Idempotency-Key finds out"
    )


def _lost(_error: Exception) -> HybridkitError:
    return ConflictError("the database chose another transaction", retry_after_seconds=0.1)


def _locked(_error: Exception) -> HybridkitError:
    return LockTimeoutError("another transaction holds a lock", retry_after_seconds=0.1)


def _late(_error: Exception) -> HybridkitError:
    return DeadlinePassedError("the database stopped at the deadline; nothing was changed")


def _unanswered(_error: Exception) -> HybridkitError:
    return UnavailableError("the database does not answer", retry_after_seconds=_RETRY_AFTER_SECONDS)


_BY_SQLSTATE: Final[Sequence[tuple[tuple[str, ...], Callable[[Exception], HybridkitError]]]] = (
    (("23505", "23P01"), _taken),
    (("23503", "23001"), _needed),
    (("40003",), _unknown),
    (("40", "72"), _lost),
    (("55P03", "55006"), _locked),
    (("57014",), _late),
    ((READ_ONLY,), read_only_error),
    (_GONE, _unanswered),
)
"""Errors by SQLSTATE or its first characters; the first entry that fits counts."""


# ── connections ───────────────────────────────────────────────────────────────────────────────────


def ends_connection(error: Exception) -> bool:
    """Return whether neither this connection nor those opened before it should be used again."""
    return sqlstate_of(error).startswith(_ENDING)


def is_outdated(error: Exception) -> bool:
    """Return whether the driver knows that the schema has changed since it prepared the statement or read a type."""
    names = {type(cause).__name__ for cause in _chain(error)}
    return sqlstate_of(error).startswith("26") or not _OUTDATED.isdisjoint(names)


def may_be_outdated(error: Exception) -> bool:
    """Return whether a migration since the statement was prepared may be the cause: a new connection may do."""
    found = Diagnosis.of(error)
    return found.sqlstate in _DOUBTFUL and found.routine != _RAISED


# ── the log ───────────────────────────────────────────────────────────────────────────────────────


def note(error: Exception, found: Exception | None) -> None:
    """Log a failure, so that the reason of a response can be found.

    Lost races are left out, as they are run again, and mistakes in the code, which are logged with their stack.
    """
    if not isinstance(found, HybridkitError) or isinstance(found, ConflictError):
        return
    told = Diagnosis.of(error).to_log()
    if isinstance(found, TemporaryError | OutcomeUnknownError):
        _log.warning("the database failed", code=found.code, error=type(error).__name__, **told)
    else:
        _log.info("the database refused", code=found.code, **told)


# ── errors of the driver ──────────────────────────────────────────────────────────────────────────


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes: SQLAlchemy wraps its adapter's error, which wraps the driver's."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.orig if isinstance(cause, DBAPIError) and cause.orig else cause.__cause__


def _own_state(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None)
    if state is None and type(error).__name__ == "DataError":  # of asyncpg, which can't send such a value
        return "22000"
    if type(error) is StatementError and isinstance(error.orig, UNTAKEN):
        return "22000"
    return state if isinstance(state, str) else None


def _text(error: BaseException, name: str) -> str:
    value = getattr(error, name, None)
    return value if isinstance(value, str) else ""


def _is_refusal(found: Diagnosis) -> bool:
    """Return whether another value of the caller would have been accepted.

    A function in the database may refuse with any SQLSTATE, also with one that PostgreSQL itself doesn't define.
    """
    if found.sqlstate in _NO_RULES:
        return found.routine == _RAISED
    return (
        found.sqlstate.startswith(_RULES)
        or found.routine in (_RAISED, _POLICY_CHECK)
        or (found.sqlstate != "" and found.sqlstate[:2] not in _KNOWN_CLASSES)
    )


def _classes() -> frozenset[str]:
    """Return the classes of SQLSTATEs that PostgreSQL itself defines."""
    exceptions: Any = vars(asyncpg.exceptions)
    states = (getattr(kind, "sqlstate", None) for kind in exceptions.values())
    return frozenset(state[:2] for state in states if isinstance(state, str))


_KNOWN_CLASSES: Final = _classes()


def _is_connection_failure(error: Exception) -> bool:
    """Return whether the server did not answer, or the driver found its connection closed or closing."""
    lost = any(isinstance(cause, TimeoutError | OSError) for cause in _chain(error))
    return lost or _driver_error(error) in {"InterfaceError", "InternalClientError"}


def _driver_error(error: Exception) -> str:
    """Return the class name of the driver's error, or of its copy that SQLAlchemy's adapter makes at run time."""
    return type(error.orig if isinstance(error, DBAPIError) else error).__name__


def _columns(error: Exception) -> tuple[str, ...]:
    """Return the columns of `Key (email)=(…) already exists.`, in any language; none for an expression."""
    details = (getattr(cause, "detail", None) for cause in _chain(error))
    for detail in details:
        if isinstance(detail, str) and (match := _KEY_COLUMNS.search(detail)):
            return tuple(name for name in match["columns"].split(", ") if name.isidentifier())
    return ()
