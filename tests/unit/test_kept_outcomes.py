"""The outcome that a key keeps: the records, references to large ones, and never more than the caller asked for."""

from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.dataservice._store._kept_outcomes import (
    MAX_KEPT_BYTES,
    Reference,
    decode_outcome,
    encode_outcome,
    result_of,
)
from hybridkit.dataservice._store._operations import Assert, Create, Outcome, Result, Write
from hybridkit.resources import Record, Resource

ID = UUID("1f1e5477-3fd3-6f83-be8e-f44fe982b401")


class NewNote(BaseModel):
    text: str


class Note(NewNote, Record):
    pass


NOTES = Resource("notes", record=Note, create=NewNote, update=NewNote)


def note(text: str, etag: str = '"1-a"') -> dict[str, object]:
    return {"id": str(ID), "text": text, "etag": etag}


def write(*, minimal: bool = False) -> Write:
    operations = (Create(resource=NOTES, id=ID, values={}), Assert(resource=NOTES, id=ID))
    return Write(caller="api", key="k", fingerprint=b"f", operations=operations, minimal=minimal)


@pytest.mark.parametrize("minimal", [False, True])
def test_a_large_outcome_is_kept_as_references(minimal: bool) -> None:
    """Ids and states are enough to read the records again, or to answer without them."""
    outcome = Outcome((Result(note("x" * MAX_KEPT_BYTES), created=True), Result()))
    kept = encode_outcome(write(minimal=minimal), outcome)
    assert kept == b'{"records":[["notes","%b","\\"1-a\\"",true],null]}' % str(ID).encode()
    assert decode_outcome(kept, write()) == [Reference("notes", str(ID), '"1-a"', created=True), None]


def test_a_minimal_outcome_is_kept_as_references_however_small() -> None:
    """The replay that asks for the same has the id and the state of then, and needs no record."""
    outcome = Outcome((Result(note("x"), created=True), Result()))
    kept = encode_outcome(write(minimal=True), outcome)
    assert b'"x"' not in kept
    replayed = Result({"id": str(ID), "etag": '"1-a"'}, created=True)
    assert decode_outcome(kept, write(minimal=True)) == Outcome((replayed, Result()), replayed=True)


def test_a_small_outcome_is_kept_as_it_was() -> None:
    """Its replay has the record of then, also where only its state is asked for."""
    outcome = Outcome((Result(note("x"), created=True), Result()))
    kept = encode_outcome(write(), outcome)
    for again in (write(), write(minimal=True)):
        assert decode_outcome(kept, again) == Outcome(outcome.results, replayed=True)


def test_a_record_read_again_is_the_one_of_then_or_none() -> None:
    """What was made since under the same id is another record."""
    reference = Reference("notes", str(ID), '"1-a"', created=True)
    assert result_of(reference, note("y", '"2-a"')) == Result(note("y", '"2-a"'), created=True)
    assert result_of(reference, note("y", '"1-b"')) == Result(None, created=True)
    assert result_of(reference, None) == Result(None, created=True)
    assert result_of(None, None) == Result()
