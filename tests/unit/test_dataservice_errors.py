"""From what a driver raises to the error tree: by SQLSTATE, never by words, and nothing of the words goes on."""

from typing import Any

import asyncpg  # type: ignore[import-untyped] # it ships no types
import pytest
from sqlalchemy.exc import DBAPIError

from hybridkit.dataservice._postgres._driver._errors import (
    commit_error,
    constraint_of,
    database_error,
    ends_connection,
    is_outdated,
    may_be_outdated,
    note,
    query_error,
    sqlstate_of,
)
from hybridkit.dataservice._postgres._keys import _key_error
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
        ("57014", DeadlinePassedError),
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
    """Each class of codes becomes the error that says what the caller can do."""
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
    """It doesn't matter whether the network, the driver or a stale statement is to blame."""
    assert isinstance(database_error(error), UnavailableError)


@pytest.mark.parametrize(
    "error", [wrapped(PostgresError("42P01")), wrapped(PostgresError(None)), ValueError("x")]
)
def test_a_mistake_in_the_code_is_no_error_of_ours(error: Exception) -> None:
    """It goes through as it is, and becomes a 500."""
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
    """PostgreSQL translates the message, not the parentheses; without them no field is named."""
    found = database_error(wrapped(PostgresError("23505", detail)))
    assert isinstance(found, UniqueViolationError)
    assert found.fields == fields


@pytest.mark.parametrize("sqlstate", ["22P02", "22003", "42883", "42804"])
def test_a_filter_that_compares_the_incomparable_is_a_bad_query(sqlstate: str) -> None:
    """The caller can fix it, so it isn't the service's failure."""
    assert isinstance(query_error(wrapped(PostgresError(sqlstate))), InvalidQueryError)


def test_other_failures_of_a_query_are_what_they_are() -> None:
    """A timeout stays a timeout."""
    assert isinstance(query_error(wrapped(PostgresError("57014"))), DeadlinePassedError)


@pytest.mark.parametrize(
    "error", [TimeoutError(), wrapped(PostgresError("57P01")), wrapped(InterfaceError("closed"))]
)
def test_a_connection_that_breaks_in_a_commit_leaves_the_outcome_unknown(error: Exception) -> None:
    """The commit may have reached the server."""
    assert type(commit_error(error)) is OutcomeUnknownError


@pytest.mark.parametrize("sqlstate", ["40001", "23503"])
def test_a_refused_commit_is_known_to_be_undone(sqlstate: str) -> None:
    """PostgreSQL has answered, so nothing is unknown."""
    assert isinstance(commit_error(wrapped(PostgresError(sqlstate))), ConflictError | ForeignKeyError)


def test_a_taken_key_is_a_lost_race_and_nothing_else_is() -> None:
    """Another request with the key was faster, so this one is tried again."""
    taken = wrapped(PostgresError("23505", constraint_name="hk_keys_pkey"))
    assert constraint_of(taken) == "hk_keys_pkey"
    assert isinstance(_key_error(taken), ConflictError)
    assert isinstance(_key_error(wrapped(PostgresError("57P01"))), UnavailableError)
    assert (sqlstate_of(ValueError()), constraint_of(ValueError())) == ("", "")


# ── every SQLSTATE that PostgreSQL has ───────────────────────────────────────────────────────────

type Verdict = tuple[int | None, bool]
"""The status, or None for a mistake in the code, and whether the connection is given up."""

MISTAKE: Verdict = (None, False)
REFUSED: Verdict = (422, False)
LOST: Verdict = (409, False)
AWAY: Verdict = (503, False)
GIVEN_UP: Verdict = (503, True)

EXPECTED: dict[str, Verdict] = {
    "08": GIVEN_UP,
    "22": REFUSED,
    "2200H": MISTAKE,
    "23": REFUSED,
    "23001": (409, False),
    "23503": (409, False),
    "23505": (409, False),
    "23P01": (409, False),
    "25006": GIVEN_UP,
    "25P03": GIVEN_UP,
    "25P04": GIVEN_UP,
    "26": GIVEN_UP,
    "28000": AWAY,
    "28P01": AWAY,
    "3D000": AWAY,
    "40": LOST,
    "40003": (504, False),
    "428C9": REFUSED,
    "44": REFUSED,
    "53": AWAY,
    "54": REFUSED,
    "55006": LOST,
    "55P03": LOST,
    "57000": AWAY,
    "57014": (504, False),
    "57P": GIVEN_UP,
    "58": AWAY,
    "72": LOST,
    "F0": AWAY,
    "HV00N": AWAY,
    "P0001": REFUSED,
    "P0002": REFUSED,
    "P0003": REFUSED,
}
"""By SQLSTATE or its first characters; whatever is not here is a mistake in the code."""

KINDS: Any = vars(asyncpg.exceptions).values()
STATES = sorted({state for kind in KINDS if isinstance(state := getattr(kind, "sqlstate", None), str)})


