"""The rules of the audit trail that all stores share: which fields an entry has, and who made the change."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from hybridkit.codec import encode_json
from hybridkit.context import current
from hybridkit.dataservice._store._operations import Write
from hybridkit.resources._audit import HIDDEN_VALUE, audited_fields
from hybridkit.resources._resource import AnyResource

BLANK: Final = [HIDDEN_VALUE, HIDDEN_VALUE]
"""The values before and after of a change that the trail doesn't tell."""

AUDIT_DAYS: Final = 400
"""For how many days entries are kept, unless the settings say otherwise."""

type Values = Mapping[str, Any]


def any_audited(resources: Collection[AnyResource]) -> bool:
    """Return whether a service with these resources keeps an audit trail."""
    return any(resource.audited for resource in resources)


def author_of(write: Write) -> dict[str, str | None]:
    """Return who makes the change: the calling service, its user, and the request."""
    context = current()
    return {"caller": write.caller, "user_id": context.user_id, "request_id": context.request_id}


def changes_of(resource: AnyResource, before: Values | None, after: Values | None) -> dict[str, list[Any]]:
    """Return the fields that differ, each with its two values; of a hidden one only that it differs.

    Args:
        resource: the declaration.
        before: the values by field; None for a record that was not there, or hidden by a soft delete.
        after: the values by field; None for a record that is not there any more, or hidden by a soft delete.
    """
    found: dict[str, list[Any]] = {}
    for name in audited_fields(resource):
        pair = [None if before is None else before.get(name), None if after is None else after.get(name)]
        if _differ(*pair):
            found[name] = BLANK if name in resource.audit_hide else pair
    return found


def blanked(changes: Mapping[str, Any], fields: Collection[str]) -> dict[str, Any] | None:
    """Return the changes of an entry without the values of some fields; None if it has no such values."""
    found = {name for name in fields if name in changes and list(changes[name]) != BLANK}
    return {name: BLANK if name in found else pair for name, pair in changes.items()} if found else None


def _differ(before: Any, after: Any) -> bool:
    if before is None or after is None:
        return before is not after
    # As JSON, where true is not 1, as it is in Python.
    return bool(before != after) or encode_json(before) != encode_json(after)
