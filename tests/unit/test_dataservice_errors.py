"""From what a driver raises to the error tree: by SQLSTATE, never by words, and nothing of the words goes on."""

import pytest
from sqlalchemy.exc import DBAPIError

from hybridkit.dataservice._postgres_errors import (
    commit_error,
    constraint_of,
    database_error,
    query_error,
    sqlstate_of,
)
from hybridkit.dataservice._postgres_keys import _key_error
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

SECRET = "a value that nobody may see"


class PostgresError(Exception):
    """As asyncpg raises it."""

    def __init__(
        self, sqlstate: str | None, detail: str | None = None, constraint_name: str | None = None
    ) -> None:
        super().__init__(SECRET)
        self.sqlstate = sqlstate
        self.detail = detail
        self.constraint_name = constraint_name


class InterfaceError(Exception):
    """As SQLAlchemy's adapter raises it where the driver finds its connection closed."""


class InternalClientError(Exception):
    """As the adapter raises it where the server dies while the driver reads why: `cannot switch to state 15`."""


class InvalidCachedStatementError(Exception):
    """As SQLAlchemy's adapter raises it where a table has changed since the statement was prepared."""


def wrapped(error: Exception) -> DBAPIError:
    """As SQLAlchemy hands it on: around its adapter's error, which the driver's has caused."""
    of_the_adapter = InterfaceError | InternalClientError | InvalidCachedStatementError
    adapted = error if isinstance(error, of_the_adapter) else Exception(SECRET)
    if adapted is not error:
        adapted.__cause__ = error
    return DBAPIError(f"INSERT … {SECRET}", {"name": SECRET}, adapted)


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("23505", UniqueViolationError),
        ("23503", ForeignKeyError),
        ("23502", InvalidRequestError),
        ("23514", InvalidRequestError),
        ("22003", InvalidRequestError),
        ("22P05", InvalidRequestError),
        ("40001", ConflictError),
        ("40P01", ConflictError),
        ("55P03", LockTimeoutError),
        ("57014", DeadlineExceededError),
        ("25P04", UnavailableError),
        ("57P01", UnavailableError),
        ("57P03", UnavailableError),
        ("53300", UnavailableError),
        ("08006", UnavailableError),
        ("28P01", UnavailableError),
        ("3D000", UnavailableError),
    ],
)
def test_a_sqlstate_is_an_error(sqlstate: str, expected: type[HybridkitError]) -> None:
    found = database_error(wrapped(PostgresError(sqlstate)))
    assert type(found) is expected
    assert SECRET not in str(found)


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionRefusedError(),
        wrapped(InterfaceError("closed")),
        wrapped(InternalClientError("another operation is in progress")),
        wrapped(InvalidCachedStatementError("changed")),
    ],
)
def test_no_answer_is_unavailable(error: Exception) -> None:
    assert isinstance(database_error(error), UnavailableError)


@pytest.mark.parametrize(
    "error", [wrapped(PostgresError("42P01")), wrapped(PostgresError(None)), ValueError("x")]
)
def test_a_mistake_in_the_code_is_no_error_of_ours(error: Exception) -> None:
    assert database_error(error) is None
    assert commit_error(error) is None


@pytest.mark.parametrize(
    ("detail", "fields"),
    [
        ("Key (email)=(a@b) already exists.", ("email",)),
        ("Schlüssel »(owner_id, name)=(1, x (y)=(z))« existiert bereits.", ("owner_id", "name")),
        ("something else", ()),
        (None, ()),
    ],
)
def test_the_fields_of_a_unique_value_are_read_in_any_language(
    detail: str | None, fields: tuple[str, ...]
) -> None:
    found = database_error(wrapped(PostgresError("23505", detail)))
    assert isinstance(found, UniqueViolationError)
    assert found.fields == fields


@pytest.mark.parametrize("sqlstate", ["22P02", "22003", "42883", "42804"])
def test_a_filter_that_compares_the_incomparable_is_a_bad_query(sqlstate: str) -> None:
    assert isinstance(query_error(wrapped(PostgresError(sqlstate))), InvalidQueryError)


def test_other_failures_of_a_query_are_what_they_are() -> None:
    assert isinstance(query_error(wrapped(PostgresError("57014"))), DeadlineExceededError)


@pytest.mark.parametrize(
    "error", [TimeoutError(), wrapped(PostgresError("57P01")), wrapped(InterfaceError("closed"))]
)
def test_a_connection_that_breaks_in_a_commit_leaves_the_outcome_unknown(error: Exception) -> None:
    assert type(commit_error(error)) is OutcomeUnknownError


@pytest.mark.parametrize("sqlstate", ["40001", "23503"])
def test_a_refused_commit_is_known_to_be_undone(sqlstate: str) -> None:
    assert isinstance(commit_error(wrapped(PostgresError(sqlstate))), ConflictError | ForeignKeyError)


def test_a_taken_key_is_a_lost_race_and_nothing_else_is() -> None:
    taken = wrapped(PostgresError("23505", constraint_name="hk_keys_pkey"))
    assert constraint_of(taken) == "hk_keys_pkey"
    assert isinstance(_key_error(taken), ConflictError)
    assert isinstance(_key_error(wrapped(PostgresError("57P01"))), UnavailableError)
    assert (sqlstate_of(ValueError()), constraint_of(ValueError())) == ("", "")
