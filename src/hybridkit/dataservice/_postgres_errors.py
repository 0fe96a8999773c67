"""From SQLSTATE to the error tree, https://www.postgresql.org/docs/current/errcodes-appendix.html.

PostgreSQL's own words name tables and quote values, so none of them goes on; the logs have them.
"""

import re
from collections.abc import Iterator
from typing import Final

from sqlalchemy.exc import DBAPIError

from hybridkit.errors import (
    ConflictError,
    DeadlineExceededError,
    ForeignKeyError,
    HybridkitError,
    InvalidQueryError,
    InvalidRequestError,
    LockTimeoutError,
    OutcomeUnknownError,
    UnavailableError,
    UniqueViolationError,
)

__all__ = ["commit_error", "constraint_of", "database_error", "query_error", "sqlstate_of"]

_RETRY_AFTER_SECONDS: Final = 1.0
_QUERY_STATES: Final = ("42883", "42804")
"""No such operator, mismatched types: the filter compares what can't be compared."""
_GONE_CLASSES: Final = ("08", "53", "57", "58", "25P04")
"""Connections, resources, an operator's intervention, the system itself, and the transaction timeout's end."""
_KEY_COLUMNS = re.compile(r"\((?P<columns>.+?)\)=\(")


def sqlstate_of(error: BaseException) -> str:
    """The SQLSTATE of what a driver raised; empty where there is none, as when the connection broke."""
    return next((state for state in map(_own_state, _chain(error)) if state), "")


def constraint_of(error: BaseException) -> str:
    """The name of the violated constraint; empty where there is none."""
    names = (getattr(link, "constraint_name", None) for link in _chain(error))
    return next((name for name in names if isinstance(name, str)), "")


def database_error(error: Exception) -> HybridkitError | None:
    """What that failure of a statement means to the caller; None for a mistake in the code."""
    match sqlstate_of(error):
        case "23505":
            return UniqueViolationError("another record has this value", fields=_columns(error))
        case "23503":
            return ForeignKeyError("a record refers to one that is not there, or is still referred to")
        case "40001" | "40P01":
            return ConflictError("the database chose another transaction", retry_after_seconds=0.1)
        case "55P03":
            return LockTimeoutError("another transaction holds a lock", retry_after_seconds=0.1)
        case "57014":
            return DeadlineExceededError("the database stopped at the deadline; nothing was changed")
        case state if state.startswith(("22", "23")):
            return InvalidRequestError("the database refuses a value")
        case state if state.startswith(_GONE_CLASSES) or state in ("3D000", "28P01", "28000"):
            return UnavailableError("the database does not answer", retry_after_seconds=_RETRY_AFTER_SECONDS)
        case "" if _is_connection_failure(error):
            return UnavailableError("the database does not answer", retry_after_seconds=_RETRY_AFTER_SECONDS)
        case _ if _driver_error(error) == "InvalidCachedStatementError":
            # A migration ran meanwhile; the prepared plans are thrown away by now, and new ones are made.
            return UnavailableError("the schema has just changed", retry_after_seconds=0.1)
        case _:
            return None


def query_error(error: Exception) -> HybridkitError | None:
    """As `database_error`, for a filter: a value that can't be compared is a mistake in the query."""
    state = sqlstate_of(error)
    if state.startswith("22") or state in _QUERY_STATES:
        return InvalidQueryError("the database can't compare a value of this filter with its field")
    return database_error(error)


def commit_error(error: Exception) -> HybridkitError | None:
    """As `database_error`, for a commit: if the connection is gone, nobody here knows what became of it."""
    found = database_error(error)
    if isinstance(found, UnavailableError):
        return OutcomeUnknownError(
            "the connection to the database broke during the commit; the same Idempotency-Key finds out"
        )
    return found


def _chain(error: BaseException) -> Iterator[BaseException]:
    """SQLAlchemy wraps its adapter's error, which wraps the driver's."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.orig if isinstance(link, DBAPIError) and link.orig else link.__cause__


def _own_state(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None)
    if state is None and type(error).__name__ == "DataError":  # asyncpg's own: it can't send such a value
        return "22000"
    return state if isinstance(state, str) else None


def _is_connection_failure(error: Exception) -> bool:
    """No answer, no route, or a driver that found its connection closed, or closing in the middle of an answer."""
    lost = any(isinstance(link, TimeoutError | OSError) for link in _chain(error))
    return lost or _driver_error(error) in {"InterfaceError", "InternalClientError"}


def _driver_error(error: Exception) -> str:
    """The name of the driver's error, or of its twin, whose classes SQLAlchemy's adapter makes at run time."""
    return type(error.orig if isinstance(error, DBAPIError) else error).__name__


def _columns(error: Exception) -> tuple[str, ...]:
    """The columns in `Key (email)=(…) already exists.`, in any language of the server."""
    details = (getattr(link, "detail", None) for link in _chain(error))
    for detail in details:
        if isinstance(detail, str) and (match := _KEY_COLUMNS.search(detail)):
            return tuple(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", match["columns"]))
    return ()
