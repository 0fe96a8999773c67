"""Connections to PostgreSQL: few, bounded, and each statement stopped at the caller's deadline.

Three bounds, because a frozen server honours none of them by itself: the server cancels a statement at the deadline
(`statement_timeout`); a timer drops the connection shortly after, whatever the driver waits for; the driver's own
`command_timeout` is the last one. Cancelling a coroutine is no bound: asyncpg then waits for the server to confirm it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Literal, cast

import asyncpg  # type: ignore[import-untyped] # it ships no types
import orjson
from sqlalchemy import Connection, Executable, Row, event, func, select
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from hybridkit.codec import encode_json
from hybridkit.context import current
from hybridkit.dataservice._postgres_errors import commit_error, database_error
from hybridkit.errors import DeadlineExceededError, HybridkitError, OverloadedError

__all__ = ["Database", "Isolation", "Session", "connect"]

type Isolation = Literal["read_committed", "repeatable_read", "serializable"]
type Meaning = Callable[[Exception], HybridkitError | None]

DEFAULT_SECONDS: Final = 10.0
"""How long work may take for a caller that sets no deadline."""
MAX_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 0.25
"""What the server gets to cancel a statement by itself before its connection is dropped."""
ACQUIRE_SECONDS: Final = 1.0
CONNECT_SECONDS: Final = 3.0

_FAILURES: Final = (DBAPIError, TimeoutError, OSError)


class Database:
    """A pool of connections. Nobody waits for one longer than a second, nor past the deadline.

    Args:
        url: `postgresql://user:password@host:5432/name`, with libpq's options.
        pool_size: how many connections there are at most.
        application_name: what `pg_stat_activity` shows.
    """

    def __init__(self, url: str, *, pool_size: int, application_name: str) -> None:
        self._url = url
        self._application_name = application_name
        self._pool_size = pool_size
        self._places = asyncio.Semaphore(pool_size)
        self._changing: set[asyncio.Task[Any]] = set()
        self._engine: AsyncEngine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=ACQUIRE_SECONDS,
            hide_parameters=True,  # values don't belong into logs
            json_serializer=_to_json_text,
            json_deserializer=orjson.loads,
        )
        event.listen(self._engine.sync_engine, "checkout", _refuse_closed)

    def __repr__(self) -> str:
        return f"Database(application_name={self._application_name!r}, pool_size={self._pool_size})"

    async def close(self) -> None:
        """Close every connection; those in use when they come back, which is bounded as their work is."""
        while self._changing:
            await asyncio.wait(self._changing)
        await self._engine.dispose()

    @asynccontextmanager
    async def session(self, *, isolation: Isolation = "read_committed") -> AsyncGenerator["Session"]:
        """A transaction: committed at the end of the block, rolled back by any exception.

        Raises:
            OverloadedError: every connection stayed taken.
            UnavailableError: PostgreSQL does not answer.
            DeadlineExceededError: the deadline has passed, or passes before the end.
            OutcomeUnknownError: the connection broke during the commit.
        """
        session = await self._open(isolation)
        try:
            yield session
            await session.commit()
        finally:
            await asyncio.shield(self._close(session))

    # Opening and closing are tasks: a cancelled caller leaves at once, and they go on to their end, which is bounded.
    # Cancelled half-way, SQLAlchemy would leave a connection behind that nobody closes.

    async def _open(self, isolation: Isolation) -> "Session":
        deadline = _deadline()
        await self._take_place(deadline)
        opening = self._start(self._connected(isolation, deadline))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._discard)
            raise

    async def _connected(self, isolation: Isolation, deadline: float) -> "Session":
        try:
            connection = await self._engine.connect()
            if isolation != "read_committed":
                await connection.execution_options(isolation_level=isolation.replace("_", " ").upper())
            raw = await connection.get_raw_connection()
        except BaseException as error:
            self._places.release()
            if isinstance(error, _FAILURES) and (found := database_error(error)):
                raise found from error
            raise
        driver: Any = raw.driver_connection
        return Session(connection, driver, deadline)

    def _discard(self, opening: "asyncio.Task[Session]") -> None:
        if not opening.cancelled() and opening.exception() is None:
            self._close(opening.result())

    def _close(self, session: "Session") -> asyncio.Task[None]:
        closing = self._start(session.close())
        closing.add_done_callback(lambda _: self._places.release())
        return closing

    def _start[T](self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        return task

    async def _take_place(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceededError("the deadline has passed; nothing was started")
        try:
            async with asyncio.timeout(min(left, ACQUIRE_SECONDS)):
                await self._places.acquire()
        except TimeoutError:
            raise OverloadedError(
                f"all {self._pool_size} connections to the database stayed taken", retry_after_seconds=1.0
            ) from None

    async def _connect(self) -> Any:
        left = _deadline() - time.monotonic()
        return await connect(
            self._url,
            timeout_seconds=max(min(left, CONNECT_SECONDS), 0.05),
            command_seconds=MAX_SECONDS + 1,
            application_name=self._application_name,
            # A frozen process must not hold its locks for ever.
            idle_in_transaction_session_timeout=f"{MAX_SECONDS:.0f}s",
        )


class Session:
    """One transaction on one connection, made by `Database.session`."""

    def __init__(self, connection: AsyncConnection, driver: Any, deadline: float) -> None:
        self._connection = connection
        self._driver = driver
        self._deadline = deadline
        self._limit_seconds = 0.0
        self._expired = False
        left = max(deadline - time.monotonic(), 0.0)
        self._guard = asyncio.get_running_loop().call_later(left + GRACE_SECONDS, self._expire)

    def __repr__(self) -> str:
        return f"Session(left_seconds={self._deadline - time.monotonic():.3f})"

    async def execute(
        self, statement: Executable, *, meaning: Meaning = database_error
    ) -> Sequence[Row[*tuple[Any, ...]]]:
        """The rows that the statement returns, if it returns any.

        Args:
            statement: with bound parameters only.
            meaning: which of our errors a driver's error is; None lets it through.
        """
        await self._limit()
        try:
            result = await self._connection.execute(statement)
        except _FAILURES as error:
            raise self._translated(error, meaning) from error
        return result.all() if result.returns_rows else ()

    async def run_sync[T](self, work: Callable[[Connection], T]) -> T:
        """Call something that wants SQLAlchemy's plain connection, Alembic for one."""
        await self._limit()
        try:
            return await self._connection.run_sync(work)
        except _FAILURES as error:
            raise self._translated(error, database_error) from error

    async def commit(self) -> None:
        """Commit; the end of the session does it.

        Raises:
            OutcomeUnknownError: the connection broke on the way.
        """
        try:
            await self._connection.commit()
        except _FAILURES as error:
            raise self._translated(error, commit_error) from error

    async def close(self) -> None:
        """Roll back what is not committed and return the connection, or drop it where it is broken."""
        try:
            with suppress(*_FAILURES):  # the outcome is known by now, and the pool drops what it can't reset
                if self._driver.is_closed():
                    await self._connection.invalidate()
                await self._connection.close()
        finally:
            self._guard.cancel()

    async def _limit(self) -> None:
        """Have the server stop the next statement at the deadline; told again once a tenth of the time has gone."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceededError("the deadline passed between two statements; nothing was changed")
        if not 0.9 * self._limit_seconds <= left <= self._limit_seconds:
            self._limit_seconds = left
            limit = func.set_config("statement_timeout", str(max(int(left * 1000), 1)), True)
            try:
                await self._connection.execute(select(limit))
            except _FAILURES as error:
                raise self._translated(error, database_error) from error

    def _translated(self, error: Exception, meaning: Meaning) -> Exception:
        if self._expired:
            return DeadlineExceededError("the database did not answer by the deadline")
        if not isinstance(
            error, DBAPIError
        ):  # `command_timeout`: the connection is in the middle of something
            self._driver.terminate()
        return meaning(error) or error

    def _expire(self) -> None:
        self._expired = True
        self._driver.terminate()


async def connect(url: str, *, timeout_seconds: float, command_seconds: float, **settings: str) -> Any:
    """A connection of asyncpg's, which reads all of libpq's options in a URL (SQLAlchemy knows a few).

    Args:
        url: `postgresql://`; SQLAlchemy's `postgresql+asyncpg://` is taken too.
        timeout_seconds: until it is open.
        command_seconds: for one statement.
        settings: of the server, for this connection.
    """
    plain = url.replace("postgresql+asyncpg://", "postgresql://", 1)
    driver = cast("Any", asyncpg)
    return await driver.connect(
        plain, timeout=timeout_seconds, command_timeout=command_seconds, server_settings=settings
    )


def _deadline() -> float:
    left = current().remaining_seconds()
    return time.monotonic() + min(DEFAULT_SECONDS if left is None else left, MAX_SECONDS)


def _to_json_text(value: Any) -> str:
    return encode_json(value).decode()


def _refuse_closed(dbapi_connection: Any, _record: object, _proxy: object) -> None:
    """Notice without a round trip that the server has closed an idle connection; the pool opens another."""
    if dbapi_connection.driver_connection.is_closed():
        raise DisconnectionError("the server closed this connection")
