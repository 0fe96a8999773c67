"""Erase the personal data of one person: where it is, by the marks of the declarations, and what takes its place.

A step is worked off in batches, each a transaction of its own, and each finds only what is not erased yet. So it may
end anywhere and begin again, and nothing is locked for long.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from hybridkit._personal import PersonalField, personal_fields
from hybridkit.events import registry
from hybridkit.resources._resource import AnyResource
from hybridkit.sagas import SAGAS
from hybridkit.streams._stream import AnyStream

BATCH_ROWS: Final = 1000
"""The most rows that one batch changes, or reads where no index finds them."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The marked fields of a model whose person is named by the same field.

    Attributes:
        key: the field that has the id of the person, as JSON has it; for records the field in Python.
        blanks: the JSON values that take the place of personal data, by field.
    """

    key: str
    blanks: Mapping[str, Any]

    def erased(self, data: Mapping[str, Any], person: str) -> dict[str, Any] | None:
        """Return JSON data without what is personal to somebody; None where there is nothing of that person."""
        if str(data.get(self.key)) != person:
            return None
        blank = {name: value for name, value in self.blanks.items() if name in data and data[name] != value}
        return {**data, **blank} if blank else None


@dataclass(frozen=True, slots=True)
class RecordStep:
    """The records of a resource, with their history where it is audited."""

    resource: AnyResource
    marks: Marks

    def key_of(self, person: str) -> Any:
        """Return the id of a person as the key field has it; None where no record can have it."""
        try:
            annotation = self.resource.record.model_fields[self.marks.key].annotation
            return TypeAdapter[Any](annotation).validate_strings(person)
        except ValidationError:
            return None

    def is_about(self, values: Mapping[str, Any], person: str) -> bool:
        """Return whether a record, by field in Python, is about that person."""
        key = self.key_of(person)
        return key is not None and bool(values[self.marks.key] == key)


@dataclass(frozen=True, slots=True)
class StreamStep:
    """The events of a kind of stream, with its snapshots.

    Attributes:
        stream: the kind of stream.
        marks: the marks by the type of event.
    """

    stream: AnyStream
    marks: Mapping[str, tuple[Marks, ...]]

    @property
    def is_by_stream(self) -> bool:
        """Whether the id of the person is that of the stream, so that no other stream has such events."""
        return all(marks.key == self.stream.key for each in self.marks.values() for marks in each)

    def erased(self, event_type: str, data: Mapping[str, Any], person: str) -> dict[str, Any] | None:
        """Return an event's data without what is personal to somebody; None where there is nothing of that person."""
        found: Mapping[str, Any] = data
        for marks in self.marks.get(event_type, ()):
            found = marks.erased(found, person) or found
        return None if found is data else dict(found)

    def is_about(self, event_type: str, data: Mapping[str, Any], person: str) -> bool:
        """Return whether an event is about that person."""
        return any(str(data.get(marks.key)) == person for marks in self.marks.get(event_type, ()))


