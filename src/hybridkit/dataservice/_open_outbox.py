"""Open the outbox of a database by its URL, for people and programs that look after it from outside of the service."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from hybridkit.dataservice._outbox._protocol import OutboxEntries
from hybridkit.errors import InvalidRequestError, MissingExtraError, UnavailableError


@asynccontextmanager
async def open_outbox(url: str) -> AsyncGenerator[OutboxEntries]:
    """Open the outbox of a data service, to see which events wait or can't be published, and to have these tried again.

    ```python
    async with open_outbox("postgresql://user:password@localhost/app") as outbox:
        for entry in await outbox.entries(parked=True, limit=100):
            print(entry.event_type, entry.reason)
    ```

    Args:
        url: the service's `DATABASE_URL`: `postgresql://…` or `mongodb://…`.

    Raises:
        UnavailableError: the database does not answer, or belongs to no data service of this release.
        MissingExtraError: the extra `postgres` or `mongo` is not installed.
        InvalidRequestError: the URL has another scheme.
    """
    scheme = url.partition("://")[0].partition("+")[0]
    if scheme in ("postgresql", "postgres"):
        async with _on_postgres(url) as outbox:
            yield outbox
    elif scheme == "mongodb":
        async with _on_mongo(url) as outbox:
            yield outbox
    else:
        raise InvalidRequestError(
            f"an outbox is in PostgreSQL or MongoDB, and {scheme!r} is neither's scheme"
        )


@asynccontextmanager
async def _on_postgres(url: str) -> AsyncGenerator[OutboxEntries]:
    try:
        from hybridkit.dataservice._postgres._driver._pool import Pool  # noqa: PLC0415 - an extra of its own
        from hybridkit.dataservice._postgres._outbox import PostgresOutbox  # noqa: PLC0415
        from hybridkit.dataservice._postgres._schema import (  # noqa: PLC0415
            histories_of,
            missing_revisions,
        )
    except ModuleNotFoundError:
        raise MissingExtraError("an outbox in PostgreSQL", extra="postgres") from None

    pool = Pool(url, pool_size=1, application_name="hybridkit_outbox")
    try:
        async with pool.session() as session:
            own = histories_of(None)
            missing = await session.run_sync(lambda connection: missing_revisions(connection, own))
        if missing:
            raise UnavailableError(
                f"this database is not at revision {', '.join(missing)}; is it a data service's of this release?"
            )
        yield PostgresOutbox(pool)
    finally:
        await pool.close()


@asynccontextmanager
async def _on_mongo(url: str) -> AsyncGenerator[OutboxEntries]:
    try:
        from hybridkit.dataservice._mongo._driver._database import bounded, meaning, open_database  # noqa: PLC0415
        from hybridkit.dataservice._mongo._driver._errors import read_error  # noqa: PLC0415
        from hybridkit.dataservice._mongo._outbox import LEASES_COLLECTION, MongoOutbox  # noqa: PLC0415
    except ModuleNotFoundError:
        raise MissingExtraError("an outbox in MongoDB", extra="mongo") from None

    async with open_database(url, name="hybridkit_outbox") as database:
        with bounded(), meaning(read_error):
            known = await database.list_collection_names()
        if LEASES_COLLECTION not in known:
            raise UnavailableError(f"the database {database.name} has no outbox; is it a data service's?")
        yield MongoOutbox(database, ())
