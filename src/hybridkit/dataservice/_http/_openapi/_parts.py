"""The parts that the descriptions of all routes share: headers, problems, options of a query.

https://spec.openapis.org/oas/v3.1.0
"""

from collections.abc import Mapping
from typing import Any, Final

from hybridkit._syntax import NAME_SYNTAX
from hybridkit.contract import PROBLEM_MEDIA_TYPE
from hybridkit.resources import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from hybridkit.resources._aggregations import FUNCTION_NAMES, MAX_FUNCTIONS, MAX_GROUP_FIELDS, MAX_GROUPS
from hybridkit.resources._filters import OPERATORS
from hybridkit.resources._resource import AnyResource

type Part = Mapping[str, Any]

EXAMPLE_ID: Final = "1f1e54a2-f5d4-612b-8824-ddcdfebdd6fc"

PARAMETERS: Final[Mapping[str, Part]] = {
    "key": {
        "name": "Idempotency-Key",
        "in": "header",
        "required": True,
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!#-~]+$"},
        "description": "One per call, the same for every attempt of it; quoted or bare.",
        "example": "018e0d6c-pay-order-7",
    },
    "caller": {
        "name": "X-Service-Name",
        "in": "header",
        "schema": {"type": "string", "pattern": f"^{NAME_SYNTAX.pattern}$"},
        "description": "The calling service, where no token proves it. Keys are its own; its events carry its name.",
        "example": "api_service",
    },
    "timeout": {
        "name": "X-Request-Timeout",
        "in": "header",
        "schema": {"type": "number", "minimum": 0, "maximum": 3600},
        "description": "Seconds that the caller still waits; 10 without it. Once they have passed, nothing is started.",
        "example": 3,
    },
    "request_id": {
        "name": "X-Request-ID",
        "in": "header",
        "schema": {"type": "string", "pattern": "^[!-$&-~]{1,255}$"},
        "description": (
            "Of the request at the edge that this one belongs to; made up without it. What is not visible ASCII is"
            " percent-encoded."
        ),
    },
    "if_match": {
        "name": "If-Match",
        "in": "header",
        "schema": {"type": "string", "pattern": '^(\\*|(W/)?"[!#-+\\--~]*")$'},
        "description": (
            "The ETag that the record must have, or several, of which it has one; `*` for any. Needed where the"
            " resource says so (428)."
        ),
        "example": '"1-2a"',
    },
    "only_absent": {
        "name": "If-None-Match",
        "in": "header",
        "schema": {"type": "string", "const": "*"},
        "description": "`*`: create the record, replace none.",
    },
    "if_none_match": {
        "name": "If-None-Match",
        "in": "header",
        "schema": {"type": "string"},
        "description": "The ETags that the reader has already.",
    },
    "prefer_write": {
        "name": "Prefer",
        "in": "header",
        "schema": {"type": "string"},
        "description": (
            "`return=minimal` answers without a body; `tx=rollback` tries it and takes it back; `max-affected=n`"
            " refuses to touch more records (RFC 7240). `Preference-Applied` names what was honoured."
        ),
        "example": "max-affected=1000",
    },
    "prefer_count": {
        "name": "Prefer",
        "in": "header",
        "schema": {"type": "string"},
        "description": "`count=exact` or `count=estimated` adds `total_size` to the page (RFC 7240).",
        "example": "count=exact",
    },
}

RESPONSE_HEADERS: Final[Mapping[str, Part]] = {
    "ETag": {"schema": {"type": "string"}, "description": "The record's state, for If-Match."},
    "Location": {"schema": {"type": "string"}, "description": "Of a new record."},
    "Idempotency-Replayed": {
        "schema": {"type": "string", "const": "true"},
        "description": "The answer is that of an earlier call with this key.",
    },
    "Idempotency-Reread": {
        "schema": {"type": "string", "const": "true"},
        "description": "The earlier answer was too large to keep: its records are those of now.",
    },
    "Preference-Applied": {
        "schema": {"type": "string"},
        "description": "The preferences that were honoured.",
    },
    "Vary": {
        "schema": {"type": "string"},
        "description": "The header fields of the request that decided on the answer.",
    },
    "X-Request-ID": {"schema": {"type": "string"}, "description": "Of this request."},
}

SECURITY: Final[Part] = {
    "service_token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A short-lived token of the calling service, where this one has keys for its callers.",
    }
}

_PROBLEM: Final = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_MEANINGS: Final[Mapping[int, str]] = {
    400: "The query, a page token or a header is wrong, or the idempotency key is missing.",
    401: "The caller doesn't prove who it is.",
    403: "The caller may not do this.",
    404: "There is no such record.",
    406: "No answer of the media types in Accept; a list is JSON or NDJSON, everything else JSON.",
    409: "A unique value is taken, a reference leads nowhere, a race was lost, or the key is in use.",
    412: "The record is in another state, or not as the request requires.",
    413: "The body has more than 1 MiB.",
    414: "The URL has more than 8 KiB; send the query as the body of `:query`.",
    415: "The body is of a type that the route doesn't take, or it is compressed.",
    422: "The body or a header doesn't fit, or the key was used for another request.",
    428: "The resource is changed from the state that was read only; send its ETag in If-Match.",
    429: "Too many requests; `Retry-After` says when to come again.",
    500: "The service is broken.",
    501: "This data service can't do that.",
    503: "The database does not answer, or is too busy; `Retry-After` may say when to come again.",
    504: "The deadline passed first, or nobody knows what became of the call.",
}
_RETRY_AFTER: Final = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}

