"""The description of the routes that read the audit trail."""

from hybridkit.contract import NDJSON_MEDIA_TYPE
from hybridkit.dataservice._http._openapi._operations import READS, body_part, operation_part, response_part
from hybridkit.dataservice._http._openapi._parts import Part, filter_parameters, query_options
from hybridkit.resources import AUDIT
from hybridkit.resources._resource import AnyResource


def history_part(resource: AnyResource, id_schema: Part, page: Part) -> Part:
    """Return the description of `GET` of the history of one record.

    Args:
        resource: the audited resource.
        id_schema: the schema of its ids.
        page: the schema of a page of entries.
    """
    record_id = {"name": "id", "in": "path", "required": True, "schema": id_schema}
    return operation_part(
        f"history_{resource.name}",
        "Read the changes of a record, also of one that is gone",
        ("prefer_count", *READS),
        {200: _found(page)},
        (404,),
        tag=resource.name,
        more=[record_id, *filter_parameters(AUDIT), *query_options(AUDIT)],
    )


def audit_parts(page: Part, query: Part) -> dict[str, dict[str, Part]]:
    """Return the paths of the whole trail, with the schemas of a page of entries and of a query for them."""
    found = operation_part(
        "find_audit",
        "Find changes of any audited record",
        ("prefer_count", *READS),
        {200: _found(page)},
        (),
        tag=AUDIT.name,
        more=[*filter_parameters(AUDIT), *query_options(AUDIT)],
    )
    queried = operation_part(
        "query_audit",
        "Find changes by any filter",
        ("prefer_count", *READS),
        {200: _found(page)},
        (413, 415),
        tag=AUDIT.name,
        body=body_part(query),
    )
    return {AUDIT.path: {"get": found}, f"{AUDIT.path}:query": {"post": queried}}


def _found(page: Part) -> Part:
    answer = dict(response_part("A page, or every line of an export.", page, ("Preference-Applied",)))
    lines = {"type": "string", "description": 'An entry a line, and `{"$end":true,"count":n}`.'}
    answer["content"] = {**answer["content"], NDJSON_MEDIA_TYPE: {"schema": lines}}
    return answer
