"""How a transaction on MongoDB is begun, committed, repeated and given up, told by a session that answers as told.

PyMongo's session is the seam: https://pymongo.readthedocs.io/en/stable/api/pymongo/asynchronous/client_session.html.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import pymongo
import pytest
from pymongo._csot import get_timeout as pymongo_timeout
from pymongo.errors import (
    AutoReconnect,
    ConnectionFailure,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)

from hybridkit.dataservice._mongo._driver import _sessions as _mongo_sessions
from hybridkit.dataservice._mongo._driver._sessions import LostRaceError, Transactions
from hybridkit.errors import (
    ConflictError,
    DeadlinePassedError,
    NotFoundError,
    OutcomeUnknownError,
    UnavailableError,
)

if TYPE_CHECKING:
    from pymongo import AsyncMongoClient


class Session:
    """A client and its sessions: notes what is asked; commits fail as it was told, one after the other."""

    def __init__(self, *commits: Exception | None) -> None:
        self.asked: list[str] = []
        self.in_transaction = False
        self.ends_when = asyncio.Event()
        self.ends_when.set()
        self._commits = list(commits)

    def start_session(self) -> "Session":
        return self

    async def start_transaction(self, **_: Any) -> None:
        assert not self.in_transaction
        self.asked.append("start")
        self.in_transaction = True

    async def commit_transaction(self) -> None:
        self.asked.append("commit")
        self.in_transaction = False
        error = self._commits.pop(0) if self._commits else None
        if error is not None:
            raise error

    async def end_session(self) -> None:
        if self.in_transaction:
            assert pymongo_timeout() == _mongo_sessions.END_SECONDS
            await self.ends_when.wait()
            self.asked.append("abort")
            self.in_transaction = False


def labelled[ErrorT: PyMongoError](error: ErrorT, label: str) -> ErrorT:
    error._add_error_label(label)
    return error


def transient() -> OperationFailure:
    return labelled(OperationFailure("WriteConflict", 112), "TransientTransactionError")


def unknown(error: PyMongoError | None = None) -> PyMongoError:
    return labelled(error or ConnectionFailure("gone"), "UnknownTransactionCommitResult")


def failing(*errors: Exception) -> Callable[[], Awaitable[str]]:
    """Work that fails so many times, and then is done."""
    left = list(errors)

    async def work() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return work


async def run(session: Session, work: Callable[[], Awaitable[str]], **options: bool) -> str:
    transactions = Transactions(cast("AsyncMongoClient[Any]", session))
    try:
        with pymongo.timeout(60):
            return await transactions.run(lambda _: work(), **options)
    finally:
        await transactions.close()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mongo_sessions, "PAUSE_SECONDS", 0.0)


async def test_what_is_done_is_committed() -> None:
    """One start and one commit, and the result of the work is returned."""
    session = Session()
    assert await run(session, failing()) == "done"
    assert session.asked == ["start", "commit"]


async def test_a_dry_run_is_taken_back() -> None:
    """The work runs and its result is returned, but the transaction is aborted."""
    session = Session()
    assert await run(session, failing(), keep=False) == "done"
    assert session.asked == ["start", "abort"]


@pytest.mark.parametrize(
    "error",
    [
        transient(),
        LostRaceError(),
        OperationFailure("lock timeout", 24),
        OperationFailure("write conflict", 112),
        OperationFailure("no such transaction", 251),
        AutoReconnect("a connection that no transaction stands on"),
    ],
    ids=["write conflict", "key", "24", "112", "251", "connection"],
)
async def test_a_lost_race_is_run_again(error: Exception) -> None:
    """Each attempt that lost is aborted, and the work begins in a new transaction."""
    session = Session()
    assert await run(session, failing(error, error)) == "done"
    assert session.asked == ["start", "abort", "start", "abort", "start", "commit"]


async def test_a_commit_that_lost_the_race_is_run_again() -> None:
    """The work is done anew, as the server has taken all of it back."""
    session = Session(transient())
    assert await run(session, failing()) == "done"
    assert session.asked == ["start", "commit", "start", "commit"]


async def test_a_race_lost_each_time_is_a_conflict() -> None:
    """After the last attempt the caller may try again, and no transaction stays open."""
    session = Session()
    with pytest.raises(ConflictError):
        await run(session, failing(*(transient() for _ in range(100))))
    assert session.asked.count("start") == _mongo_sessions.MAX_ATTEMPTS
    assert not session.in_transaction


async def test_a_commit_without_an_answer_is_asked_again_and_not_done_again() -> None:
    """The server takes it as the same commit, so the work isn't run twice."""
    session = Session(unknown(), unknown())
    assert await run(session, failing()) == "done"
    assert session.asked == ["start", "commit", "commit", "commit"]


@pytest.mark.parametrize(
    "commits", [[unknown()] * 9, [unknown(NetworkTimeout("late"))]], ids=["away", "late"]
)
async def test_a_commit_that_stays_without_an_answer_is_of_unknown_outcome(commits: list[Exception]) -> None:
    """The commit alone is repeated, never the work."""
    session = Session(*commits)
    with pytest.raises(OutcomeUnknownError):
        await run(session, failing())
    assert session.asked.count("start") == 1


async def test_connections_that_break_each_time_are_no_conflict() -> None:
    """Nothing was committed, so its outcome is known."""
    with pytest.raises(UnavailableError):
        await run(Session(), failing(*(AutoReconnect("gone") for _ in range(100))))


async def test_a_timeout_ends_at_the_first_attempt_and_changes_nothing() -> None:
    """The driver labels it as a lost race, and the caller's time is over."""
    session = Session()
    with pytest.raises(DeadlinePassedError):
        await run(session, failing(labelled(NetworkTimeout("late"), "TransientTransactionError")))
    assert session.asked == ["start", "abort"]


async def test_a_commit_that_cannot_be_made_durable_is_not_run_again() -> None:
    """The write has been done already, so doing it again could do it twice."""
    session = Session(WriteConcernError("not enough members", 100))
    with pytest.raises(WriteConcernError):
        await run(session, failing())
    assert session.asked == ["start", "commit"]


async def test_a_server_that_stopped_does_not_keep_the_caller() -> None:
    """The transaction is taken back beside the answer, once the server can be asked again."""
    session = Session()
    session.ends_when.clear()
    transactions = Transactions(cast("AsyncMongoClient[Any]", session))
    with pytest.raises(NotFoundError):
        await transactions.run(lambda _: failing(NotFoundError("no such record"))())
    assert session.asked == ["start"]
    session.ends_when.set()
    await transactions.close()
    assert session.asked == ["start", "abort"]


@pytest.mark.parametrize(
    "error", [NotFoundError("no such record"), OperationFailure("no", 13)], ids=["refused", "failed"]
)
async def test_anything_else_takes_it_back_at_once(error: Exception) -> None:
    """An error of the work or of the server ends the transaction without another attempt."""
    session = Session()
    with pytest.raises(type(error)):
        await run(session, failing(error))
    assert session.asked == ["start", "abort"]


async def test_a_cancelled_transaction_is_taken_back() -> None:
    """Cancelling the caller aborts its transaction before the cancellation goes on."""
    session, begun = Session(), asyncio.Event()

    async def work() -> str:
        begun.set()
        await asyncio.sleep(3600)
        return "never"

    running = asyncio.create_task(run(session, work))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert session.asked == ["start", "abort"]