@dataclass(frozen=True, slots=True)
class SagaStep:
    """The rows of sagas: their data by its model, and the commands that they keep by theirs.

    Attributes:
        subject: the kind of id; the sagas that a user has begun are found by `user_id` too.
        marks: the marks of the data, by the name of the saga.
    """

    subject: str
    marks: Mapping[str, tuple[Marks, ...]] = field(default_factory=dict[str, tuple[Marks, ...]])

    @property
    def keys(self) -> set[str]:
        """The fields that may have the id of the person, in data and commands."""
        commands = (marks for message in registry for marks in marks_of(message, self.subject))
        return {
            marks.key for marks in (*commands, *(each for group in self.marks.values() for each in group))
        }

    def erased(self, row: Mapping[str, Any], person: str) -> dict[str, Any]:
        """Return the fields of a saga's row that change; none where there is nothing of that person.

        One that has ended keeps neither commands nor results. One that runs keeps what it needs to go on: its commands
        without their personal fields, and the results of its last event until the next one.
        """
        changes: dict[str, Any] = {}
        data: Mapping[str, Any] = row["data"]
        is_theirs = self.subject == "user_id" and row["user_id"] == person
        for marks in self.marks.get(row["saga"], ()):
            is_theirs = is_theirs or str(data.get(marks.key)) == person
            if (found := marks.erased(data, person)) is not None:
                data = changes["data"] = found
        if row["status"] in _ENDED:
            if is_theirs:
                changes |= {name: blank for name, blank in _ENDED_BLANKS.items() if row[name] != blank}
            return changes
        sent = [self._command(command, person) for command in row["sent"]]
        undo = [{**each, "command": self._command(each["command"], person)} for each in row["undo"]]
        changes |= {name: new for name, new in (("sent", sent), ("undo", undo)) if new != row[name]}
        return changes

    def _command(self, command: Mapping[str, Any], person: str) -> Mapping[str, Any]:
        data: Mapping[str, Any] = command["data"]
        for marks in _command_marks(command["type"], self.subject):
            data = marks.erased(data, person) or data
        return {**command, "data": data}


@dataclass(frozen=True, slots=True)
class HistoryStep:
    """The audit trail of records that are not there any more, which no step of records finds."""

    records: RecordStep


type ErasureStep = RecordStep | StreamStep | SagaStep
"""A step that a store works off."""

_ENDED: Final = frozenset({"done", "undone", "given_up"})
_ENDED_BLANKS: Final[Mapping[str, Any]] = {"sent": [], "undo": [], "notes": {}}


class Erased(NamedTuple):
    """The outcome of one batch.

    Attributes:
        rows: the number of changed rows by the name of their table; in a dry run, of those that would change.
        after: where the next batch begins; None where the step is done.
        ids: of records, the ids of all in the batch, whose history is to be erased too.
    """

    rows: Mapping[str, int]
    after: str | None = None
    ids: Sequence[Any] = ()


def erasure_steps(
    subject: str,
    resources: Iterable[AnyResource],
    streams: Iterable[AnyStream],
    saga_data: Mapping[str, type[BaseModel]],
) -> Sequence[ErasureStep | HistoryStep]:
    """Return the steps that erase the data of a person, in an order in which none brings back what another erased.

    Args:
        subject: the kind of id, such as `user_id`.
        resources: the resources of the data service.
        streams: its kinds of streams.
        saga_data: the data models of its sagas, by their names.
    """
    steps: list[ErasureStep | HistoryStep] = []
    kept = list(resources)
    for stream in streams:
        marks = {event.message_type: marks_of(event, subject) for event in stream.events}
        if found := {name: each for name, each in marks.items() if each}:
            steps.append(StreamStep(stream, found))
    for resource in kept:
        fields = _by_key(personal_fields(resource.record), subject)
        records = [
            RecordStep(resource, Marks(key, {each.name: each.blank for each in group}))
            for key, group in fields.items()
        ]
        steps += records
        steps += [HistoryStep(each) for each in records if resource.audited]
    if SAGAS in kept:
        by_saga = {name: marks_of(model, subject) for name, model in saga_data.items()}
        steps.append(SagaStep(subject, {name: marks for name, marks in by_saga.items() if marks}))
    return steps


@cache
def marks_of(model: type[BaseModel], subject: str) -> tuple[Marks, ...]:
    """Return the marks of a model that JSON is kept of."""
    return tuple(
        Marks(group[0].key_name, {name: each.blank for each in group for name in each.names})
        for group in _by_key(personal_fields(model), subject).values()
    )


def _by_key(fields: Iterable[PersonalField], subject: str) -> Mapping[str, list[PersonalField]]:
    groups: dict[str, list[PersonalField]] = defaultdict(list)
    for each in fields:
        if each.subject == subject:
            groups[each.key].append(each)
    return groups


def _command_marks(message_type: str, subject: str) -> tuple[Marks, ...]:
    found = [message for message in registry if message.message_type == message_type]
    return marks_of(found[-1], subject) if found else ()
