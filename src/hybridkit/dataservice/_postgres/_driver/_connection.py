"""One connection to PostgreSQL with two interfaces: asyncpg for compiled text, SQLAlchemy on top of it for statements.

SQLAlchemy never begins or ends a transaction here (its isolation level is AUTOCOMMIT); the pool and its sessions do,
in as few round trips as there can be.
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

type Translate = Callable[[Exception], Exception | None]
"""From a driver's error to ours; None for one that is raised as it is."""

GRACE_SECONDS: Final = 0.25
"""How long the server may take to cancel a statement by itself before its connection is dropped."""
CLOSE_SECONDS: Final = 2.0
KNOWN_SECONDS: Final = 60.0
MAX_KNOWN_FAILURES: Final = 100
_IN_RECOVERY: Final = ("0A000", "55000")
"""The SQLSTATEs by which a replica refuses more than a plain change, such as a serializable transaction."""

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
"""Every error with which a statement can fail, unless the code is wrong."""


class KnownFailures:
    """Failures that new connections have had too.

    No migration is to blame for them, so there is no point in trying another connection.
    """

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"KnownFailures({len(self._until)})"

    def __contains__(self, error: object) -> bool:
        return self._until.get(str(error), 0.0) > time.monotonic()

    def add(self, error: Exception) -> None:
        """Remember a failure for a minute."""
        if len(self._until) >= MAX_KNOWN_FAILURES:
            self._until.clear()
        self._until[str(error)] = time.monotonic() + KNOWN_SECONDS


class PooledConnection:
    """A connection of a pool, and the instant until which it may be used.

    Attributes:
        sqlalchemy: SQLAlchemy's connection, on top of the driver's.
        driver: asyncpg's connection.
        deadline: the `time.monotonic()` instant at which its present user must have finished.
        expired: whether the timer has dropped it, because its user had not finished by then.
        limit_seconds: the session's `statement_timeout`.
        generation: the pool's generation that it belongs to; connections of an older one are not used again.
        is_new: whether its present user is the first one.
        is_spent: whether neither it nor any other connection of its generation may be used again.
        is_outdated: whether that is because the schema has changed since it was opened.
    """

    __slots__ = (
        "_guard",
        "_known_failures",
        "deadline",
        "driver",
        "expired",
        "generation",
        "is_new",
        "is_outdated",
        "is_spent",
        "limit_seconds",
        "sqlalchemy",
    )

    def __init__(
        self, sqlalchemy: AsyncConnection, driver: Any, *, generation: int, known_failures: KnownFailures
    ) -> None:
        self.sqlalchemy = sqlalchemy
        self.driver = driver
        self.deadline = 0.0
        self.expired = False
        self.limit_seconds = 0.0
        self.generation = generation
        self.is_new = True
        self.is_spent = False
        self.is_outdated = False
        self._known_failures = known_failures
        self._guard: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"PooledConnection(closed={self.driver.is_closed()}, limit_seconds={self.limit_seconds:.3f})"

    def start(self, deadline: float) -> None:
        """Begin a use: shortly after the deadline the connection is dropped, whatever the driver waits for."""
        self.stop()
        self.deadline = deadline
        left = max(deadline - time.monotonic(), 0.0)
        self._guard = asyncio.get_running_loop().call_later(left + GRACE_SECONDS, self._expire)

    def stop(self) -> None:
        """End a use: the deadline counts no more."""
        if self._guard is not None:
            self._guard.cancel()
            self._guard = None

    def left(self) -> float:
        """Return the seconds until the deadline.

        Raises:
            DeadlinePassedError: the deadline has passed.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlinePassedError("the deadline passed between two statements; nothing was changed")
        return left

    async def limit(self) -> None:
        """Have the server stop the next statements at the deadline; a round trip only where the limit changes."""
        left = self.left()
        if not limit_fits(self.limit_seconds, left):
            seconds = limit_for(left)
            await self.driver.execute(f"SET statement_timeout = {int(seconds * 1000)}")
            self.limit_seconds = seconds

    async def settle(self) -> None:
        """Wait until a cancelled statement has ended, and undo what is not committed."""
        if not self.driver.is_closed():
            await self.driver.execute("ROLLBACK")  # waits for what is still under way, and fails in no state
        if self.sqlalchemy.in_transaction():
            await self.sqlalchemy.rollback()  # only SQLAlchemy's own state; nothing is sent to the server

    async def drop(self) -> None:
        """Close the connection, without waiting long for the server to take part."""
        with suppress(*FAILURES):
            await self.driver.close(timeout=CLOSE_SECONDS)
        with suppress(*FAILURES):
            await self.sqlalchemy.invalidate()
            await self.sqlalchemy.close()

    def translated(self, error: Exception, translate: Translate) -> Exception:
        """Return the error for the caller, and note what the failure says about the connection."""
        if self.expired:
            return DeadlineExceededError("the database did not answer by the deadline")
        if isinstance(error, TimeoutError | OSError):  # `command_timeout`: it is in the middle of something
            self.driver.terminate()
        found = self._own_fault(error) or translate(error)
        note(error, found)
        return found or error

    def _own_fault(self, error: Exception) -> Exception | None:
        """Return the error if the same statement may well succeed on a new connection."""
        self.is_spent |= ends_connection(error)
        if Diagnosis.of(error).sqlstate in _IN_RECOVERY and self._only_reads():
            self.is_spent = True
            return read_only_error()
        if is_outdated(error) or (may_be_outdated(error) and self._may_blame_migration(error)):
            self.is_spent = self.is_outdated = True
            return OutdatedError()
        return None

    def _only_reads(self) -> bool:
        """Return whether the server has said that it takes no writes; PostgreSQL 14 and later say so unasked."""
        told = self.driver.get_settings()
        return "on" in (
            getattr(told, "in_hot_standby", None),
            getattr(told, "default_transaction_read_only", None),
        )

    def _may_blame_migration(self, error: Exception) -> bool:
        if self.is_new:
            self._known_failures.add(error)
        return error not in self._known_failures

    def _expire(self) -> None:
        self.expired = True
        self.driver.terminate()


def limit_fits(limit_seconds: float, left_seconds: float) -> bool:
    """Return whether a limit ends a statement between a tenth before the deadline and the drop of its connection."""
    return 0.9 * left_seconds <= limit_seconds <= left_seconds + 0.8 * GRACE_SECONDS


def limit_for(left_seconds: float) -> float:
    """Return a limit that also fits later requests with about as much time; at least 1 ms, as 0 means no limit."""
    return max(left_seconds + min(0.1 * left_seconds, 0.5 * GRACE_SECONDS), 0.001)


async def connect(url: str, *, timeout_seconds: float, command_seconds: float, **settings: str) -> Any:
    """Open a connection of asyncpg.

    Args:
        url: `postgresql://`, with libpq's options; SQLAlchemy's `postgresql+asyncpg://` is taken too.
        timeout_seconds: the longest time that opening it may take.
        command_seconds: the longest time that one statement may take.
        settings: settings of the server for this connection; those in the URL win.

    Raises:
        SettingsError: the URL has an option that the driver or the server can't follow.
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
        found = target.connect_error(error)
        if found is None:
            raise
        raise found from error
    await set_codecs(connection)
    return connection
