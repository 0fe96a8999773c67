"""The answers of a data service, read as the records, pages and rows that they should be."""

from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, cast

from pydantic import BaseModel, TypeAdapter

from hybridkit._header_fields import read_preferences
from hybridkit.clients._transports._base import Response
from hybridkit.codec import validate_json, validate_object
from hybridkit.contract import TransactionResult
from hybridkit.errors import MalformedPayloadError, NotFoundError, ResponseError
from hybridkit.resources import Call, Record, Resource
from hybridkit.resources._resource import AnyResource

NO_CONTENT: Final = 204

type Counting = Literal["exact", "estimated"]


@dataclass(frozen=True, slots=True)
class Page[ItemT: BaseModel]:
    """Some records, and where the next ones are.

    Attributes:
        items: at most `page_size` records.
        next_page_token: opaque; None on the last page.
        total_size: how many records match the query; None where no count was asked for.
    """

    items: tuple[ItemT, ...]
    next_page_token: str | None = None
    total_size: int | None = None


@dataclass(frozen=True, slots=True)
class _Items[ItemT]:
    """The body of most answers with several records."""

    items: list[ItemT]


def record_from[RecordT: Record[Any]](resource: Resource[RecordT, Any, Any], response: Response) -> RecordT:
    """Return the record in that answer.

    Raises:
        ResponseError: the body is no such record.
    """
    adapter: TypeAdapter[RecordT] = adapter_of(resource.record)
    return read_answer(adapter, response, what=f"a record of {resource.name}")


def written_record[RecordT: Record[Any]](
    resource: Resource[RecordT, Any, Any], response: Response
) -> RecordT | None:
    """Return the record in the answer to a write; None for one that has been removed since.

    Raises:
        ResponseError: the body is no such record.
    """
    return None if response.status == NO_CONTENT else record_from(resource, response)


def present[RecordT: Record[Any]](resource: Resource[RecordT, Any, Any], record: RecordT | None) -> RecordT:
    """Return the record of a write that was done.

    Raises:
        NotFoundError: an earlier call with the same key wrote the record, and it has been removed since.
    """
    if record is None:
        raise gone_since(resource)
    return record


def gone_since(resource: AnyResource) -> NotFoundError:
    """Return the error of a repeated write whose record is gone and whose answer was too large to be kept."""
    return NotFoundError(
        f"{resource.name}: an earlier call with this key wrote the record; it has been removed since"
    )


def records_from[RecordT: Record[Any]](
    resource: Resource[RecordT, Any, Any], response: Response, *, count: int
) -> list[RecordT | None]:
    """Return the records in the answer to a batch of `count`, None for each that is not there.

    Raises:
        ResponseError: the body has other items, or not that many.
    """
    adapter: TypeAdapter[_Items[RecordT | None]] = _items_adapter(resource.record, nullable=True)
    items = read_answer(adapter, response, what=f"records of {resource.name}").items
    if len(items) != count:
        raise ResponseError(
            f"{resource.name}: the batch has {count} records, the answer {len(items)}",
            response_status=response.status,
        )
    return items


def page_from[ModelT: BaseModel](
    resource: AnyResource, model: type[ModelT], response: Response
) -> Page[ModelT]:
    """Return the page in that answer.

    Raises:
        ResponseError: the body is no page of such records.
    """
    adapter: TypeAdapter[Page[ModelT]] = _page_adapter(model)
    return read_answer(adapter, response, what=f"a page of {resource.name}")


def rows_from[RowT](what: str, row_type: type[RowT], response: Response) -> list[RowT]:
    """Return the rows of an aggregation in that answer.

    Raises:
        ResponseError: the body has other items.
    """
    adapter: TypeAdapter[_Items[RowT]] = _items_adapter(cast("Hashable", row_type), nullable=False)
    return read_answer(adapter, response, what=what).items


def transaction_from(response: Response, *, dry_run: bool) -> TransactionResult:
    """Return a transaction's results in that answer.

    Raises:
        ResponseError: the body is no such thing, or a dry run was carried out.
    """
    if dry_run:
        _check_taken_back(response)
    adapter: TypeAdapter[TransactionResult] = adapter_of(TransactionResult)
    return read_answer(adapter, response, what="a transaction's results")


def result_from[RecordT: Record[Any]](resource: Resource[RecordT, Any, Any], value: object) -> RecordT:
    """Return one operation's result in a transaction as a record.

    Raises:
        ResponseError: the result is no such record.
    """
    adapter: TypeAdapter[RecordT] = adapter_of(resource.record)
    try:
        return validate_object(adapter, value, what="it")
    except MalformedPayloadError as error:
        raise ResponseError(
            f"a result of the transaction should be a record of {resource.name}, but {error}",
            response_status=200,
        ) from None


def answer_of[ResponseT: BaseModel](call: Call[Any, ResponseT], response: Response) -> ResponseT:
    """Return the answer of a service's own operation.

    Raises:
        ResponseError: the body doesn't fit.
    """
    adapter: TypeAdapter[ResponseT] = adapter_of(call.response)
    return read_answer(adapter, response, what=f"a {call.response.__name__}")


def read_answer[T](adapter: TypeAdapter[T], response: Response, *, what: str) -> T:
    """Return the body of that answer as the adapter's type.

    Raises:
        ResponseError: the body doesn't fit; the message has no values.
    """
    try:
        return validate_json(adapter, response.body, what="it")
    except MalformedPayloadError as error:
        raise ResponseError(
            f"the answer ({response.status}, {len(response.body)} bytes) should be {what}, but {error}",
            response_status=response.status,
        ) from None


def _check_taken_back(response: Response) -> None:
    """Refuse the answer of a service that ignored the wish for a dry run (RFC 7240, section 2)."""
    applied: Mapping[str, str] = {}
    with suppress(ValueError):  # what can't be read says nothing
        applied = read_preferences(response.headers.get("preference-applied", ""))
    if applied.get("tx", "").lower() != "rollback":
        raise ResponseError(
            "the service doesn't say that it took the dry run back, so it was carried out",
            response_status=response.status,
        )


# Making an adapter takes longer than reading many records with it, so each is made once.


@cache
def adapter_of(type_: Any) -> TypeAdapter[Any]:
    """Return the one adapter of that type."""
    return TypeAdapter(type_)


@cache
def _page_adapter(model: type[BaseModel]) -> TypeAdapter[Any]:
    return TypeAdapter(Page[model])  # type: ignore[valid-type] # the class is only known at run time


@cache
def _items_adapter(type_: Hashable, *, nullable: bool) -> TypeAdapter[Any]:
    item: Any = cast("Any", type_) | None if nullable else type_
    return TypeAdapter(_Items[item])
