"""The request bodies of the `:batch_…` routes, read into ids and operations of one kind on one resource."""

from typing import Any, Final, Literal, assert_never

from pydantic import TypeAdapter

from hybridkit.codec import decode_numbers, encode_json, validate_json
from hybridkit.contract import BatchGet, BatchRecord, BatchWrite
from hybridkit.dataservice._http._bodies import RequestBodies, read_id, read_tag, with_numbers
from hybridkit.dataservice._store._operations import Operation
from hybridkit.errors import FieldProblem, InvalidRequestError
from hybridkit.ids import derived_id

type BatchKind = Literal["create", "update", "upsert", "delete"]

BATCH_KINDS: Final[tuple[BatchKind, ...]] = ("create", "update", "upsert", "delete")
_BATCH_GET: Final = TypeAdapter(BatchGet)
_BATCH_WRITE: Final = TypeAdapter(BatchWrite)


def read_ids(bodies: RequestBodies, body: bytes) -> list[Any]:
    """Read the ids in the body of `:batch_get`.

    Raises:
        MalformedPayloadError: the body is no list of ids.
        InvalidRequestError: no record of the resource can have one of the ids.
    """
    wanted = validate_json(_BATCH_GET, body, what="the batch", strict=True)
    return [read_id(bodies.resource, text, f"ids/{index}") for index, text in enumerate(wanted.ids)]


def read_batch(bodies: RequestBodies, kind: BatchKind, body: bytes, *, call: str) -> tuple[Operation, ...]:
    """Read the operations in the body of a `:batch_…` write.

    Args:
        bodies: the request bodies of the resource.
        kind: the kind of all operations.
        body: the JSON as it came.
        call: a name of the call that every attempt has, so that records without an id get the same ids each time.

    Raises:
        MalformedPayloadError: the body is no batch.
        InvalidRequestError: an item doesn't fit the resource, or the kind of the batch.
        PreconditionRequiredError: an item doesn't name the state that it changes, and the resource requires it.
    """
    batch = validate_json(_BATCH_WRITE, body, what="the batch", strict=True)
    read = _Items(bodies, kind, call)
    items = with_numbers(batch.items, decode_numbers(body)["items"])
    return tuple(read.operation(item, f"items/{index}") for index, item in enumerate(items))


class _Items:
    def __init__(self, bodies: RequestBodies, kind: BatchKind, call: str) -> None:
        self._bodies = bodies
        self._kind: Literal["create", "update", "upsert", "delete"] = kind
        self._call = call

    def operation(self, item: BatchRecord, at: str) -> Operation:
        tag = read_tag(item.if_match, at)
        match self._kind:
            case "create":
                self._without(item.if_match, at, "if_match")
                data = self._data(item, at)
                return self._bodies.create_as(self._new_id(item, data, at), data, at=at)
            case "update":
                record_id = self._id(item, at)
                return self._bodies.update(record_id, self._data(item, at), if_match=tag, at=at)
            case "upsert":
                only: Literal["present"] | None = None if item.if_match is None else "present"
                body = encode_json(self._data(item, at))
                return self._bodies.upsert(self._id(item, at), body, only=only, if_match=tag, at=at)
            case "delete":
                self._without(item.data, at, "data")
                return self._bodies.delete(self._id(item, at), if_match=tag, at=at)
            case _:
                assert_never(self._kind)

    def _id(self, item: BatchRecord, at: str) -> Any:
        if item.id is None:
            raise _wrong(at, "id", "missing")
        return read_id(self._bodies.resource, item.id, at)

    def _new_id(self, item: BatchRecord, data: dict[str, Any], at: str) -> Any:
        """Return the id beside the data, the one in them or, for a resource with UUIDs, a derived one."""
        named = item.id if item.id is not None else data.get("id")
        if isinstance(named, str | int):
            return read_id(self._bodies.resource, str(named), at)
        if self._bodies.has_uuids and named is None:
            return derived_id(self._call, at)
        raise _wrong(at, "id", "missing")

    def _data(self, item: BatchRecord, at: str) -> dict[str, Any]:
        if item.data is None:
            raise _wrong(at, "data", "missing")
        return item.data

    def _without(self, value: object, at: str, member: str) -> None:
        if value is not None:
            raise _wrong(at, member, "extra_forbidden")


def _wrong(at: str, member: str, code: str) -> InvalidRequestError:
    return InvalidRequestError("the batch does not fit", errors=[FieldProblem(f"/{at}/{member}", code)])
