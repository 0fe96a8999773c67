"""From SQLSTATE to the error tree, https://www.postgresql.org/docs/current/errcodes-appendix.html.

PostgreSQL's own words quote values, so none of them goes on: neither to the caller nor into a log. What the log gets is
the `Diagnosis`: names only.
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
"""A change in a transaction that only reads: after a failover, on the old primary or on a replica."""
_RETRY_AFTER_SECONDS: Final = 1.0
_QUERY_STATES: Final = ("42883", "42804")
"""No such operator, mismatched types: the filter compares what can't be compared."""
_GONE: Final = ("08", "53", "57", "58", "F0", "28000", "28P01", "3D000", "25P03", "25P04", "HV00N")
"""Connections, resources, an operator's intervention, the system and its files; no way in; what ends a transaction
that takes too long; a foreign server that does not answer."""
_ENDING: Final = ("08", "57P", "25P03", "25P04", "26", READ_ONLY)
"""The connection leads nowhere, or to a server that is on its way out."""
_RULES: Final = ("22", "23", "44", "54", "428C9", "P0001", "P0002", "P0003")
"""Values, constraints, a view's check, limits of the program (an index takes no text that long), generated columns,
and what a function in the database refuses: `RAISE EXCEPTION`, or a `STRICT` that finds no row, or several."""
_NO_RULES: Final = ("2200H",)
"""A sequence has come to its end, which no other value of the caller's helps."""
_DOUBTFUL: Final = ("0A000", "42704", "42804", "42883", "XX000")
"""What a statement meets that was prepared before a migration, and a mistake in the code too."""
_OUTDATED: Final = {"InvalidCachedStatementError", "OutdatedSchemaCacheError"}
_POLICY_CHECK: Final = "ExecWithCheckOptions"
_RAISED: Final = "exec_stmt_raise"
"""The function of PostgreSQL that executes `RAISE` of PL/pgSQL."""
UNTAKEN: Final = (ValueError, TypeError, LookupError)
"""What a column's type raises for a value that it doesn't take."""
_LOGGED: Final = ("sqlstate", "schema", "table", "column", "constraint", "domain")
_KEY_COLUMNS: Final = re.compile(r"\((?P<columns>.+?)\)=\(")

_log = get_logger("hybridkit.dataservice")


class OutdatedError(UnavailableError):
    """A migration has overtaken the connection: nothing was done, and a new connection knows the schema."""

    def __init__(self) -> None:
        super().__init__("the schema has just changed", retry_after_seconds=0.1)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What PostgreSQL says about a failure without quoting values.

    Attributes:
        sqlstate: five characters; empty where the connection broke.
        schema: of the table.
        table: that it is about.
        column: that it is about.
        constraint: that is violated, or the index.
        domain: whose rule it is, or another type.
        routine: of PostgreSQL's own source.
        severity: `ERROR` where the connection goes on.
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
        """The diagnosis in what a driver raised."""
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
        """Its parts that are there."""
        told = asdict(self)
        return {name: told[name] for name in _LOGGED if told[name]}

    @property
    def is_undone(self) -> bool:
        """Whether PostgreSQL itself, and no proxy before it, says that nothing of the statement or commit is there."""
        return self.severity == "ERROR" and self.routine != ""


def sqlstate_of(error: BaseException) -> str:
    """The SQLSTATE of what a driver raised; empty where there is none, as when the connection broke."""
    return Diagnosis.of(error).sqlstate


def constraint_of(error: BaseException) -> str:
    """The name of the violated constraint; empty where there is none."""
    return Diagnosis.of(error).constraint


def database_error(error: Exception) -> HybridkitError | None:
    """What that failure of a statement means to the caller; None for a mistake in the code."""
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
    """As `database_error`, for a filter: a value that can't be compared is a mistake in the query."""
    state = sqlstate_of(error)
    if state.startswith(("22", "54")) or state in _QUERY_STATES:
        return InvalidQueryError("the database can't compare a value of this filter with its field")
    return database_error(error)


def commit_error(error: Exception) -> HybridkitError | None:
    """As `database_error`, for a commit: if the connection is gone, nobody here knows what became of it."""
    found = database_error(error)
    is_known = Diagnosis.of(error).is_undone or sqlstate_of(error) == READ_ONLY or is_outdated(error)
    if isinstance(found, UnavailableError) and not is_known:
        return OutcomeUnknownError(
            "the connection to the database broke during the commit; the same Idempotency-Key finds out"
        )
    return found


