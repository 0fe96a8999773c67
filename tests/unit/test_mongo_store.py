"""The store, the writer and the outbox of MongoDB where the server refuses what it is told; without a server."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from pymongo.errors import DuplicateKeyError, OperationFailure

from hybridkit.dataservice._mongo._audit._entries import MongoAudit
from hybridkit.dataservice._mongo._document_events import SequenceNumbers
from hybridkit.dataservice._mongo._document_writer import DocumentWriter
from hybridkit.dataservice._mongo._driver._capabilities import Capabilities
from hybridkit.dataservice._mongo._keys import Keys
from hybridkit.dataservice._mongo._outbox import MongoOutbox, _insert
from hybridkit.dataservice._mongo._store import MongoStore
from hybridkit.dataservice._mongo._transaction_writer import TransactionWriter
from hybridkit.dataservice._mongo._writer import MongoWriter
from hybridkit.dataservice._store._erasure import StreamStep
from hybridkit.errors import InProgressError, NotSupportedError

UNAUTHORIZED = 13


class Refusing:
    """A database, and each of its collections, whose user may not insert anything."""

    full_name = "app.hk_outbox"
    client = None

    def __getitem__(self, name: str) -> "Refusing":
        return self

    async def insert_one(self, document: object) -> None:
        raise OperationFailure("not authorized", code=UNAUTHORIZED)

    async def find_one(self, _: object) -> None:
        return None

    async def update_one(self, *_: object) -> SimpleNamespace:
        return SimpleNamespace(matched_count=0)


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


async def test_a_person_is_not_forgotten_in_streams(database: Any, capabilities: Capabilities) -> None:
    """MongoDB keeps none, so nobody is told that events were erased there."""
    store = MongoStore(database, {}, capabilities=capabilities, outbox=MongoOutbox(database, ()))
    with pytest.raises(NotSupportedError, match="MongoDB keeps no streams"):
        await store.erase(StreamStep(cast("Any", None), {}), "ada", after="", dry_run=False)


async def test_a_document_of_the_outbox_that_may_not_be_inserted_is_an_error(database: Any) -> None:
    """Only a duplicate is what was wanted."""
    with pytest.raises(OperationFailure, match="not authorized"):
        await _insert(database, {"_id": "lease"})


async def test_a_key_that_may_not_be_claimed_is_an_error(database: Any) -> None:
    """Only a duplicate says that the key is known: otherwise a write would be done that no retry recognises."""
    write = SimpleNamespace(caller="orders", key="k", fingerprint=b"f")
    with pytest.raises(OperationFailure, match="not authorized"):
        await Keys(database).claim(cast("Any", write))


async def test_an_outcome_that_may_not_be_moved_to_its_claim_is_an_error(database: Any) -> None:
    """It stays in its document then: an outcome in neither place would let a retry do the write again."""
    entry = {"key": "orders k", "fingerprint": "66", "expires_at": None, "outcome": b""}
    with pytest.raises(OperationFailure, match="not authorized"):
        await Keys(database).take_over([entry])


async def test_a_counter_that_may_not_be_made_is_an_error(database: Any) -> None:
    """Only a duplicate says that another replica was first; events without numbers have no order."""
    with pytest.raises(OperationFailure, match="not authorized"):
        await SequenceNumbers(database).prepare()


async def test_numbers_go_on_when_the_counter_was_removed(
    monkeypatch: pytest.MonkeyPatch, database: Any
) -> None:
    """It is made again, also where another replica has made it meanwhile."""
    counted = [None, {"_id": "outbox", "last": 3}]

    async def count(*_: object, **__: object) -> dict[str, Any] | None:
        return counted.pop(0)

    async def insert(_: object) -> None:
        raise DuplicateKeyError("there is one", code=11000)

    monkeypatch.setattr(Refusing, "find_one_and_update", count, raising=False)
    monkeypatch.setattr(database, "insert_one", insert)
    assert await SequenceNumbers(database).take(3) == 1
    assert counted == []


def _writer(database: Any, capabilities: Capabilities) -> MongoWriter:
    audit = MongoAudit(database, {})
    return MongoWriter(database, {}, capabilities=capabilities, audit=audit, emitted=lambda: None)


async def test_a_write_that_is_on_its_way_already_is_refused(
    database: Any, capabilities: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller hears that the key is in use, and nothing is sent to the server."""
    writer = _writer(database, capabilities)
    monkeypatch.setattr(writer, "_in_flight", Busy())
    write = SimpleNamespace(dry_run=False, operations=(object(),), emit=(), cancel=(), appends=())
    with pytest.raises(InProgressError):
        await writer.write(cast("Any", write))


async def test_an_audit_entry_that_is_refused_is_no_entry_that_is_there(database: Any) -> None:
    """The error of a server that takes no entry ends the move, so that the entry stays in its document."""
    with pytest.raises(OperationFailure, match="not authorized"):
        await MongoAudit(database, {}).take_over([{"_id": 1}])


def test_they_say_what_they_are(database: Any, capabilities: Capabilities) -> None:
    """A log that shows them names the collection and the server, and no address."""
    writer = _writer(database, capabilities)
    assert repr(MongoOutbox(database, ())) == "MongoOutbox('app.hk_outbox')"
    assert "MongoDB 8.0" in repr(writer)
    audit = MongoAudit(database, {})
    assert repr(audit) == "MongoAudit([])"
    assert repr(DocumentWriter(database, {}, audit=audit, emitted=lambda: None)) == "DocumentWriter([])"
    assert repr(TransactionWriter(database, {}, audit=audit, emitted=lambda: None)) == "TransactionWriter([])"
    assert repr(Keys(database)) == "Keys('app.hk_outbox')"
    assert repr(SequenceNumbers(database)) == "SequenceNumbers('app.hk_outbox')"
