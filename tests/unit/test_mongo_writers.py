"""The keys and the two writers of MongoDB where another process comes in between; without a server."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pymongo.errors import DuplicateKeyError

from hybridkit.codec import now
from hybridkit.dataservice._mongo import _document_writer, _keys, _transaction_writer
from hybridkit.dataservice._mongo._audit._entries import MongoAudit
from hybridkit.dataservice._mongo._document_writer import DocumentWriter
from hybridkit.dataservice._mongo._driver._sessions import LostRaceError
from hybridkit.dataservice._mongo._keys import Keys
from hybridkit.dataservice._mongo._replacements import Replacement
from hybridkit.dataservice._mongo._transaction_writer import TransactionWriter
from hybridkit.dataservice._store._operations import Outcome
from hybridkit.errors import ConflictError, InvalidRequestError


class Scripted:
    """A database, and each of its collections: it notes what it is asked, and answers as it was told."""

    full_name = "app.hk_keys"
    client = None

    def __init__(self, **answers: Any) -> None:
        self.asked: list[str] = []
        self._answers = answers

    def __getitem__(self, name: str) -> "Scripted":
        return self

    def __getattr__(self, method: str) -> Callable[..., Any]:
        async def ask(*_: Any, **__: Any) -> Any:
            self.asked.append(method)
            answer = self._answers[method]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


TAKEN = DuplicateKeyError("there is one", code=11000)
MATCHED, NOT_MATCHED = SimpleNamespace(matched_count=1), SimpleNamespace(matched_count=0)
ENTRY = {"key": "orders k", "fingerprint": "66", "expires_at": now(), "outcome": b"o"}
STORED: dict[str, Any] = {"_id": 1, "version": 1, "_hk": {}}


def a_write(**changes: Any) -> Any:
    fields = {"operations": (), "emit": (), "cancel": (), "call": None, "dry_run": False}
    return SimpleNamespace(caller="orders", key="k", fingerprint=b"f", **{**fields, **changes})


def document_writer(database: Any) -> Any:
    return DocumentWriter(database, {}, audit=MongoAudit(database, {}), emitted=lambda: None)


def transaction_writer(database: Any) -> Any:
    things: Any = SimpleNamespace(name="things")
    return TransactionWriter(
        database, {"things": things}, audit=MongoAudit(database, {}), emitted=lambda: None
    )


@pytest.fixture(autouse=True)
def _short_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_keys, "encode_outcome", lambda *_: b"o")
    monkeypatch.setattr(_keys, "decode_outcome", lambda *_: Outcome((), replayed=True))


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


async def test_an_outcome_takes_the_place_of_its_claim() -> None:
    """A transaction under a key that was claimed without one inserts nothing beside the claim."""
    claims: Any = Scripted(replace_one=MATCHED)
    await Keys(claims).record(a_write(), Outcome(()), session=SimpleNamespace())  # type: ignore[arg-type]
    assert claims.asked == ["replace_one"]


async def test_an_outcome_that_another_replica_has_moved_meanwhile_is_left_there() -> None:
    """Both replicas move the same outcome, so the duplicate is what was wanted."""
    claims: Any = Scripted(update_one=NOT_MATCHED, insert_one=TAKEN)
    await Keys(claims).take_over([ENTRY])
    assert claims.asked == ["update_one", "insert_one"]


async def test_a_result_without_a_record_is_replayed_without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check or a deletion in a large outcome refers to no record."""
    monkeypatch.setattr(_keys, "decode_outcome", lambda *_: [None])
    database: Any = Scripted()
    outcome = await _keys.replay(a_write(), b"kept", database, {})
    assert outcome.replayed
    assert len(outcome.results) == 1
    assert database.asked == []


# ── without transactions ─────────────────────────────────────────────────────────────────────────


