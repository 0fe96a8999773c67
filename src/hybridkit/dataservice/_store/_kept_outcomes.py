"""The outcome that an idempotency key keeps, in one form for every store.

The versions of appends to streams come first (`versions`), around what is kept of the rest. The first bytes tell three
kinds of that apart: a list of records as they were; an object with the answer of a service's own
call (`answer`); an object with ids and entity tags (`records`), by which the records of a large outcome are read again.
They are also all that an answer without a body needs.
"""

from typing import Any, Final, NamedTuple

from hybridkit.codec import encode_json
from hybridkit.dataservice._store._documents import read_document
from hybridkit.dataservice._store._etags import State
from hybridkit.dataservice._store._operations import Document, Outcome, Result, Write

MAX_KEPT_BYTES: Final = 64 * 1024
"""The size up to which a key keeps records. A document of MongoDB has up to twenty outcomes beside its record: of its
16 MiB they take at most 1.25."""
_ANSWER: Final = b'{"answer":'
_VERSIONS: Final = b'{"versions":'
_REST: Final = b',"rest":'


class Reference(NamedTuple):
    """A record that an outcome had.

    Attributes:
        resource: the name of its resource.
        id: as text.
        etag: of its state then.
        created: the write made it.
    """

    resource: str
    id: str
    etag: str
    created: bool


def encode_outcome(write: Write, outcome: Outcome) -> bytes:
    """Return what the key of the write keeps: the outcome, or references to the records of a large or minimal one."""
    rest = _encode_rest(write, outcome)
    return _VERSIONS + encode_json(outcome.versions) + _REST + rest + b"}" if outcome.versions else rest


def kept_versions(kept: bytes) -> tuple[int, ...]:
    """Return the versions that the appends of a kept outcome have reached, in their order."""
    return _without_versions(kept)[0]


def _without_versions(kept: bytes) -> tuple[tuple[int, ...], bytes]:
    """Return the versions of the appends, and what is kept of the rest."""
    if not kept.startswith(_VERSIONS):
        return (), kept
    versions, _, rest = kept[len(_VERSIONS) : -1].partition(_REST)
    return tuple(read_document(versions)), rest


def _encode_rest(write: Write, outcome: Outcome) -> bytes:
    if write.call is not None:
        return _ANSWER + outcome.answer + b"}"
    if not write.minimal:
        whole = encode_json([[result.record, result.created] for result in outcome.results])
        if len(whole) <= MAX_KEPT_BYTES:
            return whole
    references = [
        None
        if result.record is None
        else Reference(
            operation.resource.name, str(result.record["id"]), result.record["etag"], result.created
        )
        for operation, result in zip(write.operations, outcome.results, strict=True)
    ]
    return encode_json({"records": references})


def decode_outcome(kept: bytes, write: Write) -> Outcome | list[Reference | None]:
    """Return the outcome, or references to records to read again; None stands for an operation without a record.

    Args:
        kept: by the key.
        write: the repeated write; for one whose answer has no body, the references are the outcome.
    """
    versions, rest = _without_versions(kept)
    if rest.startswith(_ANSWER):
        return Outcome((), replayed=True, answer=rest[len(_ANSWER) : -1])
    found: dict[str, list[Any]] | list[Any] = read_document(rest)
    if isinstance(found, dict):
        references = [entry and Reference(*entry) for entry in found["records"]]
        if not write.minimal:
            return references
        return Outcome(tuple(map(_named, references)), replayed=True, versions=versions)
    results = tuple(Result(record, created) for record, created in found)
    return Outcome(results, replayed=True, versions=versions)


def result_of(reference: Reference | None, record: Document | None) -> Result:
    """Return the result of a large outcome with the record of now.

    Args:
        reference: to the record of then; None for an operation without one.
        record: with the same id now, if there is one. It is left out if it was made since.
    """
    if reference is None:
        return Result()
    if record is not None and _incarnation(record["etag"]) != _incarnation(reference.etag):
        record = None
    return Result(record, reference.created)


def _named(reference: Reference | None) -> Result:
    """Return the result with the id and the state of then, and nothing else of the record."""
    if reference is None:
        return Result()
    return Result({"id": reference.id, "etag": reference.etag}, reference.created)


def _incarnation(tag: str) -> int | None:
    state = State.of(tag)
    return state and state.incarnation