def raised(sqlstate: str, **fields: str) -> asyncpg.PostgresError:
    """As asyncpg raises what the server sends."""
    letters = {
        "constraint": "n",
        "table": "t",
        "column": "c",
        "schema": "s",
        "routine": "R",
        "detail": "D",
        "severity": "V",
    }
    named = {letters[name]: value for name, value in fields.items()}
    error: asyncpg.PostgresError = asyncpg.PostgresError.new({"C": sqlstate, "M": SECRET, **named})
    return error


def expected(sqlstate: str) -> Verdict:
    return next((EXPECTED[sqlstate[:n]] for n in (5, 3, 2) if sqlstate[:n] in EXPECTED), MISTAKE)


@pytest.mark.parametrize("sqlstate", STATES)
def test_every_sqlstate_has_its_answer(sqlstate: str) -> None:
    """The table has status, retry and loss of the connection; the server's message goes nowhere."""
    for error in (raised(sqlstate), wrapped(raised(sqlstate))):
        found = database_error(error)
        assert (found and found.status, ends_connection(error)) == expected(sqlstate)
        if found is not None:
            assert SECRET not in str(found)
            assert found.retryable == (found.status in (503, 504) or isinstance(found, ConflictError))
        if isinstance(found, TemporaryError) and not isinstance(found, DeadlinePassedError):
            assert found.retry_after_seconds


def test_what_is_known_not_to_have_happened_is_no_unknown_outcome() -> None:
    """A server that takes no writes, and an outdated plan, have changed nothing, also where they answer a commit."""
    for state in ("25006", "26000"):
        assert isinstance(commit_error(raised(state)), UnavailableError)
    full = {"severity": "ERROR", "routine": "mdextend"}
    assert isinstance(commit_error(wrapped(raised("53100", **full))), UnavailableError)


@pytest.mark.parametrize("told", [{}, {"severity": "ERROR"}, {"severity": "FATAL", "routine": "die"}])
def test_who_ends_a_connection_at_the_commit_leaves_its_outcome_unknown(told: dict[str, str]) -> None:
    """PostgreSQL names the function that says so, a proxy before it has none."""
    assert isinstance(commit_error(raised("57P01", **told)), OutcomeUnknownError)


@pytest.mark.parametrize("sqlstate", ["MY001", "99999", "ZZZZZ", "PT402"])
def test_a_code_that_postgresql_does_not_have_is_a_rule_of_the_database(sqlstate: str) -> None:
    """A trigger has raised it, so the caller's record is refused."""
    assert isinstance(database_error(wrapped(raised(sqlstate))), InvalidRequestError)


@pytest.mark.parametrize("sqlstate", [state for state in STATES if expected(state) == MISTAKE])
def test_whatever_a_function_raises_is_a_rule_of_the_database(sqlstate: str) -> None:
    """`RAISE … USING ERRCODE` may take any code, also one that would be a mistake in the code otherwise."""
    error = wrapped(raised(sqlstate, routine="exec_stmt_raise"))
    assert isinstance(database_error(error), InvalidRequestError)
    assert not may_be_outdated(error)


def test_a_policy_that_refuses_a_row_is_no_missing_grant() -> None:
    """Both are 42501; only the first one is the caller's."""
    policy = raised("42501", routine="ExecWithCheckOptions")
    assert isinstance(database_error(policy), InvalidRequestError)
    assert database_error(raised("42501", routine="aclcheck_error")) is None


@pytest.mark.parametrize("sqlstate", ["0A000", "42804", "42704", "42883", "XX000"])
def test_what_a_migration_causes_is_told_from_what_it_does_not(sqlstate: str) -> None:
    """A statement prepared before it fails like a mistake in the code; another connection tells them apart."""
    assert may_be_outdated(wrapped(raised(sqlstate)))
    assert not may_be_outdated(raised("42P01"))
    cached = raised("0A000", routine="RevalidateCachedQuery")
    assert type(cached).__name__ == "InvalidCachedStatementError"
    assert is_outdated(cached)
    assert is_outdated(asyncpg.exceptions.OutdatedSchemaCacheError("type"))


# ── what is logged ───────────────────────────────────────────────────────────────────────────────


def test_a_refusal_is_logged_by_names(caplog: pytest.LogCaptureFixture) -> None:
    """SQLSTATE, constraint, table and column; no value, and none of PostgreSQL's words."""
    error = wrapped(
        raised("23514", constraint="positive", table="items", schema="public", column="size", detail=SECRET)
    )
    with caplog.at_level("INFO"):
        note(error, database_error(error))
    [record] = caplog.records
    for word in ("23514", "positive", "items", "public", "size", "VALIDATION"):
        assert word in record.getMessage()
    assert SECRET not in record.getMessage()


@pytest.mark.parametrize("sqlstate", STATES)
def test_every_answer_to_a_caller_is_explained_in_the_log(
    sqlstate: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Lost races, which are run again, and mistakes in the code, which have their stack, are not."""
    error = raised(sqlstate)
    found = database_error(error)
    with caplog.at_level("INFO"):
        note(error, found)
    told = found is not None and not isinstance(found, ConflictError)
    assert [sqlstate in record.getMessage() for record in caplog.records] == [True] * told
