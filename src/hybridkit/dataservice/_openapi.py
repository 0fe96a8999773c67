"""The OpenAPI description of the routes. They read their bodies themselves, so they have to say what they take.

https://spec.openapis.org/oas/v3.1.0
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel, create_model
from pydantic.json_schema import models_json_schema

from hybridkit.contract import PROBLEM_MEDIA_TYPE, Problem, Transaction, TransactionResult
from hybridkit.dataservice._bodies import Bodies
from hybridkit.queries import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE

__all__ = ["Describe", "Schemas", "add_schemas", "transact"]

type Description = dict[str, Any]
"""Keyword arguments of `FastAPI.add_api_route`."""

_REFERENCE: Final = "#/components/schemas/{model}"

_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 257},
    "description": "One per call, the same for every attempt of it; quoted or bare.",
}
_CALLER: Final = {
    "name": "X-Service-Name",
    "in": "header",
    "schema": {"type": "string", "pattern": "^[a-z][a-z0-9_]{0,62}$"},
    "description": "The calling service. Keys are its own, and its events carry its name.",
}
_IF_MATCH: Final = {
    "name": "If-Match",
    "in": "header",
    "schema": {"type": "string"},
    "description": "The ETag that the record must have; `*` for any.",
}
_ONLY_ABSENT: Final = {
    "name": "If-None-Match",
    "in": "header",
    "schema": {"type": "string", "const": "*"},
    "description": "`*`: create the record, replace none.",
}
_IF_NONE_MATCH: Final = {
    "name": "If-None-Match",
    "in": "header",
    "schema": {"type": "string"},
    "description": "The ETags that the reader has already.",
}
_PROBLEMS: Final[Mapping[int, str]] = {
    400: "The query, a page token or the idempotency key is missing or wrong.",
    404: "There is no such record.",
    409: "A unique value is taken, a reference leads nowhere, a race was lost, or the key is in use.",
    412: "The record is in another state.",
    413: "The body is too large.",
    422: "The body doesn't fit, or the key was used for another request.",
    501: "This data service can't do that.",
    503: "The database does not answer, or is too busy.",
    504: "The deadline passed first, or nobody knows what became of the call.",
}


class Schemas:
    """The models that bodies have, and where the document defines them.

    Args:
        bodies: of every resource.
    """

    def __init__(self, bodies: Iterable[Bodies]) -> None:
        models: list[type[BaseModel]] = [Problem, Transaction]
        for body in bodies:
            models += [body.create_model, body.replace_model, body.update_model]
        wanted = [(model, "validation") for model in models]
        places, definitions = models_json_schema(wanted, ref_template=_REFERENCE)  # type: ignore[arg-type]
        self._places = {model: place for (model, _), place in places.items()}
        self.definitions: Mapping[str, Any] = definitions["$defs"]

    def __repr__(self) -> str:
        return f"Schemas({sorted(self.definitions)})"

    def body(self, model: type[BaseModel], media_type: str = "application/json") -> Mapping[str, Any]:
        """A required body of that model."""
        return {"required": True, "content": {media_type: {"schema": self._places[model]}}}


class Describe:
    """Describes the routes of one resource.

    Args:
        bodies: what it takes.
        schemas: where that is defined.
    """

    def __init__(self, bodies: Bodies, schemas: Schemas) -> None:
        resource = bodies.resource
        self._bodies = bodies
        self._schemas = schemas
        self._resource = resource
        self._record: type[BaseModel] = resource.record
        self._page = create_model(
            f"{resource.record.__name__}Page",
            items=(list[resource.record], ...),  # type: ignore[name-defined] # a class that is only known now
            next_page_token=(str | None, None),
        )

    def find(self) -> Description:
        """`GET` of the collection."""
        parameters = [*self._filters(), *_OPTIONS]
        return self._made("find", "Find records", parameters, self._ok(200, self._page, 400))

    def query(self) -> Description:
        """`POST` of a query."""
        return self._made(
            "query", "Find records by any filter", [], self._ok(200, self._page, 400, 413, 422), body=_QUERY
        )

    def create(self) -> Description:
        """`POST` of a record."""
        return self._made(
            "create",
            "Create a record",
            [_KEY, _CALLER],
            self._ok(201, self._record, 400, 409, 413, 422),
            body=self._schemas.body(self._bodies.create_model),
        )

    def get(self) -> Description:
        """`GET` of a record."""
        responses = self._ok(200, self._record, 404) | {304: {"description": "The reader has it already."}}
        return self._made("get", "Read a record", [self._id(), _IF_NONE_MATCH], responses)

    def put(self) -> Description:
        """`PUT` of a record."""
        responses = self._ok(200, self._record, 400, 404, 409, 412, 413, 422)
        responses[201] = {"model": self._record, "description": "Created."}
        return self._made(
            "put",
            "Create or replace a record",
            [self._id(), _KEY, _CALLER, _IF_MATCH, _ONLY_ABSENT],
            responses,
            body=self._schemas.body(self._bodies.replace_model),
        )

    def patch(self) -> Description:
        """`PATCH` of a record."""
        return self._made(
            "patch",
            "Change a record",
            [self._id(), _KEY, _CALLER, _IF_MATCH],
            self._ok(200, self._record, 400, 404, 409, 412, 413, 422),
            body=self._schemas.body(self._bodies.update_model, "application/merge-patch+json"),
        )

    def delete(self) -> Description:
        """`DELETE` of a record."""
        responses: dict[int | str, dict[str, Any]] = {204: {"description": "Removed."}}
        return self._made(
            "delete",
            "Remove a record",
            [self._id(), _KEY, _CALLER, _IF_MATCH],
            responses | _problems(400, 404, 409, 412, 422),
            status_code=204,
        )

    def _made(
        self,
        name: str,
        summary: str,
        parameters: list[Mapping[str, Any]],
        responses: dict[int | str, dict[str, Any]],
        **more: Any,
    ) -> Description:
        return _description(
            f"{name}_{self._resource.name}", summary, self._resource.name, parameters, responses, **more
        )

    def _ok(self, status: int, model: type[BaseModel], *problems: int) -> dict[int | str, dict[str, Any]]:
        return {status: {"model": model, "description": "Done."}} | _problems(*problems)

    def _id(self) -> Mapping[str, Any]:
        schema = self._record.model_json_schema()["properties"]["id"]
        return {"name": "id", "in": "path", "required": True, "schema": schema}

    def _filters(self) -> list[Mapping[str, Any]]:
        return [
            {
                "name": name,
                "in": "query",
                "schema": {"type": "string"},
                "description": "An operator and a value, such as `eq.1`, `not.in.(1,2)`, `like.a*`, `is.null`.",
            }
            for name in ("id", *self._resource.filterable)
        ]


def transact(schemas: Schemas) -> Description:
    """`POST /v1:transact`."""
    responses: dict[int | str, dict[str, Any]] = {
        200: {"model": TransactionResult, "description": "All of it is done."}
    }
    return _description(
        "transact",
        "Several operations and events, all or nothing",
        "transactions",
        [_KEY, _CALLER],
        responses | _problems(400, 404, 409, 412, 413, 422, 501),
        body=schemas.body(Transaction),
    )


def add_schemas(app: FastAPI, schemas: Schemas) -> None:
    """Have the application's document define the models that the descriptions refer to."""
    build = app.openapi

    def with_schemas() -> dict[str, Any]:
        if app.openapi_schema is None:
            components = build().setdefault("components", {})
            components.setdefault("schemas", {}).update(schemas.definitions)
        return app.openapi_schema or {}

    app.openapi = with_schemas  # type: ignore[method-assign] # FastAPI's own way to extend the document