PROBLEMS: Final[Mapping[int, Part]] = {
    status: {"description": meaning, "content": _PROBLEM}
    | ({"headers": _RETRY_AFTER} if status in (409, 429, 503) else {})
    for status, meaning in _MEANINGS.items()
}

_OPERATORS: Final = "|".join(OPERATORS)


def filter_parameters(resource: AnyResource) -> list[Part]:
    """Return a parameter for each field that can be filtered by, and those that combine conditions."""
    return [
        *(
            {
                "name": name,
                "in": "query",
                "schema": {"type": "string", "pattern": f"^(not\\.)?({_OPERATORS})\\."},
                "description": "An operator and a value: `eq.1`, `not.in.(1,2)`, `like.a*`, `is.null`.",
            }
            for name in ("id", *resource.filterable)
        ),
        *(
            {
                "name": name,
                "in": "query",
                "schema": {"type": "string", "pattern": r"^\(.*\)$"},
                "description": "Conditions, such as `(id.eq.a,id.is.null)`.",
            }
            for name in ("or", "and", "not.or", "not.and")
        ),
    ]


def query_options(resource: AnyResource) -> list[Part]:
    """Return the parameters of a `GET` besides its filter."""
    ordered = "|".join(name.replace(".", "\\.") for name in ("id", *resource.sortable))
    selected = "|".join(resource.record.model_fields)
    entry = f"({ordered})(\\.(asc|desc))?"
    return [
        {
            "name": "order",
            "in": "query",
            "schema": {"type": "string", "pattern": f"^{entry}(,{entry})*$"},
            "description": "Fields with a direction, each at most once.",
            "example": "id.desc",
        },
        {
            "name": "select",
            "in": "query",
            "schema": {"type": "string", "pattern": f"^({selected})(,({selected}))*$"},
            "description": "The fields to return, separated by commas.",
            "example": "id",
        },
        {
            "name": "page_size",
            "in": "query",
            "schema": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_PAGE_SIZE,
                "default": DEFAULT_PAGE_SIZE,
            },
        },
        {
            "name": "page_token",
            "in": "query",
            "schema": {"type": "string"},
            "description": "The `next_page_token` of the page before.",
        },
    ]


_WHERE: Final[Part] = {
    "type": ["object", "null"],
    "description": 'A tree such as `{"and": [{"eq": ["a", 1]}, {"not": {"in": ["b", [1, 2]]}}]}`.',
}


def query_schema(resource: AnyResource) -> Part:
    """Return the schema of the body of `:query`, and of the method QUERY."""
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "where": _WHERE,
            "order": _order_schema(["id", *resource.sortable]),
            "select": {
                "type": "array",
                "items": {"enum": list(resource.record.model_fields)},
                "uniqueItems": True,
            },
            "page_size": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE},
            "page_token": {"type": "string"},
        },
        "examples": [{"where": {"is": ["id", None]}, "order": [["id", "desc"]], "page_size": 10}],
    }


def aggregation_schema(resource: AnyResource) -> Part:
    """Return the schema of the body of `:aggregate`."""
    fields = {"enum": ["id", *resource.filterable]}
    function = {
        "anyOf": [
            {"type": "array", "prefixItems": [{"const": "count"}], "minItems": 1, "maxItems": 1},
            {
                "type": "array",
                "prefixItems": [{"enum": list(FUNCTION_NAMES[1:])}, fields],
                "minItems": 2,
                "maxItems": 2,
            },
        ]
    }
    grouped = {
        "type": "object",
        "additionalProperties": False,
        "required": ["functions"],
        "properties": {
            "functions": {
                "type": "object",
                "propertyNames": {"pattern": f"^{NAME_SYNTAX.pattern}$"},
                "minProperties": 1,
                "maxProperties": MAX_FUNCTIONS,
                "additionalProperties": function,
            },
            "group_by": {"type": "array", "items": fields, "maxItems": MAX_GROUP_FIELDS},
            "where": _WHERE,
            "order": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
            "limit": {"type": "integer", "minimum": 1, "maximum": MAX_GROUPS},
        },
        "examples": [{"functions": {"records": ["count"]}}],
    }
    pipeline = {
        "type": "object",
        "additionalProperties": False,
        "required": ["pipeline"],
        "properties": {"pipeline": {"type": "array", "items": {"type": "object"}}},
        "description": "MongoDB only; its stages and operators are on a list.",
    }
    return {"anyOf": [grouped, pipeline]}


def _order_schema(names: list[str]) -> Part:
    entry = {
        "type": "array",
        "prefixItems": [{"enum": names}, {"enum": ["asc", "desc"]}],
        "minItems": 2,
        "maxItems": 2,
    }
    return {"type": "array", "items": entry, "maxItems": 8}
