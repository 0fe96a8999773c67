"""What an idempotency key keeps of an answer: the answer, or what a large one was about.

It says by its first byte what it is: a list has records as they were; an object has either what a service's own call
answered (`answer`), or ids and entity tags (`records`), by which the records are read again.
"""

from typing import Any, Final, NamedTuple

from hybridkit.codec import encode_json
from hybridkit.dataservice._store._documents import read_document
from hybridkit.dataservice._store._operations import Outcome, Result, Write

__all__ = ["MAX_BYTES", "Reference", "decode_outcome", "encode_outcome"]

MAX_BYTES: Final = 64 * 1024
"""How much of records a key keeps; an answer with more is read again when its call is repeated."""
_ANSWER: Final = b'{"answer":'


class Reference(NamedTuple):
    """A record that an answer had.

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
    """What to keep."""
    if write.call is not None:
        return _ANSWER + outcome.answer + b"}"
    whole = encode_json([[result.record, result.created] for result in outcome.results])
    if len(whole) <= MAX_BYTES:
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


def decode_outcome(stored: bytes) -> Outcome | list[Reference | None]:
    """What was kept: the answer, or the records to read again; None stands for an operation that had none."""
    if stored.startswith(_ANSWER):
        return Outcome((), replayed=True, answer=stored[len(_ANSWER) : -1])
    kept: dict[str, list[Any]] | list[Any] = read_document(stored)
    if isinstance(kept, dict):
        return [entry and Reference(*entry) for entry in kept["records"]]
    return Outcome(tuple(Result(record, created) for record, created in kept), replayed=True)
