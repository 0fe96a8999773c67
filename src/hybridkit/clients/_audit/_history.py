"""The history of one record, read from the audit trail, and the record as it was at a moment."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from hybridkit.clients._answers import Counting, Page
from hybridkit.clients._find import Find
from hybridkit.clients._query_source import QuerySource
from hybridkit.clients._records import record_path
from hybridkit.codec import encode_json, in_utc
from hybridkit.errors import ResponseError
from hybridkit.resources import AuditEntry, Change, Query, Record, Resource
from hybridkit.resources._audit import HIDDEN_VALUE, audited_fields
from hybridkit.resources._resource import AnyResource


class HistorySource:
    """Answers queries for the entries of one record, with values of the types that its fields have.

    Args:
        source: sends the queries.
        resource: the record's resource.
        record_id: the record's id.
    """

    def __init__(self, source: QuerySource, resource: AnyResource, record_id: object) -> None:
        self._source = source
        self._resource = resource
        self._path = f"{record_path(resource, record_id)}:history"

    async def fetch_page[ItemT: BaseModel](
        self, resource: AnyResource, model: type[ItemT], query: Query, *, count: Counting | None
    ) -> Page[ItemT]:
        """Return the page that the query asks for."""
        page = await self._source.fetch_page(resource, model, query, count=count, path=self._path)
        return replace(page, items=tuple(map(self._typed, page.items)))

    async def export[ItemT: BaseModel](
        self, resource: AnyResource, model: type[ItemT], query: Query
    ) -> AsyncGenerator[ItemT]:
        """Yield every entry of the query."""
        async with aclosing(self._source.export(resource, model, query, path=self._path)) as entries:
            async for entry in entries:
                yield self._typed(entry)

    def _typed[ItemT: BaseModel](self, entry: ItemT) -> ItemT:
        if not isinstance(entry, AuditEntry):
            return entry
        changes = {
            name: _typed_change(self._resource, name, change) for name, change in entry.changes.items()
        }
        return cast("ItemT", entry.model_copy(update={"changes": changes}))


async def record_as_of[RecordT: Record[Any]](
    resource: Resource[RecordT, Any, Any],
    present: RecordT | None,
    history: Find[AuditEntry],
    moment: datetime,
) -> RecordT | None:
    """Return a record as it was at a moment, by undoing the changes since then; None if it was not there.

    A field that has changed since then has the value before the first of these changes; so it doesn't matter if more
    changes are made between the reading of the record and that of its history.

    Args:
        resource: the record's resource.
        present: the record as it is, read before its history; None where it is gone.
        history: a query for its entries.
        moment: the moment.

    Raises:
        ResponseError: the record's model doesn't take the values that were kept.
    """
    moment = in_utc(moment)
    first: AuditEntry | None = None
    last: AuditEntry | None = None
    values: dict[str, Any] = {}
    hidden: set[str] = set()
    async for entry in history.order_by("id", descending=True):
        if entry.created_at <= moment:
            last = entry
            break
        first = entry
        for name, change in entry.changes.items():
            values[name] = change.before
            (hidden.add if change.is_hidden else hidden.discard)(name)
    if first is None:
        return present
    if first.operation in ("create", "undelete"):
        return None
    if present is not None:
        values = {name: getattr(present, name) for name in type(present).model_fields} | values
    for name in hidden:
        values[name] = _unknown(resource, name)
    return _record(resource, values, first, last)


def _record[RecordT: Record[Any]](
    resource: Resource[RecordT, Any, Any], values: dict[str, Any], first: AuditEntry, last: AuditEntry | None
) -> RecordT:
    version = max(first.record_version - 1, 1) if last is None else last.record_version
    fields = {
        **dict.fromkeys(audited_fields(resource)),
        **values,
        "id": resource.kept_id(first.record_id),
        "version": version,
        "updated_at": values.get("created_at") if last is None else last.created_at,
        # Of no state that the record can be in, so that nobody changes the record by what it was.
        "etag": f'W/"as-of-{version}"',
    }
    try:
        return resource.record.model_validate(fields)
    except ValidationError as error:
        where = ", ".join(sorted({str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}))
        raise ResponseError(
            f"the audit trail of {resource.name} has values that {resource.record.__name__} doesn't take: {where}",
            response_status=200,
        ) from None


def _typed_change(resource: AnyResource, name: str, change: Change) -> Change:
    if change.is_hidden or name not in resource.record.model_fields:
        return change
    return Change(_typed_value(resource, name, change.before), _typed_value(resource, name, change.after))


def _typed_value(resource: AnyResource, name: str, value: Any) -> Any:
    """Return the value of a field in its type; as it came where it is of an older type, or None in a required one."""
    if value is None:
        return None
    try:
        return resource.field_adapter(name).validate_json(encode_json(value))
    except ValidationError:
        return value


def _unknown(resource: AnyResource, name: str) -> Any:
    """Return what stands for a value that the trail doesn't tell, of the field's type.

    It is the hidden text; where the field takes no text, its default; and None where it has none.
    """
    try:
        return resource.field_adapter(name).validate_python(HIDDEN_VALUE)
    except ValidationError:
        found = resource.record.model_fields[name].get_default(call_default_factory=True, validated_data={})
        return None if found is PydanticUndefined else found
