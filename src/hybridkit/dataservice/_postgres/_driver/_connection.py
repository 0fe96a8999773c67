"""One connection to PostgreSQL, two ways in: asyncpg for compiled text, SQLAlchemy on top of it for statements.

SQLAlchemy never begins or ends a transaction here (its isolation level is AUTOCOMMIT); whoever holds the connection
does, in as few round trips as there can be.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

import asyncpg  # type: ignore[import-untyped] # it ships no types
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncConnection

from hybridkit.dataservice._postgres._driver._codecs import set_codecs
from hybridkit.dataservice._postgres._driver._errors import (
    Diagnosis,
    OutdatedError,
    ends_connection,
    is_outdated,
    may_be_outdated,
    note,
    read_only_error,
)
from hybridkit.dataservice._postgres._driver._url import CONNECT_FAILURES, Target
from hybridkit.errors import DeadlineExceededError, DeadlinePassedError

__all__ = ["FAILURES", "Link", "Meaning", "Mistakes", "connect", "limit_fits", "limit_for"]

type Meaning = Callable[[Exception], Exception | None]
"""Which error a driver's error becomes; None lets it through."""

GRACE_SECONDS: Final = 0.25
"""What the server gets to cancel a statement by itself before its connection is dropped."""
CLOSE_SECONDS: Final = 2.0
MISTAKE_SECONDS: Final = 60.0
MAX_MISTAKES: Final = 100
_IN_RECOVERY: Final = ("0A000", "55000")
"""How a replica refuses what is more than a plain change: a serializable transaction, for one."""

_driver: Final = cast("Any", asyncpg)

FAILURES: Final[tuple[type[Exception], ...]] = (
    StatementError,  # with the driver's error, or that of a type that doesn't take a value
    _driver.PostgresError,
    _driver.PostgresWarning,  # an error all the same, whose SQLSTATE is of class 01 or 02
    _driver.InterfaceError,
    _driver.InternalClientError,
    TimeoutError,
    OSError,
)
"""Whatever a statement can fail with that is no mistake of ours."""


