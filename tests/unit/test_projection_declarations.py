"""Projections are checked where they are declared."""

from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from hybridkit.clients import PostgresDataClient
from hybridkit.clients._projections._follower import Follower
from hybridkit.clients._projections._runner import ProjectionRunner, log_reader
from hybridkit.codec import now
from hybridkit.errors import DeclarationError, InvalidRequestError
from hybridkit.events import Event
from hybridkit.streams import Changes, Projection, ProjectionRow, SkippedEvent, Stream
from hybridkit.streams._changes import Fold
from hybridkit.streams._positions import MAX_SKIPPED, retried, skipped


class Noted(Event, type="projection_declared.noted", key="note_id"):
    note_id: UUID


class Untyped(Event):
    pass


class Note(BaseModel):
    pass


NOTES = Stream("notes", state=Note, key="note_id")


def handler(event: Noted, to: Changes) -> None:
    """Change nothing."""


async def waiting(event: Noted, to: Changes) -> None:
    """Wait for nothing."""


def row(**fields: Any) -> ProjectionRow:
    values = {
        "id": "notes.1",
        "version": 1,
        "etag": '"1"',
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z",
        "name": "notes",
        "projection_version": 1,
        "source": "notes",
    }
    return ProjectionRow.model_validate({**values, **fields})


@pytest.mark.parametrize(
    ("name", "version"),
    [("Notes", 1), ("a" * 49, 1), ("no-tes", 1), ("notes", 0)],
    ids=["case", "long", "dash", "0"],
)
def test_a_name_or_version_that_can_not_be_is_refused(name: str, version: int) -> None:
    """A projection's name and version are part of an id, so they have their syntax."""
    with pytest.raises(DeclarationError, match="projection"):
        Projection(name, source=NOTES, version=version)


def test_a_handler_that_can_not_be_called_is_refused() -> None:
    """What names no event, an event twice, or can't be called with an event and its changes, is refused."""
    made = Projection("notes", source=NOTES)
    with pytest.raises(DeclarationError, match="names the events"):
        made.on()
    with pytest.raises(DeclarationError, match="no event with a type"):
        made.on(Untyped)
    with pytest.raises(DeclarationError, match="is async"):
        made.on(Noted)(waiting)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match="takes two arguments"):
        made.on(Noted)(lambda event: None)  # type: ignore[arg-type, misc]
    made.on(Noted)(handler)
    with pytest.raises(DeclarationError, match="a handler already"):
        made.on(Noted)


def test_an_event_without_a_handler_changes_nothing() -> None:
    """An event that the projection doesn't know is passed over."""
    assert Projection("notes", source=NOTES).changes_of(Noted(note_id=UUID(int=1))) == ()


def test_what_is_declared_says_what_it_is() -> None:
    """Each part has a readable form, for logs and debuggers."""
    made = Projection("notes", source=NOTES, version=2)
    made.on(Noted)(handler)
    client = PostgresDataClient("http://data.test", service="worker_service")
    assert repr(made) == "Projection('notes', source=Stream('notes', state=Note), version=2)"
    assert repr(Changes()) == "Changes(0)"
    assert repr(Fold()) == "Fold(0 changes)"
    assert repr(Follower(made, client, log_reader(client, made))) == f"Follower({made!r})"
    assert repr(ProjectionRunner([made], client)) == "ProjectionRunner(['notes.2'], running=0)"


def test_a_projection_skips_a_bounded_number_of_events() -> None:
    """One that wants to skip ever more is to be mended; its row stays small."""
    entry = SkippedEvent(
        position="p",
        event="e",
        error="",
        by="ann",
        note="",
        at=now(),
    )
    full = row(status="failed", failed_position="p", skipped=[entry] * MAX_SKIPPED)
    with pytest.raises(InvalidRequestError, match="fill another version"):
        skipped(full, "p", by="ann", note="again")
    with pytest.raises(InvalidRequestError, match="it runs"):
        skipped(row(), "p", by="ann", note="why")
    with pytest.raises(InvalidRequestError, match="nothing to retry"):
        retried(row())