async def test_a_write_that_loses_each_race_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller may come again; the write does not wait for longer than its two seconds."""
    monkeypatch.setattr(_document_writer, "CONFLICT_SECONDS", 0.0)
    writer = document_writer(Scripted(insert_one=None))

    async def lose(*_: object) -> None:
        return None

    monkeypatch.setattr(writer, "_write_once", lose)
    with pytest.raises(ConflictError, match="won each time"):
        await writer.write(a_write(operations=(object(),)))


@pytest.mark.parametrize(
    ("found", "is_replayed"),
    [(None, False), ({**ENTRY, "outcome": None}, False), (ENTRY, True)],
    ids=["gone", "without an outcome", "with an outcome"],
)
async def test_an_event_that_another_process_emitted_first_is_a_replay(
    found: dict[str, Any] | None, is_replayed: bool
) -> None:
    """The claim has an outcome when this one is recorded: that one counts, unless the claim has expired since."""
    database = Scripted(insert_one=None, update_one=NOT_MATCHED, find_one=found)
    outcome = await document_writer(database).write(a_write())
    assert outcome.replayed is is_replayed
    assert database.asked == ["insert_one", "update_one", "find_one"]


# ── in transactions ──────────────────────────────────────────────────────────────────────────────


async def test_a_key_that_another_transaction_commits_first_is_a_lost_race() -> None:
    """The transaction starts again and finds the outcome."""
    database = Scripted(find_one=None, replace_one=NOT_MATCHED, insert_one=TAKEN)
    with pytest.raises(LostRaceError):
        await transaction_writer(database).attempt(None, a_write())


async def test_a_dry_run_leaves_no_key() -> None:
    """It is no request that could be repeated."""
    database = Scripted()
    assert await transaction_writer(database).attempt(None, a_write(dry_run=True)) == Outcome((), answer=b"")
    assert database.asked == []


def an_operation() -> Any:
    return SimpleNamespace(id=1, resource=SimpleNamespace(name="things"), require=None)


async def test_a_document_that_another_has_written_since_is_a_lost_race(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a requirement nothing else can keep the document from being replaced."""
    operation: Any = an_operation()
    made = Replacement(operation=operation, document={**STORED, "version": 2}, before="etag")
    monkeypatch.setattr(_transaction_writer, "replacement_for", lambda *_: made)
    database = Scripted(find_one=STORED, replace_one=NOT_MATCHED)
    with pytest.raises(LostRaceError):
        await transaction_writer(database)._apply(None, operation, a_write())


async def test_an_entry_without_an_outcome_does_not_end_a_transaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under the same request nothing was done yet; a change that is refused says whether its requirement held."""
    operation: Any = an_operation()

    def refuse(*_: object) -> None:
        raise InvalidRequestError("no such field")

    checked: list[object] = []

    async def check(operation: object, *_: object) -> None:
        checked.append(operation)

    monkeypatch.setattr(_transaction_writer, "replacement_for", refuse)
    monkeypatch.setattr(_transaction_writer, "check_requirement", check)
    stored = {**STORED, "_hk": {"keys": [{**ENTRY, "outcome": None}]}}
    with pytest.raises(InvalidRequestError):
        await transaction_writer(Scripted(find_one=stored))._apply(None, operation, a_write())
    assert checked == [operation]


async def test_an_event_that_is_in_the_outbox_already_is_not_added_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An event's id is known there, so that a transaction which runs again adds it once."""
    there = SimpleNamespace(to_list=Scripted(to_list=[{"_id": "e"}]).to_list)
    database: Any = Scripted(find_one_and_update={"last": 1})
    database.find = lambda *_, **__: there
    monkeypatch.setattr(_transaction_writer, "event_rows", lambda *_, **__: [{"_id": "e"}])
    emission = SimpleNamespace(key=None)
    await transaction_writer(database)._emit(None, a_write(emit=(emission,)), None)
    assert database.asked == ["find_one_and_update"]


# ── the audit trail ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", [document_writer, transaction_writer])
async def test_a_change_has_its_audit_entry(
    how: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a transaction the entry is added with it; in one document it waits there, and the one before it moves on."""
    operation: Any = an_operation()
    made = Replacement(operation=operation, document={**STORED, "version": 2}, before="etag")
    things: Any = SimpleNamespace(name="things", document=lambda _: "{}")
    module = _document_writer if how is document_writer else _transaction_writer
    monkeypatch.setattr(module, "replacement_for", lambda *_: made)
    stored = {**STORED, "_hk": {"audit": [{"created_at": now()}]}}
    database = Scripted(find_one=stored, replace_one=MATCHED)
    writer = how(database)
    trail: Any = Scripted(entry_of={"created_at": now()}, add=None, take_over=None)
    trail.wake = lambda: trail.asked.append("wake")
    writer._audit, writer._collections = trail, {"things": things}
    if how is document_writer:
        assert await writer._write_once(a_write(), operation, None) is not None
        assert trail.asked == ["entry_of", "take_over", "wake"]
    else:
        await writer._apply(None, operation, a_write())
        assert trail.asked == ["entry_of", "add"]
    assert database.asked == ["find_one", "replace_one"]