class Mistakes:
    """Failures that new connections have had too: no migration is to blame, so no other connection is worth a try."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Mistakes({len(self._until)})"

    def __contains__(self, error: object) -> bool:
        return self._until.get(str(error), 0.0) > time.monotonic()

    def add(self, error: Exception) -> None:
        """It is one, for a minute."""
        if len(self._until) >= MAX_MISTAKES:
            self._until.clear()
        self._until[str(error)] = time.monotonic() + MISTAKE_SECONDS


class Link:
    """A connection, and until when it may be used.

    Attributes:
        connection: SQLAlchemy's.
        driver: asyncpg's, the same.
        deadline: `time.monotonic()` at which whoever uses it now must have finished.
        limit_seconds: the session's `statement_timeout`.
        generation: of the pool's connections; older ones are not used again.
        is_new: nothing was asked of it before whoever uses it now.
        is_spent: nothing is to be asked of it any more, nor of those that are as old.
        is_outdated: and that because the schema has changed since it was opened.
    """

    __slots__ = (
        "_guard",
        "_mistakes",
        "connection",
        "deadline",
        "driver",
        "expired",
        "generation",
        "is_new",
        "is_outdated",
        "is_spent",
        "limit_seconds",
    )

    def __init__(
        self, connection: AsyncConnection, driver: Any, *, generation: int, mistakes: Mistakes
    ) -> None:
        self.connection = connection
        self.driver = driver
        self.deadline = 0.0
        self.expired = False
        self.limit_seconds = 0.0
        self.generation = generation
        self.is_new = True
        self.is_spent = False
        self.is_outdated = False
        self._mistakes = mistakes
        self._guard: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"Link(closed={self.driver.is_closed()}, limit_seconds={self.limit_seconds:.3f})"

    def start(self, deadline: float) -> None:
        """From now on it is in use; shortly after the deadline it is dropped, whatever the driver waits for."""
        self.stop()
        self.deadline = deadline
        left = max(deadline - time.monotonic(), 0.0)
        self._guard = asyncio.get_running_loop().call_later(left + GRACE_SECONDS, self._expire)

    def stop(self) -> None:
        """It is not in use any more."""
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None

    def left(self) -> float:
        """Seconds until the deadline.

        Raises:
            DeadlinePassedError: none are left.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlinePassedError("the deadline passed between two statements; nothing was changed")
        return left

    async def limit(self) -> None:
        """Have the server stop the next statements at the deadline; a round trip only where it must be told."""
        left = self.left()
        if not limit_fits(self.limit_seconds, left):
            seconds = limit_for(left)
            await self.driver.execute(f"SET statement_timeout = {int(seconds * 1000)}")
            self.limit_seconds = seconds

    async def settle(self) -> None:
        """Wait for a cancelled statement to end, and undo what is not committed."""
        if not self.driver.is_closed():
            await self.driver.execute("ROLLBACK")  # waits for what is still under way, and fails in no state
        if self.connection.in_transaction():
            await self.connection.rollback()  # SQLAlchemy's own idea of one; the server hears nothing of it

    async def drop(self) -> None:
        """Close it, without waiting long for the server to take part."""
        with suppress(*FAILURES):
            await self.driver.close(timeout=CLOSE_SECONDS)
        with suppress(*FAILURES):
            await self.connection.invalidate()
            await self.connection.close()

    def translated(self, error: Exception, meaning: Meaning) -> Exception:
        """What that failure of a statement means, to the caller and to the connection."""
        if self.expired:
            return DeadlineExceededError("the database did not answer by the deadline")
        if isinstance(error, TimeoutError | OSError):  # `command_timeout`: it is in the middle of something
            self.driver.terminate()
        found = self._own_fault(error) or meaning(error)
        note(error, found)
        return found or error

    def _own_fault(self, error: Exception) -> Exception | None:
        """The error, where a new connection may well succeed with the same statement."""
        self.is_spent |= ends_connection(error)
        if Diagnosis.of(error).sqlstate in _IN_RECOVERY and self._only_reads():
            self.is_spent = True
            return read_only_error()
        if is_outdated(error) or (may_be_outdated(error) and self._may_blame_migration(error)):
            self.is_spent = self.is_outdated = True
            return OutdatedError()
        return None

    def _only_reads(self) -> bool:
        """Whether the server has said that it takes no writes; PostgreSQL 14 and later do, unasked."""
        told = self.driver.get_settings()
        return "on" in (
            getattr(told, "in_hot_standby", None),
            getattr(told, "default_transaction_read_only", None),
        )

    def _may_blame_migration(self, error: Exception) -> bool:
        if self.is_new:
            self._mistakes.add(error)
        return error not in self._mistakes

    def _expire(self) -> None:
        self.expired = True
        self.driver.terminate()


def limit_fits(limit_seconds: float, left_seconds: float) -> bool:
    """Whether a limit ends a statement near the deadline: a tenth before, or before the connection is dropped."""
    return 0.9 * left_seconds <= limit_seconds <= left_seconds + 0.8 * GRACE_SECONDS


def limit_for(left_seconds: float) -> float:
    """A limit that also fits the next requests, if they have about as much time; at least 1 ms, as 0 is none."""
    return max(left_seconds + min(0.1 * left_seconds, 0.5 * GRACE_SECONDS), 0.001)


async def connect(url: str, *, timeout_seconds: float, command_seconds: float, **settings: str) -> Any:
    """A connection of asyncpg's.

    Args:
        url: `postgresql://`, with libpq's options; SQLAlchemy's `postgresql+asyncpg://` is taken too.
        timeout_seconds: until it is open, at most.
        command_seconds: for one statement.
        settings: of the server, for this connection; those in the URL win.

    Raises:
        SettingsError: the URL has an option that can't be followed, by the driver or by the server.
    """
    target = Target.of(url)
    try:
        connection = await _driver.connect(
            target.dsn,
            timeout=target.timeout_seconds(timeout_seconds),
            command_timeout=command_seconds,
            server_settings=target.settings(settings),
            ssl=target.ssl,
        )
    except CONNECT_FAILURES as error:
        found = target.meaning(error)
        if found is None:
            raise
        raise found from error
    await set_codecs(connection)
    return connection