def read_only_error(_error: Exception | None = None) -> UnavailableError:
    """The server takes no writes, which another one does, or this one later."""
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
"""By SQLSTATE or its first characters; the first that fits."""


# ── connections ──────────────────────────────────────────────────────────────────────────────────


def ends_connection(error: Exception) -> bool:
    """Whether nothing more should be asked of the connection that this came from, nor of those opened before it."""
    return sqlstate_of(error).startswith(_ENDING)


def is_outdated(error: Exception) -> bool:
    """Whether the driver knows that the schema has changed since it prepared the statement or learned a type."""
    names = {type(cause).__name__ for cause in _chain(error)}
    return sqlstate_of(error).startswith("26") or not _OUTDATED.isdisjoint(names)


def may_be_outdated(error: Exception) -> bool:
    """Whether that can come from a migration since the statement was prepared: it may work on a new connection."""
    found = Diagnosis.of(error)
    return found.sqlstate in _DOUBTFUL and found.routine != _RAISED


# ── the log ──────────────────────────────────────────────────────────────────────────────────────


def note(error: Exception, found: Exception | None) -> None:
    """Log what the database has said, for those who look for the reason of an answer.

    Lost races are left out, as they are run again; mistakes in the code too, which are logged with their stack.
    """
    if not isinstance(found, HybridkitError) or isinstance(found, ConflictError):
        return
    told = Diagnosis.of(error).to_log()
    if isinstance(found, TemporaryError | OutcomeUnknownError):
        _log.warning("the database failed", code=found.code, error=type(error).__name__, **told)
    else:
        _log.info("the database refused", code=found.code, **told)


# ── what a driver raises ─────────────────────────────────────────────────────────────────────────


def _chain(error: BaseException) -> Iterator[BaseException]:
    """SQLAlchemy wraps its adapter's error, which wraps the driver's."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.orig if isinstance(cause, DBAPIError) and cause.orig else cause.__cause__


def _own_state(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None)
    if state is None and type(error).__name__ == "DataError":  # asyncpg's own: it can't send such a value
        return "22000"
    if type(error) is StatementError and isinstance(error.orig, UNTAKEN):
        return "22000"
    return state if isinstance(state, str) else None


def _text(error: BaseException, name: str) -> str:
    value = getattr(error, name, None)
    return value if isinstance(value, str) else ""


def _is_refusal(found: Diagnosis) -> bool:
    """Whether another value of the caller's would have been taken.

    A function in the database refuses by whatever code it likes; one that PostgreSQL has no meaning for is such a code.
    """
    if found.sqlstate in _NO_RULES:
        return found.routine == _RAISED
    return (
        found.sqlstate.startswith(_RULES)
        or found.routine in (_RAISED, _POLICY_CHECK)
        or (found.sqlstate != "" and found.sqlstate[:2] not in _KNOWN_CLASSES)
    )


def _classes() -> frozenset[str]:
    """The classes of SQLSTATEs that PostgreSQL itself has."""
    exceptions: Any = vars(asyncpg.exceptions)
    states = (getattr(kind, "sqlstate", None) for kind in exceptions.values())
    return frozenset(state[:2] for state in states if isinstance(state, str))


_KNOWN_CLASSES: Final = _classes()


def _is_connection_failure(error: Exception) -> bool:
    """No answer, no route, or a driver that found its connection closed, or closing in the middle of an answer."""
    lost = any(isinstance(cause, TimeoutError | OSError) for cause in _chain(error))
    return lost or _driver_error(error) in {"InterfaceError", "InternalClientError"}


def _driver_error(error: Exception) -> str:
    """The name of the driver's error, or of its twin, whose classes SQLAlchemy's adapter makes at run time."""
    return type(error.orig if isinstance(error, DBAPIError) else error).__name__


def _columns(error: Exception) -> tuple[str, ...]:
    """The columns in `Key (email)=(…) already exists.`, in any language of the server; an expression has none."""
    details = (getattr(cause, "detail", None) for cause in _chain(error))
    for detail in details:
        if isinstance(detail, str) and (match := _KEY_COLUMNS.search(detail)):
            return tuple(name for name in match["columns"].split(", ") if name.isidentifier())
    return ()
