"""Connections to PostgreSQL: few, bounded, and each statement stopped at the caller's deadline.

Three bounds, because a frozen server honours none of them by itself: the server cancels a statement at the deadline
(`statement_timeout`); a timer drops the connection shortly after, whatever the driver waits for; the driver's own
`command_timeout` is the last one. Cancelling a coroutine is no bound: asyncpg then waits for the server to confirm it.

`Pool.fetch` is the short way: one statement, its own transaction, one round trip. `Pool.session` is a
transaction of many statements.

Connections are of a generation. What one of them finds out about all that are as old ends the generation: the server
takes no writes since a failover, or the schema is another one than statements were prepared for. Then new ones are
opened, and the name is looked up again.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

from sqlalchemy import Connection, Executable, NullPool, Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from hybridkit.codec import encode_json
from hybridkit.context import current
from hybridkit.dataservice._postgres._driver._connection import (
    FAILURES,
    Link,
    Meaning,
    Mistakes,
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

__all__ = ["Isolation", "Pool", "Session", "connect"]

type Isolation = Literal["read_committed", "repeatable_read", "serializable"]

DEFAULT_SECONDS: Final = 10.0
"""How long work may take for a caller that sets no deadline."""
MAX_SECONDS: Final = 60.0
ACQUIRE_SECONDS: Final = 1.0
CONNECT_SECONDS: Final = 3.0


class Pool:
    """A pool of connections. Nobody waits for one longer than a second, nor past the deadline.

    Args:
        url: `postgresql://user:password@host:5432/name`, with libpq's options.
        pool_size: how many connections there are at most.
        application_name: what `pg_stat_activity` shows.
    """

    def __init__(self, url: str, *, pool_size: int, application_name: str) -> None:
        self.pool_size = pool_size
        self._url = url
        self._application_name = application_name
        self._permits = asyncio.Semaphore(pool_size)
        self._free: list[Link] = []
        self._closed = False
        self._generation = 0
        self._mistakes = Mistakes()
        self._changing: set[asyncio.Task[Any]] = set()
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
        """Close every connection; those in use when they come back, which is bounded as their work is."""
        self._closed = True
        self.renew()
        while self._changing:
            await asyncio.wait(self._changing)
        await self._engine.dispose()

    def renew(self) -> None:
        """From now on use connections only that are opened later; those in use are closed when they come back."""
        self._generation += 1
        while self._free:
            self._start(self._free.pop().drop())

    async def fetch(self, sql: str, *arguments: Any, meaning: Meaning = database_error) -> Sequence[Any]:
        """Run one statement as a transaction of its own, in one round trip.

        Where a migration has overtaken its connection it has done nothing, and runs again on a new one.

        Args:
            sql: with `$1`, `$2`, … for the arguments.
            arguments: of the types that asyncpg takes for the parameters' SQL types.
            meaning: which of our errors a driver's error is; None lets it through.

        Returns:
            Records of asyncpg's.

        Raises:
            OverloadedError: every connection stayed taken.
            UnavailableError: PostgreSQL does not answer.
            DeadlinePassedError: the deadline has passed, and nothing was changed.
            DeadlineExceededError: it passes while the database works, and nobody knows what became of it.
        """
        started = time.monotonic()
        deadline = _deadline(started)
        rows = await self._fetch(deadline, sql, arguments, meaning, again=True)
        if rows is None:
            rows = await self._fetch(deadline, sql, arguments, meaning) or ()
        add_waiting_seconds(time.monotonic() - started)
        return rows

    async def _fetch(
        self, deadline: float, sql: str, arguments: Sequence[Any], meaning: Meaning, *, again: bool = False
    ) -> Sequence[Any] | None:
        """The rows; None where the connection was outdated, and the caller wants to try `again`."""
        link = await self._take(deadline)
        try:
            await link.limit()
            rows: Sequence[Any] = await link.driver.fetch(sql, *arguments)
        except (
            BaseException
        ) as error:  # also a caller that leaves: the connection is in the middle of something
            failure = link.translated(error, meaning) if isinstance(error, FAILURES) else error
            await asyncio.shield(self._settle(link))
            if again and link.is_outdated:
                return None
            if failure is error:
                raise
            raise failure from error
        self._give_back(link)
        return rows

    async def execute(
        self, statement: Executable, *, meaning: Meaning = database_error
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """As `fetch`, by SQLAlchemy, in a transaction that only reads."""
        try:
            return await self._executed(statement, meaning)
        except OutdatedError:
            return await self._executed(statement, meaning)

    async def _executed(self, statement: Executable, meaning: Meaning) -> Sequence[Row[*tuple[Any, ...]]]:
        async with self.session(read_only=True) as session:
            return await session.execute(statement, meaning=meaning)

    @asynccontextmanager
    async def session(
        self, *, isolation: Isolation = "read_committed", read_only: bool = False
    ) -> AsyncGenerator["Session"]:
        """A transaction: committed at the end of the block, rolled back by any exception.

        It begins with the first statement.

        Args:
            isolation: of the transaction.
            read_only: whether PostgreSQL refuses to change anything.

        Raises:
            OverloadedError: every connection stayed taken.
            UnavailableError: PostgreSQL does not answer.
            DeadlinePassedError: the deadline has passed, and nothing was changed.
            DeadlineExceededError: it passes while the database works, and nobody knows what became of it.
            OutcomeUnknownError: the connection broke during the commit.
        """
        started = time.monotonic()
        link = await self._take(_deadline(started))
        session = Session(link, isolation, read_only=read_only)
        try:
            yield session
            await session.commit()
        finally:
            if session.is_clean and not link.connection.in_transaction():
                self._give_back(link)
            else:
                await asyncio.shield(self._settle(link))
            add_waiting_seconds(time.monotonic() - started)

    # ── the pool ─────────────────────────────────────────────────────────────────────────────────

    # Opening and settling are tasks: a cancelled caller leaves at once, and they go on to their end, which is bounded.
    # Cancelled half-way, they would leave a connection behind that nobody closes.

    async def _take(self, deadline: float) -> Link:
        await self._take_permit(deadline)
        while self._free:
            link = self._free.pop()
            if not link.driver.is_closed():
                link.start(deadline)
                return link
            self._start(link.drop())  # the server closed it meanwhile; no round trip was needed to notice
        opening = self._start(self._open(deadline))
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
            return
        try:
            async with asyncio.timeout(min(left, ACQUIRE_SECONDS)):
                await self._permits.acquire()
        except TimeoutError:
            raise OverloadedError(
                f"all {self.pool_size} connections to the database stayed taken", retry_after_seconds=1.0
            ) from None

    async def _open(self, deadline: float) -> Link:
        generation = self._generation
        try:
            connection = await self._engine.connect()
            raw = await connection.get_raw_connection()
        except BaseException as error:  # whatever it is, the permit is free again
            self._permits.release()
            if isinstance(error, FAILURES) and (found := database_error(error)):
                raise found from error
            raise
        link = Link(connection, raw.driver_connection, generation=generation, mistakes=self._mistakes)
        link.start(deadline)
        return link

    def _discard(self, opening: "asyncio.Task[Link]") -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._settle(opening.result())

    def _give_back(self, link: Link) -> None:
        link.stop()
        link.is_new = False
        if link.is_spent and link.generation == self._generation:
            self.renew()
        if self._closed or link.driver.is_closed() or link.generation != self._generation:
            self._start(link.drop())
        else:
            self._free.append(link)
        self._permits.release()

    def _settle(self, link: Link) -> asyncio.Task[None]:
        return self._start(self._settled(link))

    async def _settled(self, link: Link) -> None:
        try:
            await link.settle()
        except FAILURES:  # the outcome is known by now; what can't be reset is not used again
            link.driver.terminate()
        finally:
            self._give_back(link)

    def _start[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        return task

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
        except SettingsError as error:  # it has worked at the start, so it is the server that has changed
            raise UnavailableError(str(error)) from error


class Session:
    """One transaction on one connection, made by `Pool.session`."""

    def __init__(self, link: Link, isolation: Isolation, *, read_only: bool) -> None:
        self._link = link
        self._read_only = read_only
        self._begin = f"BEGIN ISOLATION LEVEL {isolation.replace('_', ' ').upper()}"
        if read_only:
            self._begin += " READ ONLY"
        self._has_begun = False
        self._limit_seconds = 0.0

    def __repr__(self) -> str:
        return f"Session(left_seconds={self._link.deadline - time.monotonic():.3f})"

    @property
    def is_clean(self) -> bool:
        """Whether nothing has been begun that is not committed."""
        return not self._has_begun

    async def execute(
        self, statement: Executable, *, meaning: Meaning = database_error
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """The rows that the statement returns, if it returns any.

        Args:
            statement: with bound parameters only.
            meaning: which of our errors a driver's error is; None lets it through.
        """
        try:
            await self._prepare()
            result = await self._link.connection.execute(statement)
        except FAILURES as error:
            raise self._translated(error, meaning) from error
        return result.all() if result.returns_rows else ()

    async def fetch(self, sql: str, *arguments: Any, meaning: Meaning = database_error) -> Sequence[Any]:
        """As `Pool.fetch`, within the transaction: asyncpg's records of compiled text."""
        try:
            await self._prepare()
            rows: Sequence[Any] = await self._link.driver.fetch(sql, *arguments)
        except FAILURES as error:
            raise self._translated(error, meaning) from error
        return rows

    async def cursor(self, sql: str, *arguments: Any, meaning: Meaning = database_error) -> Any:
        """As `fetch`, but asyncpg's cursor, for `read`."""
        try:
            await self._prepare()
            return await self._link.driver.cursor(sql, *arguments)
        except FAILURES as error:
            raise self._translated(error, meaning) from error

    async def read(self, cursor: Any, rows: int, *, meaning: Meaning = database_error) -> Sequence[Any]:
        """The next rows of a cursor, at most so many; none at its end."""
        try:
            await self._prepare()
            records: Sequence[Any] = await cursor.fetch(rows)
        except FAILURES as error:
            raise self._translated(error, meaning) from error
        return records

    async def run[T](
        self, work: Callable[[AsyncConnection], Awaitable[T]], *, meaning: Meaning = database_error
    ) -> T:
        """Let somebody else use the transaction, by SQLAlchemy's connection; the limit is that of their start.

        Its `commit` and `rollback` do nothing: the transaction ends with the session.
        """
        try:
            await self._prepare()
            return await work(self._link.connection)
        except FAILURES as error:
            raise self._translated(error, meaning) from error

    def pause(self) -> None:
        """Leave the transaction alone, for a minute at most: then its connection is dropped."""
        self._link.start(time.monotonic() + MAX_SECONDS)

    def resume(self, seconds: float) -> None:
        """Go on, with so much time for what comes next."""
        self._link.start(time.monotonic() + seconds)

    async def run_sync[T](self, work: Callable[[Connection], T]) -> T:
        """Call something that wants SQLAlchemy's plain connection, Alembic for one."""
        return await self.run(lambda connection: connection.run_sync(work))

    async def roll_back_to(self, savepoint: str) -> None:
        """Undo what was done since that savepoint, a failed statement too; the transaction goes on."""
        try:
            await self._link.driver.execute(f"ROLLBACK TO SAVEPOINT {savepoint}")
        except FAILURES as error:
            raise self._translated(error, database_error) from error
        self._limit_seconds = -1.0  # a limit that was set since then is undone too

    async def commit(self) -> None:
        """Commit; the end of the session does it.

        Raises:
            OutcomeUnknownError: the connection broke on the way.
            MisuseError: a statement failed and somebody went on as if it had not.
        """
        if not self._has_begun:
            return
        try:
            done = await self._link.driver.execute("COMMIT")
        except FAILURES as error:
            raise self._translated(error, commit_error) from error
        self._has_begun = False
        if done != "COMMIT":  # PostgreSQL answers ROLLBACK, which is no error to it
            raise MisuseError(
                "a statement of this transaction failed, so PostgreSQL undid all of it; let its error through"
            )

    def _translated(self, error: Exception, meaning: Meaning) -> Exception:
        if self._read_only and sqlstate_of(error) == READ_ONLY:
            return MisuseError(
                "this transaction only reads; a call that changes something isn't declared `safe`"
            )
        return self._link.translated(error, meaning)

    async def _prepare(self) -> None:
        """Begin, and have the server stop the next statement at the deadline; told again when less is left."""
        left = self._link.left()
        limit = ""
        if not limit_fits(self._limit_seconds or self._link.limit_seconds, left):
            self._limit_seconds = limit_for(left)
            limit = f"SET LOCAL statement_timeout = {int(self._limit_seconds * 1000)}"
        if not self._has_begun:
            self._has_begun = True  # even if it fails: then there is something to settle
            await self._link.driver.execute(f"{self._begin};{limit}")
        elif limit:
            await self._link.driver.execute(limit)


def _deadline(now: float) -> float:
    left = current().remaining_seconds()
    return now + min(DEFAULT_SECONDS if left is None else left, MAX_SECONDS)


def _to_json_text(value: Any) -> str:
    return encode_json(value).decode()