_OPTIONS: Final[tuple[Mapping[str, Any], ...]] = (
    {
        "name": "or",
        "in": "query",
        "schema": {"type": "string"},
        "description": "Alternatives, such as `(email.eq.a,is_active.is.false)`; `and`, `not.or`, `not.and` likewise.",
    },
    {
        "name": "order",
        "in": "query",
        "schema": {"type": "string"},
        "description": "Fields with a direction, such as `created_at.desc,id`.",
    },
    {
        "name": "select",
        "in": "query",
        "schema": {"type": "string"},
        "description": "The fields to return, separated by commas.",
    },
    {
        "name": "page_size",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": DEFAULT_PAGE_SIZE},
    },
    {
        "name": "page_token",
        "in": "query",
        "schema": {"type": "string"},
        "description": "The `next_page_token` of the page before.",
    },
)

_QUERY: Final = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "where": {"type": "object", "description": 'A tree such as {"eq": ["email", "a"]}.'},
                    "order": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
                    "select": {"type": "array", "items": {"type": "string"}},
                    "page_size": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE},
                    "page_token": {"type": "string"},
                },
            }
        }
    },
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    return {
        status: {"description": _PROBLEMS[status], "content": content} for status in (*statuses, 503, 504)
    }


def _description(
    operation_id: str,
    summary: str,
    tag: str,
    parameters: Iterable[Mapping[str, Any]],
    responses: dict[int | str, dict[str, Any]],
    *,
    body: Mapping[str, Any] | None = None,
    status_code: int | None = None,
) -> Description:
    extra: dict[str, Any] = {"parameters": list(parameters)}
    if body is not None:
        extra["requestBody"] = body
    done = min(status for status in responses if isinstance(status, int))
    return {
        "operation_id": operation_id,
        "summary": summary,
        "tags": [tag],
        "responses": responses,
        "openapi_extra": extra,
        "response_model": None,
        "status_code": status_code or done,
    }
