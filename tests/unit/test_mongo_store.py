"""The store, the writer and the outbox of MongoDB where the server refuses what it is told; without a server."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from pymongo.errors import OperationFailure

from hybridkit.dataservice._mongo._driver._capabilities import Capabilities
from hybridkit.dataservice._mongo._outbox import MongoOutbox, _insert
from hybridkit.dataservice._mongo._store import MongoStore
from hybridkit.dataservice._mongo._writer import MongoWriter
from hybridkit.errors import InProgressError

UNAUTHORIZED = 13


class Refusing:
    """A database, and each of its collections, whose user may not insert anything."""

    full_name = "app.hk_outbox"
    client = None

    def __getitem__(self, name: str) -> "Refusing":
        return self

    async def insert_one(self, document: object) -> None:
        raise OperationFailure("not authorized", code=UNAUTHORIZED)


class Busy:
    """What is in flight, where the same write is on its way already."""

    async def run(self, *_: object) -> None:
        raise InProgressError("the same write is in progress", retry_after_seconds=1)


@pytest.fixture
def database() -> Any:
    return Refusing()


@pytest.fixture
def capabilities() -> Capabilities:
    return Capabilities(server="MongoDB 8.0", transactions=True)


async def test_a_secret_that_may_not_be_stored_is_an_error(database: Any, capabilities: Capabilities) -> None:
    """Only a duplicate says that another replica was first; pages must not be signed with a key that is lost."""
    store = MongoStore(database, {}, capabilities=capabilities, outbox=MongoOutbox(database, ()))
    with pytest.raises(OperationFailure):
        await store.signing_key()


async def test_a_document_of_the_outbox_that_may_not_be_inserted_is_an_error(database: Any) -> None:
    """Only a duplicate is what was wanted."""
    with pytest.raises(OperationFailure, match="not authorized"):
        await _insert(database, {"_id": "lease"})


async def test_a_write_that_is_on_its_way_already_is_refused(
    database: Any, capabilities: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears that the key is in use, and nothing is sent to the server."""
    writer = MongoWriter(database, {}, capabilities=capabilities, emitted=lambda: None)
    monkeypatch.setattr(writer, "_in_flight", Busy())
    write = SimpleNamespace(dry_run=False, operations=(object(),), emit=())
    with pytest.raises(InProgressError):
        await writer.write(cast("Any", write))


def test_they_say_what_they_are(database: Any, capabilities: Capabilities) -> None:
    """A log that shows them names the collection and the server, and no address."""
    writer = MongoWriter(database, {}, capabilities=capabilities, emitted=lambda: None)
    assert repr(MongoOutbox(database, ())) == "MongoOutbox('app.hk_outbox')"
    assert "MongoDB 8.0" in repr(writer)
