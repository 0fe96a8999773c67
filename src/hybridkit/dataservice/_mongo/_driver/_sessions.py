"""Transactions of PyMongo within a caller's deadline: begun, committed, begun again, and aborted in any case.

A transaction that isn't ended keeps its records locked until the server's `transactionLifetimeLimitSeconds`, which is a
minute: other writes of those records are refused meanwhile. So it is also aborted when the caller's time is over.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from typing import Any, Final

import pymongo
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.errors import AutoReconnect, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from hybridkit.dataservice._mongo._driver._errors import CONFLICTS, read_error
from hybridkit.errors import ConflictError, OutcomeUnknownError, UnavailableError

MAX_ATTEMPTS: Final = 8
MAX_COMMITS: Final = 3
PAUSE_SECONDS: Final = 0.01
MAX_PAUSE_SECONDS: Final = 0.3
END_SECONDS: Final = 5.0
"""The time limit for aborting a transaction."""
GRACE_SECONDS: Final = 0.25
"""The longest wait of a caller for its transaction's abort."""


class LostRaceError(Exception):
    """Another transaction was first; this one starts again."""


async def begin(session: AsyncClientSession) -> None:
    """Begin a transaction that reads one snapshot and is durable once it has committed."""
    await session.start_transaction(
        read_concern=ReadConcern("snapshot"),
        write_concern=WriteConcern("majority"),
        read_preference=ReadPreference.PRIMARY,
    )


class Transactions:
    """Transactions of one client.

    Args:
        client: of the database.
    """

    def __init__(self, client: AsyncMongoClient[Any]) -> None:
        self._client = client
        self._ending: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._ending)} ending)"

    async def run[T](self, work: Callable[[AsyncClientSession], Awaitable[T]], *, keep: bool = True) -> T:
        """Run the work in a transaction, and run it again where another transaction was first.

        PyMongo's `with_transaction` does as much, for two minutes; this ends by the caller's deadline.

        Args:
            work: called with the session, perhaps several times.
            keep: whether to commit the transaction; otherwise it is aborted.

        Raises:
            ConflictError: other transactions won each time.
            UnavailableError: the connection broke each time, before the commit.
            OutcomeUnknownError: the server doesn't say whether it has committed.
        """
        lost: Exception | None = None
        for attempt in range(1, MAX_ATTEMPTS + 1):
            session = self._client.start_session()
            try:
                await begin(session)
                found = await _taken_back_if_lost(work, session)
                if keep:
                    await _commit(session)
            except (LostRaceError, PyMongoError) as error:
                if not _may_begin_again(error):
                    raise
                lost = error
            else:
                return found
            finally:
                await self._end(session)
            pause = min(PAUSE_SECONDS * 2**attempt, MAX_PAUSE_SECONDS)
            await asyncio.sleep(pause * random.random())  # noqa: S311 - spreads load # nosec B311
        if lost is not None and isinstance(lost.__cause__, AutoReconnect):
            raise UnavailableError("the connection to the database broke each time", retry_after_seconds=1.0)
        raise ConflictError("other transactions won each time", retry_after_seconds=0.1)

    async def close(self) -> None:
        """Wait for transactions that are still being aborted."""
        if self._ending:
            await asyncio.wait(self._ending)

    async def _end(self, session: AsyncClientSession) -> None:
        """End the session, and abort its transaction if it is open.

        The abort has its own time limit, as the caller's may be over, and goes on when the caller leaves.
        """
        if not session.in_transaction:
            await session.end_session()
            return
        ending = asyncio.create_task(_end(session), context=Context())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        await asyncio.wait({ending}, timeout=GRACE_SECONDS)


async def _end(session: AsyncClientSession) -> None:
    with suppress(PyMongoError), pymongo.timeout(END_SECONDS):
        await session.end_session()


async def _taken_back_if_lost[T](
    work: Callable[[AsyncClientSession], Awaitable[T]], session: AsyncClientSession
) -> T:
    """Do the work; if the connection breaks, the transaction is lost, and nothing stays of what was sent."""
    try:
        return await work(session)
    except AutoReconnect as error:
        if not error.timeout:
            raise LostRaceError from error
        raise read_error(error) or error from error


def _may_begin_again(error: LostRaceError | PyMongoError) -> bool:
    """Return whether the transaction has only lost; the driver labels timeouts so too, and the time is over then."""
    if isinstance(error, LostRaceError):
        return True
    conflict = isinstance(error, OperationFailure) and error.code in CONFLICTS
    return not error.timeout and (conflict or error.has_error_label("TransientTransactionError"))


async def _commit(session: AsyncClientSession) -> None:
    """Commit, and ask again where the answer got lost, which a server takes as the same commit."""
    for _ in range(MAX_COMMITS):
        try:
            await session.commit_transaction()
        except PyMongoError as error:
            if not error.has_error_label("UnknownTransactionCommitResult"):
                raise
            if error.timeout:
                break
        else:
            return
    raise OutcomeUnknownError(
        "the server doesn't say whether it has committed; the same Idempotency-Key finds out"
    )
