"""Connections to PostgreSQL: few, bounded, and each statement stopped at the caller's deadline.

Three bounds, because a frozen server honours none of them by itself: the server cancels a statement at the deadline
(`statement_timeout`); a timer drops the connection shortly after, whatever the driver waits for; the driver's own
`command_timeout` is the last one. Cancelling a coroutine is no bound: asyncpg then waits for the server to confirm it.

`Pool.fetch` runs one statement as its own transaction, in one round trip. `Pool.session` is a transaction of many
statements.

Connections belong to a generation. It ends when one of them finds out something that holds for all of them: the server
takes no writes since a failover, or the schema is another one than statements were prepared for. Then new connections
are opened, and the server's name is looked up again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Concatenate, Final, Literal

from sqlalchemy import Connection, Executable, NullPool, Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from hybridkit._tasks import TaskSet
from hybridkit.codec import encode_json
from hybridkit.context import current
from hybridkit.dataservice._postgres._driver._connection import (
    FAILURES,
    KnownFailures,
    PooledConnection,
    Translate,
    connect,
    limit_fits,
    limit_for,
)
from hybridkit.dataservice._postgres._driver._errors import (
    READ_ONLY,
    OutdatedError,
    commit_error,
    database_error,
    sqlstate_of,
)
from hybridkit.dataservice._store._documents import read_document
from hybridkit.dataservice._store._waiting_time import add_waiting_seconds
from hybridkit.errors import (
    DeadlinePassedError,
    MisuseError,
    OverloadedError,
    SettingsError,
    UnavailableError,
)

type Isolation = Literal["read_committed", "repeatable_read", "serializable"]

DEFAULT_SECONDS: Final = 10.0
"""How long work may take for a caller that sets no deadline."""
MAX_SECONDS: Final = 60.0
"""How long work may take whatever the deadline."""
ACQUIRE_SECONDS: Final = 1.0
"""How long to wait for a free connection."""
CONNECT_SECONDS: Final = 3.0


class Pool:
    """A pool of connections to PostgreSQL. Nobody waits for one longer than a second, nor past the deadline.

    Args:
        url: `postgresql://user:password@host:5432/name`, with libpq's options.
        pool_size: the largest number of connections.
        application_name: the name that `pg_stat_activity` shows.

    Attributes:
        in_use: the number of connections that work for somebody, or are being opened or settled for it.
        waiting: the number of those who wait for a free connection.
    """

    def __init__(self, url: str, *, pool_size: int, application_name: str) -> None:
        self.pool_size = pool_size
        self.in_use = 0
        self.waiting = 0
        self._url = url
        self._application_name = application_name
        self._permits = asyncio.Semaphore(pool_size)
        self._free: list[PooledConnection] = []
        self._closed = False
        self._generation = 0
        self._known_failures = KnownFailures()
        self._tasks = TaskSet()
        self._engine: AsyncEngine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            poolclass=NullPool,  # the pool is this class
            isolation_level="AUTOCOMMIT",  # transactions are the session's
            hide_parameters=True,  # values don't belong into logs
            json_serializer=_to_json_text,
            json_deserializer=read_document,
        )

    def __repr__(self) -> str:
        return f"Pool(application_name={self._application_name!r}, pool_size={self.pool_size})"

    async def close(self) -> None:
        """Close every connection; one in use is closed when it is given back, which is bounded as its work is."""
        self._closed = True
        self.renew()
        while self._tasks:  # a task that ends may start another one
            await self._tasks.wait()
        await self._engine.dispose()

    def renew(self) -> None:
        """Use only connections that are opened from now on; those in use are closed when they are given back."""
        self._generation += 1
        while self._free:
            self._tasks.start(self._free.pop().drop())

    async def fetch(self, sql: str, *arguments: Any, translate: Translate = database_error) -> Sequence[Any]:
        """Run one statement as a transaction of its own, in one round trip.

        If a migration has changed the schema since its connection was opened, the statement has done nothing and runs
        again on a new connection.

        Args:
            sql: the statement, with `$1`, `$2`, … for the arguments.
            arguments: values of the types that asyncpg takes for the parameters' SQL types.
            translate: makes our error of a driver's; None for one that is raised as it is.

        Returns:
            Records of asyncpg.

        Raises:
            OverloadedError: every connection stayed in use.
            UnavailableError: PostgreSQL does not answer.
            DeadlinePassedError: the deadline has passed, and nothing was changed.
            DeadlineExceededError: it passes while the database works, and nobody knows what became of it.
        """
        started = time.monotonic()
        deadline = _deadline(started)
        rows = await self._fetch(deadline, sql, arguments, translate, again=True)
        if rows is None:
            rows = await self._fetch(deadline, sql, arguments, translate) or ()
        add_waiting_seconds(time.monotonic() - started)
        return rows

    async def _fetch(
        self,
        deadline: float,
        sql: str,
        arguments: Sequence[Any],
        translate: Translate,
        *,
        again: bool = False,
    ) -> Sequence[Any] | None:
        """Return the rows, or None if the connection was outdated and the caller wants to try `again`."""
        connection = await self._take(deadline)
        try:
            await connection.limit()
            rows: Sequence[Any] = await connection.driver.fetch(sql, *arguments)
        except (
            BaseException
        ) as error:  # also a caller that leaves: the connection is in the middle of something
            failure = connection.translated(error, translate) if isinstance(error, FAILURES) else error
            await asyncio.shield(self._settle(connection))
            if again and connection.is_outdated:
                return None
            if failure is error:
                raise
            raise failure from error
        self._give_back(connection)
        return rows

    async def execute(
        self, statement: Executable, *, translate: Translate = database_error
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """Run a statement of SQLAlchemy in a transaction that only reads; once more if the connection was outdated."""
        try:
            return await self._executed(statement, translate)
        except OutdatedError:
            return await self._executed(statement, translate)

    async def _executed(self, statement: Executable, translate: Translate) -> Sequence[Row[*tuple[Any, ...]]]:
        async with self.session(read_only=True) as session:
            return await session.execute(statement, translate=translate)

    @asynccontextmanager
    async def session(
        self, *, isolation: Isolation = "read_committed", read_only: bool = False
    ) -> AsyncGenerator["Session"]:
        """Open a transaction: it is committed at the end of the block, and rolled back by any exception.

        It begins with the first statement.

        Args:
            isolation: the isolation level.
            read_only: whether PostgreSQL refuses every change.

        Raises:
            OverloadedError: every connection stayed in use.
            UnavailableError: PostgreSQL does not answer.
            DeadlinePassedError: the deadline has passed, and nothing was changed.
            DeadlineExceededError: it passes while the database works, and nobody knows what became of it.
            OutcomeUnknownError: the connection broke during the commit.
        """
        started = time.monotonic()
        connection = await self._take(_deadline(started))
        session = Session(connection, isolation, read_only=read_only)
        try:
            yield session
            await session.commit()
        finally:
            if session.is_clean and not connection.sqlalchemy.in_transaction():
                self._give_back(connection)
            else:
                await asyncio.shield(self._settle(connection))
            add_waiting_seconds(time.monotonic() - started)

    # ── the pool ──────────────────────────────────────────────────────────────────────────────────

    # Opening and settling are tasks: a cancelled caller leaves at once, and they go on to their end, which is bounded.
    # Cancelled halfway, they would leave a connection behind that nobody closes.

    async def _take(self, deadline: float) -> PooledConnection:
        await self._take_permit(deadline)
        while self._free:
            connection = self._free.pop()
            if not connection.driver.is_closed():
                connection.start(deadline)
                return connection
            self._tasks.start(connection.drop())  # closed by the server; noticed without a round trip
        opening = self._tasks.start(self._open(deadline))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._discard)
            raise

    async def _take_permit(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlinePassedError("the deadline has passed; nothing was started")
        if not self._permits.locked():
            await self._permits.acquire()
            self.in_use += 1
            return
        self.waiting += 1
        try:
            async with asyncio.timeout(min(left, ACQUIRE_SECONDS)):
                await self._permits.acquire()
            self.in_use += 1
        except TimeoutError:
            raise OverloadedError(
                f"all {self.pool_size} connections to the database stayed taken", retry_after_seconds=1.0
            ) from None
        finally:
            self.waiting -= 1

    def _release_permit(self) -> None:
        self.in_use -= 1
        self._permits.release()

    async def _open(self, deadline: float) -> PooledConnection:
        generation = self._generation
        try:
            sqlalchemy = await self._engine.connect()
            raw = await sqlalchemy.get_raw_connection()
        except BaseException as error:  # whatever it is, the permit is free again
            self._release_permit()
            if isinstance(error, FAILURES) and (found := database_error(error)):
                raise found from error
            raise
        connection = PooledConnection(
            sqlalchemy, raw.driver_connection, generation=generation, known_failures=self._known_failures
        )
        connection.start(deadline)
        return connection

    def _discard(self, opening: "asyncio.Task[PooledConnection]") -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._settle(opening.result())

    def _give_back(self, connection: PooledConnection) -> None:
        connection.stop()
        connection.is_new = False
        if connection.is_spent and connection.generation == self._generation:
            self.renew()
        if self._closed or connection.driver.is_closed() or connection.generation != self._generation:
            self._tasks.start(connection.drop())
        else:
            self._free.append(connection)
        self._release_permit()

    def _settle(self, connection: PooledConnection) -> asyncio.Task[None]:
        return self._tasks.start(self._settled(connection))

    async def _settled(self, connection: PooledConnection) -> None:
        try:
            await connection.settle()
        except FAILURES:  # the outcome is known by now; what can't be reset is not used again
            connection.driver.terminate()
        finally:
            self._give_back(connection)

    async def _connect(self) -> Any:
        left = _deadline(time.monotonic()) - time.monotonic()
        try:
            return await connect(
                self._url,
                timeout_seconds=max(min(left, CONNECT_SECONDS), 0.05),
                command_seconds=MAX_SECONDS + 1,
                application_name=self._application_name,
                # A frozen process must not hold its locks for ever.
                idle_in_transaction_session_timeout=f"{MAX_SECONDS:.0f}s",
            )
        except (
            SettingsError
        ) as error:  # the URL has worked at the start, so it is the server that has changed
            raise UnavailableError(str(error)) from error


class Session:
    """One transaction on one connection, made by `Pool.session`."""

    def __init__(self, connection: PooledConnection, isolation: Isolation, *, read_only: bool) -> None:
        self._connection = connection
        self._read_only = read_only
        self._begin = f"BEGIN ISOLATION LEVEL {isolation.replace('_', ' ').upper()}"
        if read_only:
            self._begin += " READ ONLY"
        self._has_begun = False
        self._limit_seconds = 0.0

    def __repr__(self) -> str:
        return f"Session(left_seconds={self._connection.deadline - time.monotonic():.3f})"

    @property
    def is_clean(self) -> bool:
        """Whether no transaction has begun that is not committed."""
        return not self._has_begun

    async def execute(
        self, statement: Executable, *, translate: Translate = database_error
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """Run a statement, and return its rows if it returns any.

        Args:
            statement: a statement of SQLAlchemy whose values are all bound parameters.
            translate: makes our error of a driver's; None for one that is raised as it is.
        """
        try:
            await self._prepare()
            result = await self._connection.sqlalchemy.execute(statement)
        except FAILURES as error:
            raise self._translated(error, translate) from error
        return result.all() if result.returns_rows else ()

    async def fetch(self, sql: str, *arguments: Any, translate: Translate = database_error) -> Sequence[Any]:
        """Run compiled text as `Pool.fetch` does, but in this transaction, and return asyncpg's records."""
        try:
            await self._prepare()
            rows: Sequence[Any] = await self._connection.driver.fetch(sql, *arguments)
        except FAILURES as error:
            raise self._translated(error, translate) from error
        return rows

    async def cursor(self, sql: str, *arguments: Any, translate: Translate = database_error) -> Any:
        """Run a query as `fetch` does, and return asyncpg's cursor, for `read`."""
        try:
            await self._prepare()
            return await self._connection.driver.cursor(sql, *arguments)
        except FAILURES as error:
            raise self._translated(error, translate) from error

    async def read(self, cursor: Any, rows: int, *, translate: Translate = database_error) -> Sequence[Any]:
        """Return the next rows of a cursor, at most `rows` of them; none at its end."""
        try:
            await self._prepare()
            records: Sequence[Any] = await cursor.fetch(rows)
        except FAILURES as error:
            raise self._translated(error, translate) from error
        return records

    async def run[T](
        self, work: Callable[[AsyncConnection], Awaitable[T]], *, translate: Translate = database_error
    ) -> T:
        """Let other code use the transaction through SQLAlchemy's connection; the time limit is set once, before it.

        The connection's `commit` and `rollback` do nothing: the transaction ends with the session.
        """
        try:
            await self._prepare()
            return await work(self._connection.sqlalchemy)
        except FAILURES as error:
            raise self._translated(error, translate) from error

    def pause(self) -> None:
        """Let the transaction rest, for a minute at most: then its connection is dropped."""
        self._connection.start(time.monotonic() + MAX_SECONDS)

    def resume(self, seconds: float) -> None:
        """Go on after `pause`, with so many seconds for what comes next."""
        self._connection.start(time.monotonic() + seconds)

    async def run_sync[**P, T](
        self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function that needs SQLAlchemy's synchronous connection, such as Alembic's."""
        return await self.run(lambda connection: connection.run_sync(work, *args, **kwargs))

    async def roll_back_to(self, savepoint: str) -> None:
        """Undo everything since that savepoint, also a failed statement; the transaction goes on."""
        try:
            await self._connection.driver.execute(f"ROLLBACK TO SAVEPOINT {savepoint}")
        except FAILURES as error:
            raise self._translated(error, database_error) from error
        self._limit_seconds = -1.0  # a limit that was set since then is undone too

    async def commit(self) -> None:
        """Commit; the end of the session's block does it.

        Raises:
            OutcomeUnknownError: the connection broke during the commit.
            MisuseError: a statement of the transaction has failed, and its error was not let through.
        """
        if not self._has_begun:
            return
        try:
            done = await self._connection.driver.execute("COMMIT")
        except FAILURES as error:
            raise self._translated(error, commit_error) from error
        self._has_begun = False
        if done != "COMMIT":  # PostgreSQL answers ROLLBACK, which is no error to it
            raise MisuseError(
                "a statement of this transaction failed, so PostgreSQL undid all of it; let its error through"
            )

    def _translated(self, error: Exception, translate: Translate) -> Exception:
        if self._read_only and sqlstate_of(error) == READ_ONLY:
            return MisuseError(
                "this transaction only reads; a call that changes something isn't declared `safe`"
            )
        return self._connection.translated(error, translate)

    async def _prepare(self) -> None:
        """Begin if nothing has begun, and have the server stop the next statement at the deadline."""
        left = self._connection.left()
        limit = ""
        if not limit_fits(self._limit_seconds or self._connection.limit_seconds, left):
            self._limit_seconds = limit_for(left)
            limit = f"SET LOCAL statement_timeout = {int(self._limit_seconds * 1000)}"
        if not self._has_begun:
            self._has_begun = True  # even if it fails: then there is something to settle
            await self._connection.driver.execute(f"{self._begin};{limit}")
        elif limit:
            await self._connection.driver.execute(limit)


def _deadline(now: float) -> float:
    left = current().remaining_seconds()
    return now + min(DEFAULT_SECONDS if left is None else left, MAX_SECONDS)


def _to_json_text(value: Any) -> str:
    return encode_json(value).decode()
