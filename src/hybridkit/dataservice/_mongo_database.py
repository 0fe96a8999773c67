"""What every part of the store on MongoDB needs of the driver: a client with limits, and its failures by their meaning.

Every call of the driver stands between `bounded()` and `meaning(…)`: it ends when the caller's time does, and what the
driver raises becomes an error that says what the caller can do.
"""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeGuard

import pymongo
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.write_concern import WriteConcern

from hybridkit.context import current
from hybridkit.dataservice._mongo_collection import HIDDEN, bookkeeping
from hybridkit.dataservice._mongo_errors import MONGO_FAILURES
from hybridkit.dataservice._mongo_values import CODEC
from hybridkit.errors import HybridkitError

__all__ = ["DEFAULT_SECONDS", "LIVE", "StoredDocument", "bounded", "is_live", "meaning", "open_database"]

DEFAULT_SECONDS: Final = 10.0
"""How long work may take for a caller that sets no deadline."""
CONNECT_SECONDS: Final = 3.0
POOL_SIZE: Final = 50

type StoredDocument = dict[str, Any]

LIVE: Final[StoredDocument] = {f"{HIDDEN}.deleted_at": None}
"""Matches records: neither tombstones nor what a soft delete has hidden."""


def is_live(stored: StoredDocument | None) -> TypeGuard[StoredDocument]:
    """Whether that is a record, as far as readers are concerned."""
    return stored is not None and bookkeeping(stored).get("deleted_at") is None


@contextmanager
def bounded(seconds: float | None = None) -> Generator[None]:
    """The driver's own time limit for everything inside: what the caller has left.

    Args:
        seconds: of the work itself, where it is not that of a caller.

    Raises:
        DeadlineExceededError: nothing is left.
    """
    if seconds is None:
        context = current()
        context.check_deadline()
        seconds = context.remaining_seconds()
    with pymongo.timeout(DEFAULT_SECONDS if seconds is None else seconds):
        yield


@contextmanager
def meaning(of: Callable[[Exception], HybridkitError | None]) -> Generator[None]:
    """Raise what the driver's failures mean."""
    try:
        yield
    except MONGO_FAILURES as error:
        found = of(error)
        if found is None:
            raise
        raise found from error


@asynccontextmanager
async def open_database(url: str, *, name: str) -> AsyncGenerator[AsyncDatabase[StoredDocument]]:
    """The database in that URL, `app` where it names none. Nothing is sent yet.

    Args:
        url: `mongodb://user:password@host:27017/name`.
        name: of the service, for the server's log.
    """
    client: AsyncMongoClient[StoredDocument] = AsyncMongoClient(
        url,
        appname=name,
        connectTimeoutMS=int(CONNECT_SECONDS * 1000),
        serverSelectionTimeoutMS=int(CONNECT_SECONDS * 1000),
        timeoutMS=int(DEFAULT_SECONDS * 1000),
        maxPoolSize=POOL_SIZE,
        waitQueueTimeoutMS=1000,
        retryWrites=False,  # our keys make a repeated write safe, on servers that can't do that by themselves too
        tz_aware=True,
    )
    async with client:
        durable = WriteConcern("majority") if client.write_concern.is_server_default else client.write_concern
        yield client.get_default_database("app", codec_options=CODEC, write_concern=durable)
