"""Request bodies, validated by a resource's models and made into operations. Errors list all problems, no values."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from itertools import islice
from typing import Any, Final, Literal, NoReturn, assert_never, cast
from uuid import UUID

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model
from typing_extensions import TypeVar

from hybridkit import contract
from hybridkit._header_fields import read_tags
from hybridkit._syntax import escape_token
from hybridkit.codec import (
    MAX_FIELD_ERRORS,
    InexactFloat,
    decode_numbers,
    encode_json,
    field_errors,
    may_be_inexact,
    validate_json,
)
from hybridkit.contract import Transaction
from hybridkit.dataservice._store._losses import losses
from hybridkit.dataservice._store._members import fields_by_member, patch_as_stored, values_of
from hybridkit.dataservice._store._operations import (
    Assert,
    Create,
    Delete,
    Operation,
    Update,
    Upsert,
)
from hybridkit.errors import (
    FieldProblem,
    InvalidQueryError,
    InvalidRequestError,
    PreconditionRequiredError,
)
from hybridkit.resources import Filter, Query
from hybridkit.resources._resource import AnyResource


class _Closed(BaseModel):
    """A model that refuses undeclared members: a newer client's field would be dropped in silence."""

    model_config = ConfigDict(extra="forbid")


class RequestBodies:
    """The request bodies of one resource, as models and as operations.

    Args:
        resource: the resource.
    """

    def __init__(self, resource: AnyResource) -> None:
        self.resource = resource

    def __repr__(self) -> str:
        return f"RequestBodies({self.resource!r})"

    @cached_property
    def create_model(self) -> type[BaseModel]:
        """The body of `POST`: the resource's create model with the id, which the service makes where it is left out."""
        declared = self.resource.create
        if "id" in declared.model_fields:
            return closed(declared)
        return closed(
            declared, suffix="WithId", id=(UUID | None, None) if self.has_uuids else (self._id_type, ...)
        )

    @property
    def has_uuids(self) -> bool:
        """Whether the ids are UUIDs, so that the service can make them."""
        return self._id_type is UUID

    @property
    def _id_type(self) -> Any:
        declared: Any = self.resource.record.model_fields["id"].annotation
        return UUID if isinstance(declared, TypeVar) else declared  # `Record` without a type argument

    @cached_property
    def replace_model(self) -> type[BaseModel]:
        """The body of `PUT`: the resource's create model; the id is in the URL."""
        return closed(self.resource.create)

    @cached_property
    def update_model(self) -> type[BaseModel]:
        """The body of `PATCH`: the resource's update model, as a merge patch."""
        return closed(self.resource.update)

    def create(self, body: bytes, *, default_id: UUID) -> Create:
        """Read the body of `POST`.

        Args:
            body: JSON.
            default_id: the id where the body has none; the same on every attempt of one call.

        Raises:
            InvalidRequestError: with a pointer to every problem.
        """
        model = validate(self.create_model, body)
        values = values_of(model)
        record_id = values.pop("id", None)
        if isinstance(record_id, str):
            read_id(self.resource, record_id, "")
        return Create(
            resource=self.resource, id=default_id if record_id is None else record_id, values=values
        )

    def create_as(self, record_id: Any, data: Mapping[str, Any], *, at: str = "") -> Create:
        """Make a `create` of a transaction or batch, which has its id beside the data."""
        values = self._values(record_id, encode_json(data), at=_pointer(at, "data"), given=data)
        return Create(resource=self.resource, id=record_id, values=values, label=at)

    def upsert(
        self,
        record_id: Any,
        body: bytes,
        *,
        only: Literal["absent", "present"] | None = None,
        if_match: str | None = None,
        increment: Mapping[str, int | float | Decimal] | None = None,
        at: str = "",
    ) -> Upsert:
        """Make the operation of `PUT`, or of an `upsert` or `replace` in a transaction or batch.

        Args:
            record_id: the id.
            body: the JSON as it came.
            only: `absent` replaces nothing, `present` creates nothing.
            if_match: the ETag that the record must have.
            increment: what to add to numbers instead of replacing a record.
            at: the path of the operation in the request; empty for `PUT`.

        Raises:
            InvalidRequestError: with a pointer to every problem.
            PreconditionRequiredError: no state to replace is named, and the resource requires it.
        """
        if only != "absent":
            self._check_match(if_match, at)
        values = self._values(record_id, body, at=_pointer(at, "data"))
        return Upsert(
            resource=self.resource,
            id=record_id,
            values=values,
            only=only,
            if_match=if_match,
            increment=self._increment(increment or {}, at),
            label=at,
        )

    def update(
        self,
        record_id: Any,
        patch: Mapping[str, Any],
        *,
        if_match: str | None,
        increment: Mapping[str, int | float | Decimal] | None = None,
        require: Filter | None = None,
        at: str = "",
    ) -> Update:
        """Make the operation of `PATCH`, or of an `update` in a transaction or batch.

        Raises:
            InvalidRequestError: with a pointer to every problem.
            PreconditionRequiredError: no state to change is named, and the resource requires it.
        """
        self._check_match(if_match, at)
        model = validate(self.update_model, encode_json(patch), at=_pointer(at, "data"))
        # An object is merged into the stored one, so it may hold the sent members only: a model would add its defaults.
        names = fields_by_member(self.update_model)
        merges = {
            names[own]: patch_as_stored(value, getattr(model, names[own]))
            for own, value in patch.items()
            if own in names and isinstance(value, dict)
        }
        return Update(
            resource=self.resource,
            id=record_id,
            changes=values_of(model, only=model.model_fields_set - merges.keys()),
            merges=merges,
            increment=self._increment(increment or {}, at),
            require=require,
            if_match=if_match,
            label=at,
        )

    def delete(self, record_id: Any, *, if_match: str | None, at: str = "") -> Delete:
        """Make the operation of `DELETE`, or of a `delete` in a transaction or batch.

        Raises:
            PreconditionRequiredError: no state to delete is named, and the resource requires it.
        """
        self._check_match(if_match, at)
        return Delete(resource=self.resource, id=record_id, if_match=if_match, label=at)

    def _check_match(self, if_match: str | None, at: str) -> None:
        if self.resource.require_match and if_match is None:
            where = f"{at}: " if at else ""
            raise PreconditionRequiredError(
                f"{where}{self.resource.name} are changed from the state that was read only; send its ETag (If-Match)"
            )

    def _values(
        self, record_id: Any, body: bytes, *, at: str, given: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        values = values_of(validate(self.replace_model, body, at=at, given=given))
        if values.pop("id", record_id) != record_id:
            raise InvalidRequestError(
                "the body names another record", errors=[FieldProblem(f"{at}/id", "id_mismatch")]
            )
        return values

    def _increment(
        self, increment: Mapping[str, int | float | Decimal], at: str
    ) -> Mapping[str, int | float | Decimal]:
        changeable = self.resource.update.model_fields
        found = [
            FieldProblem(
                f"/{at}/increment/{escape_token(name[:100])}",
                "not_a_number" if name in changeable else "extra_forbidden",
            )
            for name in increment
            if self.resource.number_of(name) is None
        ]
        found += [
            FieldProblem(
                f"/{at}/increment/{escape_token(name[:100])}", "decimal_parsing", "no float is this number"
            )
            for name, amount in increment.items()
            if isinstance(amount, InexactFloat) and self.resource.number_of(name) is Decimal
        ]
        found += [
            FieldProblem(
                f"/{at}/increment/{escape_token(name[:100])}",
                "decimal_type",
                "only a decimal takes a decimal",
            )
            for name, amount in increment.items()
            if isinstance(amount, Decimal) and self.resource.number_of(name) in {int, float}
        ]
        if found:
            raise InvalidRequestError(
                f"an increment adds to numbers that an update of {self.resource.name} may change",
                errors=found,
            )
        return increment


def read_transaction(body: bytes, members: Mapping[str, Any]) -> Transaction:
    """Read the transaction in a body, without validating the data of its operations.

    Args:
        body: the body as it came.
        members: the same, with the numbers as they were written.

    Raises:
        MalformedPayloadError: the body is no transaction.
    """
    found = validate_json(_TRANSACTION, body, what="the transaction", strict=True)
    if not may_be_inexact(body):
        return found
    written = members.get("operations", ())
    return found.model_copy(update={"operations": with_numbers(found.operations, written)})


def with_numbers[T: BaseModel](parts: Sequence[T], written: Sequence[Mapping[str, Any]]) -> tuple[T, ...]:
    """Put the numbers as they were written into operations or items, where pydantic has made floats of them.

    Args:
        parts: the operations or items of a body.
        written: the same parts, read by `decode_numbers`.
    """
    return tuple(
        part.model_copy(update=_as_written(part, one)) for part, one in zip(parts, written, strict=True)
    )


def _as_written(part: BaseModel, written: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: written[name] for name in ("data", "increment") if name in written}
    if "increment" in found:  # a text has become a decimal
        parsed: Mapping[str, Any] = getattr(part, "increment")  # noqa: B009 - whichever operation has it
        found["increment"] = {
            name: parsed[name] if isinstance(amount, str) else amount
            for name, amount in found["increment"].items()
        }
    return found


def read_operations(transaction: Transaction, bodies: Mapping[str, RequestBodies]) -> tuple[Operation, ...]:
    """Validate the operations of a transaction on records; those on streams are left to `read_appends`.

    Args:
        transaction: the transaction as it was sent.
        bodies: the request bodies of each resource, by its name.

    Raises:
        InvalidRequestError: an operation doesn't fit its resource.
        InvalidQueryError: a requirement uses a field or operator that the resource doesn't allow.
    """
    return tuple(
        _operation(wanted, bodies, f"operations/{index}")
        for index, wanted in enumerate(transaction.operations)
        if not isinstance(wanted, contract.AppendOperation)
    )


_TRANSACTION: Final = TypeAdapter(Transaction)

type RecordOperation = (
    contract.AssertOperation
    | contract.CreateOperation
    | contract.UpdateOperation
    | contract.UpsertOperation
    | contract.ReplaceOperation
    | contract.DeleteOperation
)


def _operation(wanted: "RecordOperation", bodies: Mapping[str, RequestBodies], at: str) -> Operation:
    resource_bodies = bodies.get(wanted.resource)
    if resource_bodies is None:
        raise InvalidRequestError(
            f"{at}: there is no such resource", errors=[FieldProblem(f"/{at}/resource", "unknown_resource")]
        )
    resource, record_id = resource_bodies.resource, read_id(resource_bodies.resource, wanted.id, at)
    match wanted:
        case contract.AssertOperation():
            return Assert(resource=resource, id=record_id, if_match=read_tag(wanted.if_match, at), label=at)
        case contract.CreateOperation():
            return resource_bodies.create_as(record_id, wanted.data, at=at)
        case contract.UpdateOperation():
            return resource_bodies.update(
                record_id,
                wanted.data,
                if_match=read_tag(wanted.if_match, at),
                increment=wanted.increment,
                require=_requirement(resource, wanted.require, at),
                at=at,
            )
        case contract.UpsertOperation():
            return resource_bodies.upsert(
                record_id, encode_json(wanted.data), increment=wanted.increment, at=at
            )
        case contract.ReplaceOperation():
            return resource_bodies.upsert(
                record_id,
                encode_json(wanted.data),
                only="present",
                if_match=read_tag(wanted.if_match, at),
                at=at,
            )
        case contract.DeleteOperation():
            return resource_bodies.delete(record_id, if_match=read_tag(wanted.if_match, at), at=at)
        case _:
            assert_never(wanted)


def read_tag(text: str | None, at: str) -> str | None:
    """Read the ETag in a member `if_match`, which has the form of the header; None for `*`, which any state fits.

    Raises:
        InvalidRequestError: the text is no tag, or several.
    """
    if text is None:
        return None
    pointer = f"/{at}/if_match"
    try:
        named = read_tags(text)
    except ValueError as error:
        raise InvalidRequestError(f"{at}: {error}", errors=[FieldProblem(pointer, "invalid_tag")]) from None
    if len(named.tags) > 1:
        raise InvalidRequestError(
            f"{at}: an operation names one state", errors=[FieldProblem(pointer, "several_tags")]
        )
    return None if named.any else named.opaque[0]


def read_id(resource: AnyResource, text: str, at: str) -> Any:
    """Read an id as the type that the resource declares.

    Raises:
        InvalidRequestError: no record of the resource can have it.
    """
    try:
        return resource.parse_id(text)
    except ValueError:
        where = f"{at}: " if at else ""
        raise InvalidRequestError(
            f"{where}no id of {resource.name}",
            errors=[FieldProblem(_pointer(at, "id") or "/id", "invalid_id")],
        ) from None


def _requirement(resource: AnyResource, tree: Mapping[str, Any] | None, at: str) -> Filter | None:
    if tree is None:
        return None
    try:
        return Query.from_json(resource, {"where": tree}).where
    except InvalidQueryError as error:
        pointer = f"/{at}/require{error.pointer.removeprefix('/where')}"
        raise InvalidQueryError(f"{at}: {error}", pointer=pointer) from None


def closed(model: type[BaseModel], *, suffix: str = "", **fields: Any) -> type[BaseModel]:
    """Return a subclass of the model that refuses undeclared members and has additional fields."""
    made = create_model(model.__name__ + suffix, __base__=(model, _Closed), __doc__=model.__doc__, **fields)
    return cast("type[BaseModel]", made)


def validate(
    model: type[BaseModel], body: bytes, *, at: str = "", given: Mapping[str, Any] | None = None
) -> BaseModel:
    """Validate a body by a model, with JSON's types only, and with no value dropped or rounded.

    Args:
        model: the model.
        body: JSON.
        at: the beginning of each problem's pointer.
        given: the members of the body, if they are known already, with the numbers as they were written.

    Raises:
        InvalidRequestError: the body doesn't fit; every problem has its pointer, which begins with `at`.
    """
    try:
        found = model.model_validate_json(body, strict=True)
    except ValidationError as error:
        _refuse(field_errors(error), at)
    lost = tuple(islice(losses(decode_numbers(body) if given is None else given, found), MAX_FIELD_ERRORS))
    if lost:
        _refuse(lost, at)
    return found


def _refuse(problems: Iterable[FieldProblem], at: str) -> NoReturn:
    found = [FieldProblem(at + problem.pointer, problem.code, problem.message) for problem in problems]
    raise InvalidRequestError("the body does not fit", errors=found) from None


def _pointer(at: str, member: str) -> str:
    return f"/{at}/{member}" if at else ""
