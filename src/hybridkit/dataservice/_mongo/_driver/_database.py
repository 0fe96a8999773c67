"""The driver's client with time limits, and its failures as errors of the error tree.

Every call of the driver runs inside of `bounded()` and `meaning(…)`: it ends when the caller's time does, and a failure
of the driver becomes an error that says what the caller can do.
"""

import warnings
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from math import isfinite
from typing import Any, Final, TypeGuard
from urllib.parse import parse_qsl, urlsplit

import pymongo
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConfigurationError
from pymongo.monitoring import (
    ConnectionCheckedInEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutFailedEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionPoolListener,
)
from pymongo.write_concern import WriteConcern

from hybridkit.context import current
from hybridkit.dataservice._mongo._collection import HIDDEN, bookkeeping
from hybridkit.dataservice._mongo._driver._errors import MONGO_FAILURES
from hybridkit.dataservice._mongo._values import CODEC
from hybridkit.dataservice._store._pool_metrics import sample_pool
from hybridkit.errors import HybridkitError, SettingsError
from hybridkit.observability import sampled

DEFAULT_SECONDS: Final = 10.0
"""The time for a caller that sets no deadline."""
CONNECT_SECONDS: Final = 3.0
POOL_SIZE: Final = 50

type StoredDocument = dict[str, Any]

LIVE: Final[StoredDocument] = {f"{HIDDEN}.deleted_at": None}
"""A filter for records: neither tombstones nor records that a soft delete has hidden."""


def is_live(stored: StoredDocument | None) -> TypeGuard[StoredDocument]:
    """Return whether the document is a record that readers see."""
    return stored is not None and bookkeeping(stored).get("deleted_at") is None


@contextmanager
def bounded(seconds: float | None = None) -> Generator[None]:
    """Set the driver's time limit for everything inside to the caller's remaining time.

    Args:
        seconds: the limit for work that is not a caller's; None for the caller's remaining time.

    Raises:
        DeadlinePassedError: the caller has no time left.
    """
    if seconds is None:
        context = current()
        context.check_deadline()
        seconds = context.remaining_seconds()
    with pymongo.timeout(DEFAULT_SECONDS if seconds is None else seconds):
        yield


@contextmanager
def meaning(of: Callable[[Exception], HybridkitError | None]) -> Generator[None]:
    """Replace the driver's failures by the errors that the function makes of them."""
    try:
        yield
    except MONGO_FAILURES as error:
        found = of(error)
        if found is None:
            raise
        raise found from error


@asynccontextmanager
async def open_database(url: str, *, name: str) -> AsyncGenerator[AsyncDatabase[StoredDocument]]:
    """Open the database that the URL names, or `app` where it names none; nothing is sent yet.

    Args:
        url: `mongodb://user:password@host:27017/name`, with the driver's options; they win over the ones here.
        name: of the service, for the server's log.

    Raises:
        SettingsError: the driver doesn't know an option in the URL, or doesn't take its value.
    """
    counted = _CountedPool()
    client = _client(url, name, counted)
    most = client.options.pool_options.max_pool_size
    counted.pool_size = int(most) if isfinite(most) else 0
    async with client:
        durable = WriteConcern("majority") if client.write_concern.is_server_default else client.write_concern
        with sampled(partial(sample_pool, "requests", counted)):
            yield client.get_default_database("app", codec_options=CODEC, write_concern=durable)


class _CountedPool(ConnectionPoolListener):
    """Counts the connections of the driver's pools, of which it has one per server of a replica set.

    https://pymongo.readthedocs.io/en/stable/api/pymongo/monitoring.html
    """

    def __init__(self) -> None:
        self.pool_size = 0
        self.in_use = 0
        self.waiting = 0

    def connection_check_out_started(self, event: ConnectionCheckOutStartedEvent) -> None:
        del event
        self.waiting += 1

    def connection_check_out_failed(self, event: ConnectionCheckOutFailedEvent) -> None:
        del event
        self.waiting -= 1

    def connection_checked_out(self, event: ConnectionCheckedOutEvent) -> None:
        del event
        self.waiting -= 1
        self.in_use += 1

    def connection_checked_in(self, event: ConnectionCheckedInEvent) -> None:
        del event
        self.in_use -= 1

    def _ignore(self, event: object) -> None:
        """Ignore what says nothing of use."""

    pool_created = pool_ready = pool_cleared = pool_closed = _ignore
    connection_created = connection_ready = connection_closed = _ignore


def _client(url: str, name: str, listener: ConnectionPoolListener) -> "AsyncMongoClient[StoredDocument]":
    options = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    asked = {option.lower() for option, _ in options}
    ours: dict[str, Any] = {
        "appname": name,
        "connectTimeoutMS": int(CONNECT_SECONDS * 1000),
        "serverSelectionTimeoutMS": int(CONNECT_SECONDS * 1000),
        "timeoutMS": int(DEFAULT_SECONDS * 1000),
        "maxPoolSize": POOL_SIZE,
        "waitQueueTimeoutMS": 1000,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # so it says that it doesn't know an option
            return AsyncMongoClient(
                url,
                **{option: value for option, value in ours.items() if option.lower() not in asked},
                # Our keys make a repeated write safe, on servers that can't do that by themselves too.
                retryWrites=False,
                tz_aware=True,
                event_listeners=[listener],
            )
    except (ConfigurationError, ValueError, TypeError, UserWarning, OSError) as error:
        problem = _what_is_wrong(options, str(error).lower())
        raise SettingsError("the URL of MongoDB can't be used", problems=[problem]) from None


def _what_is_wrong(options: Sequence[tuple[str, str]], words: str) -> str:
    """Name the option that the driver refuses; the driver's own words may quote a value."""
    named = [name for name, _ in options if name.lower() in words]
    named += [name for name, value in options if value and value.lower() in words]
    if named:
        return f"the option {named[0]} can't be used: the driver doesn't know it, or doesn't take its value"
    return "it should be mongodb://user:password@host:27017/name, user and password percent-encoded"
